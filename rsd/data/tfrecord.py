"""TFRecord files without TensorFlow: finding records, reading them, and the bytes of a new one.

A record is: length (uint64), masked CRC of the length, payload, masked CRC of the payload; all little-endian. What
surprises first: nothing at the head of a file says how many records there are, but headers lead from one to the next.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

from rsd.data import DataError
from rsd.data.crc32c import masked_crc32c
from rsd.files import stranger

HEADER_BYTES = 12
FOOTER_BYTES = 4


class Span(NamedTuple):
    """Where a record's payload lies in its file, in bytes."""

    offset: int
    length: int


def frame(payload: bytes) -> bytes:
    """The record that holds `payload`, as it stands in a file."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), payload, struct.pack("<I", masked_crc32c(payload)))
    )


def scan(path: Path, count: int | None = None) -> tuple[list[Span], int]:
    """Find the records of a file by hopping from header to header; payloads are not read.

    Args:
        count: Stop after so many records; None goes on to the end of the file.

    Returns:
        The records, and the offset behind the last whole one. That is less than the file's size when the file goes on
        behind `count` records, or ends inside a record that is being written.

    Raises:
        DataError: a header's checksum is wrong, or the file is none of records.
    """
    spans: list[Span] = []
    offset, size = 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while (count is None or len(spans) < count) and offset + HEADER_BYTES <= size:
            header = os.pread(file.fileno(), HEADER_BYTES, offset)
            length, expected = struct.unpack("<QI", header)
            got = masked_crc32c(header[:8])
            if got != expected:
                message = (
                    f"{path}: corrupt record header at byte {offset} (record {len(spans)}): checksum of the length is "
                    f"{got:#010x}, expected {expected:#010x}; fetch or collect this file again"
                )
                raise DataError((stranger(path) if offset == 0 else None) or message)
            end = offset + HEADER_BYTES + length + FOOTER_BYTES
            if end > size:
                break
            spans.append(Span(offset + HEADER_BYTES, length))
            offset = end
    return spans, offset


def read_record(file: int, span: Span, path: Path) -> memoryview:
    """Payload of one record, mapped into memory until the view is let go.

    Args:
        file: Open file descriptor.
        span: From `scan`.
        path: For messages only.

    Raises:
        DataError: the file ends inside the record, or the checksum differs.
    """
    end, size = span.offset + span.length + FOOTER_BYTES, os.fstat(file).st_size
    if size < end:
        raise DataError(
            f"{path}: truncated record at byte {span.offset}: expected {end} bytes in the file, got {size}; "
            "fetch or collect this file again"
        )
    page = span.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    view = memoryview(mmap.mmap(file, end - page, offset=page, access=mmap.ACCESS_READ))[span.offset - page :]
    payload = view[: span.length]
    expected, got = struct.unpack_from("<I", view, span.length)[0], masked_crc32c(payload)
    if got != expected:
        raise DataError(
            f"{path}: corrupt record at byte {span.offset}: checksum of {span.length} bytes is {got:#010x}, "
            f"expected {expected:#010x}; fetch or collect this file again"
        )
    return payload
