"""tf.train.Example messages, byte by byte."""

import numpy as np
import pytest

from rsd.data.tf_example import (
    byte_spans,
    encode_example,
    float_values,
    int_values,
    parse_example,
    text_values,
)

VALUES = {
    "floats": np.array([1.5, -2.25, 3e38], dtype=np.float32),
    "flags": np.array([True, False, True]),
    "integers": np.array([-1, 0, 127, 128, 2**62, -(2**63)]),
    "texts": [b"put it", b"", "tür".encode()],
    "same": [b"again"] * 4,
    "empty": [],
}


def test_example_by_hand():
    """Example{features{feature{key "a", value{float_list{value [1.0]}}}}}, as protoc encodes it."""
    expected = bytes.fromhex("0a0f 0a0d 0a0161 1208 1206 0a04 0000803f".replace(" ", ""))
    assert encode_example({"a": np.ones(1, dtype=np.float32)}) == expected


def test_example_round_trip():
    data = memoryview(encode_example(VALUES))
    features = parse_example(data)
    np.testing.assert_array_equal(float_values(data, features["floats"]), VALUES["floats"])
    assert int_values(data, features["flags"]).tolist() == [1, 0, 1]
    np.testing.assert_array_equal(int_values(data, features["integers"]), VALUES["integers"])
    assert [bytes(data[start:end]) for start, end in byte_spans(data, features["texts"])] == VALUES["texts"]
    assert text_values(data, features["texts"]) == ["put it", "", "tür"]
    assert text_values(data, features["same"]) == ["again"] * 4
    assert text_values(data, features["empty"]) == []


def test_unpacked_lists_are_read_too():
    """Old writers store each number with a tag of its own."""
    floats = memoryview(bytes.fromhex("0a13 0a11 0a0161 120c 120a 0d0000803f 0d000000c0".replace(" ", "")))
    assert float_values(floats, parse_example(floats)["a"]).tolist() == [1.0, -2.0]
    integers = memoryview(bytes.fromhex("0a0e 0a0c 0a0161 1207 1a05 0801 08ac02".replace(" ", "")))
    assert int_values(integers, parse_example(integers)["a"]).tolist() == [1, 300]


def test_not_an_example():
    with pytest.raises(ValueError, match="runs over the end"):
        parse_example(memoryview(b"\x0a\x7fabc"))
    with pytest.raises(ValueError, match="wire type 5"):
        parse_example(memoryview(b"\x0dabcd"))


def test_packed_integers_of_every_length_and_those_that_end_early():
    values = np.array([0, 127, 128, -1, 2**62, -(2**63), 255, 300])
    data = memoryview(encode_example({"x": values}))
    feature = parse_example(data)["x"]
    assert int_values(data, feature).tolist() == values.tolist()
    broken = bytearray(data)
    broken[feature.end - 1] |= 0x80
    with pytest.raises(ValueError, match="ends inside of one"):
        int_values(memoryview(bytes(broken)), feature)
    broken[feature.start + 2 : feature.end - 1] = b"\xff" * (feature.end - feature.start - 3)
    broken[feature.end - 1] = 1
    with pytest.raises(ValueError, match="expected 10 at most"):
        int_values(memoryview(bytes(broken)), feature)
