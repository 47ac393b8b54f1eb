"""TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A record is: length (uint64), masked CRC of the length, payload, masked CRC of the payload; all little-endian. An
Example is a protobuf map from feature name to one list of bytes, floats or integers. What surprises first: the lists
carry no shape, and a list of bytes can be hopped over without looking at it: reading actions costs no pictures.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsd.data import DataError
from rsd.data.crc32c import masked_crc32c

HEADER_BYTES = 12
FOOTER_BYTES = 4
BYTES, FLOAT, INT64 = 1, 2, 3  # field numbers of tf.train.Feature


class Span(NamedTuple):
    """Where a record's payload lies in its file, in bytes."""

    offset: int
    length: int


class Feature(NamedTuple):
    """One undecoded feature: its kind (BYTES, FLOAT or INT64) and where its list lies in the payload."""

    kind: int
    start: int
    end: int


# ---- framing ---------------------------------------------------------------------------------------------------------


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
        DataError: a header's checksum is wrong.
    """
    spans: list[Span] = []
    offset, size = 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while (count is None or len(spans) < count) and offset + HEADER_BYTES <= size:
            header = os.pread(file.fileno(), HEADER_BYTES, offset)
            length, expected = struct.unpack("<QI", header)
            got = masked_crc32c(header[:8])
            if got != expected:
                raise DataError(
                    f"{path}: corrupt record header at byte {offset} (record {len(spans)}): checksum of the length is "
                    f"{got:#010x}, expected {expected:#010x}; fetch or collect this file again"
                )
            end = offset + HEADER_BYTES + length + FOOTER_BYTES
            if end > size:
                break
            spans.append(Span(offset + HEADER_BYTES, length))
            offset = end
    return spans, offset


def read_record(file: int, span: Span, path: Path, check: bool = True) -> memoryview:
    """Payload of one record, mapped into memory until the view is let go.

    Args:
        file: Open file descriptor.
        span: From `scan`.
        path: For messages only.
        check: Compare the payload with its checksum.

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
    if check:
        expected, got = struct.unpack_from("<I", view, span.length)[0], masked_crc32c(payload)
        if got != expected:
            raise DataError(
                f"{path}: corrupt record at byte {span.offset}: checksum of {span.length} bytes is {got:#010x}, "
                f"expected {expected:#010x}; fetch or collect this file again"
            )
    return payload


# ---- tf.train.Example: reading ---------------------------------------------------------------------------------------


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _field(data: memoryview, position: int) -> tuple[int, int, int]:
    """Number, start and end of the length-delimited field at `position`."""
    tag, position = _varint(data, position)
    if tag & 7 != 2:
        raise ValueError(f"expected a length-delimited protobuf field at byte {position}, got wire type {tag & 7}")
    length, position = _varint(data, position)
    if position + length > len(data):
        raise ValueError(f"a protobuf field at byte {position} of {length} bytes runs over the end {len(data)}")
    return tag >> 3, position, position + length


def parse_example(data: memoryview) -> dict[str, Feature]:
    """Feature name to the place of its values. An empty feature, whose kind is not stored, is left out.

    Raises:
        ValueError, IndexError: not a tf.train.Example.
    """
    features: dict[str, Feature] = {}
    _, position, end = _field(data, 0)  # Example.features
    while position < end:
        _, entry, position = _field(data, position)  # one entry of the map; `position` is now behind it
        name, value = "", (0, 0)
        while entry < position:
            number, start, entry = _field(data, entry)
            if number == 1:
                name = bytes(data[start:entry]).decode()
            else:
                value = (start, entry)
        if value[0] < value[1]:
            features[name] = Feature(*_field(data, value[0]))
    return features


def byte_spans(data: memoryview, feature: Feature) -> list[tuple[int, int]]:
    """Start and end of each value of a BYTES feature in the payload."""
    spans, position = [], feature.start
    while position < feature.end:
        _, start, position = _field(data, position)
        spans.append((start, position))
    return spans


def text_values(data: memoryview, feature: Feature) -> list[str]:
    """Values of a BYTES feature that holds text. The usual case, one text repeated at every step, is read once."""
    if feature.start == feature.end:
        return []
    _, start, end = _field(data, feature.start)
    entry, whole = bytes(data[feature.start : end]), bytes(data[feature.start : feature.end])
    count = len(whole) // len(entry)
    if entry * count == whole:
        return [bytes(data[start:end]).decode()] * count
    return [bytes(data[start:end]).decode() for start, end in byte_spans(data, feature)]


def float_values(data: memoryview, feature: Feature) -> np.ndarray:
    """Values of a FLOAT feature, [n], float32."""
    if feature.start == feature.end:
        return np.empty(0, dtype=np.float32)
    if data[feature.start] == 0x0A:  # packed, as every modern writer does
        _, start, end = _field(data, feature.start)
        return np.frombuffer(data[start:end], dtype="<f4")
    pairs = np.frombuffer(data[feature.start : feature.end], dtype=np.dtype([("tag", "u1"), ("value", "<f4")]))
    return pairs["value"].copy()


def int_values(data: memoryview, feature: Feature) -> np.ndarray:
    """Values of an INT64 feature, [n], int64."""
    if feature.start == feature.end:
        return np.empty(0, dtype=np.int64)
    packed = data[feature.start] == 0x0A
    position, end = _field(data, feature.start)[1:] if packed else (feature.start, feature.end)
    small = np.frombuffer(data[position:end], dtype=np.uint8)
    if packed and (small < 0x80).all():  # one byte each, as for flags
        return small.astype(np.int64)
    values = []
    while position < end:
        value, position = _varint(data, position if packed else position + 1)
        values.append(value)
    return np.array(values, dtype=np.uint64).view(np.int64)


# ---- tf.train.Example: writing ---------------------------------------------------------------------------------------


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_field(number: int, payload: bytes) -> bytes:
    return b"".join((_encode_varint(number << 3 | 2), _encode_varint(len(payload)), payload))


def encode_example(features: Mapping[str, np.ndarray | Sequence[bytes]]) -> bytes:
    """A tf.train.Example: floating arrays become float lists, integer and boolean ones int64 lists, others bytes lists.

    Args:
        features: Name to values; arrays are flattened in C order.
    """
    entries = []
    for name in sorted(features):
        values = features[name]
        if not isinstance(values, np.ndarray):
            feature = _encode_field(BYTES, b"".join(_encode_field(1, value) for value in values))
        elif values.dtype.kind == "f":
            feature = _encode_field(FLOAT, _encode_field(1, values.astype("<f4").tobytes()))
        else:
            integers = values.astype(np.int64).view(np.uint64).ravel().tolist()
            feature = _encode_field(INT64, _encode_field(1, b"".join(map(_encode_varint, integers))))
        entries.append(_encode_field(1, _encode_field(1, name.encode()) + _encode_field(2, feature)))
    return _encode_field(1, b"".join(entries))
