"""Record framing, byte by byte."""

import os
from pathlib import Path

import pytest

from rsd.data import DataError
from rsd.data.tfrecord import Span, frame, read_record, scan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.tfrecord"
    path.write_bytes(frame(b"first") + frame(b"second record"))
    return path


def _read(path: Path, span: Span) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return bytes(read_record(file, span, path))
    finally:
        os.close(file)


def test_scan_and_read(path: Path):
    spans, end = scan(path)
    assert (spans, end) == ([Span(12, 5), Span(33, 13)], path.stat().st_size)
    assert [_read(path, span) for span in spans] == [b"first", b"second record"]
    assert scan(path, count=1) == ([Span(12, 5)], 21)


def test_scan_stops_before_a_torn_record(path: Path):
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        spans, end = scan(path)
        assert (len(spans), end) == ((1, 21) if size >= 21 else (0, 0))


def test_every_flipped_byte_is_noticed(path: Path):
    whole = path.read_bytes()
    for position in range(21):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(DataError, match=rf"{path}: corrupt record .*byte (0|12).*checksum.*expected 0x"):
            spans, _ = scan(path)
            _read(path, spans[0])


def test_file_that_became_shorter(path: Path):
    spans, _ = scan(path)
    os.truncate(path, 40)
    with pytest.raises(DataError, match=r"truncated record at byte 33: expected 50 bytes in the file, got 40"):
        _read(path, spans[1])
