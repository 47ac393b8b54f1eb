"""tf.train.Example messages on the wire, without TensorFlow or protobuf classes.

An Example is a protobuf map from feature name to one list of bytes, floats or integers. What surprises first: the lists
carry no shape, and a list of bytes can be hopped over without looking at it: reading actions costs no pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

BYTES, FLOAT, INT64 = 1, 2, 3  # field numbers of tf.train.Feature
MAX_VARINT = 10  # bytes of an integer of 64 bits


class Feature(NamedTuple):
    """One undecoded feature: its kind (BYTES, FLOAT or INT64) and where its list lies in the payload."""

    kind: int
    start: int
    end: int


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
    if packed:  # many: of pictures that are stored as tensors, millions
        return _varints(small)
    values = []
    while position < end:
        value, position = _varint(data, position + 1)
        values.append(value)
    return np.array(values, dtype=np.uint64).view(np.int64)


def _varints(data: np.ndarray) -> np.ndarray:
    """All integers of a packed list, uint8 → [n], int64."""
    last = data < 0x80  # of its integer
    if not last[-1]:
        raise ValueError("a packed list of integers ends inside of one")
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(starts, append=len(data))
    if lengths.max() > MAX_VARINT:
        raise ValueError(f"an integer of {lengths.max()} bytes, expected {MAX_VARINT} at most")
    shift = 7 * (np.arange(len(data)) - np.repeat(starts, lengths)).astype(np.uint64)
    return np.add.reduceat((data & 0x7F).astype(np.uint64) << shift, starts).view(np.int64)


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
