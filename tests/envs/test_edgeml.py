"""edgeml's messages: what is written, that a robot's older numpy reads it, and that nothing but data is read."""

import pickle
import pickletools

import lz4.frame
import numpy as np
import pytest

from rsd.envs.edgeml import LARGEST, MessageError, decode, encode

MESSAGE = {"type": "act", "payload": {"action": np.array([0.1, 1 / 3, -1e-12]), "blocking": False, "keys": {"a"}}}


def names(data: bytes) -> set[str]:
    """What a message's pickle has looked up by name."""
    operations = list(pickletools.genops(lz4.frame.decompress(data)))
    texts = [argument for operation, argument, _ in operations if "UNICODE" in operation.name]
    assert any(operation.name == "STACK_GLOBAL" for operation, *_ in operations)
    return {text for text in texts if text.startswith("numpy")}


def test_arrays_are_written_with_a_name_that_every_numpy_has():
    assert names(encode(MESSAGE)) == {"numpy"}
    plain = pickle.loads(lz4.frame.decompress(encode(MESSAGE)))  # noqa: S301  as the robot's server reads it
    np.testing.assert_array_equal(plain["payload"]["action"], MESSAGE["payload"]["action"])
    assert plain["payload"]["action"].dtype == np.float64 and plain["payload"]["keys"] == {"a"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(7.0),
        np.arange(12, dtype=np.float32).reshape(1, 12),
        np.float64(0.5),
        np.zeros((2, 2, 3), np.uint8),
        b"\xff\xd8",
    ],
)
def test_what_a_server_pickles_is_read(protocol, value):
    got = decode(lz4.frame.compress(pickle.dumps({"value": value, "status": 1}, protocol=protocol)))
    np.testing.assert_array_equal(got["value"], value)
    assert got["status"] == 1


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_numpy_1_pickles_is_read(protocol):
    pickled = pickle.dumps(np.arange(7.0), protocol=protocol)
    older = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert older != pickled
    np.testing.assert_array_equal(decode(lz4.frame.compress(older)), np.arange(7.0))


class Runs:
    """A pickle of this calls a function."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("function", [eval, print, np.load, np.frombuffer, getattr])
def test_code_in_a_message_is_not_run(function, tmp_path):
    mark = tmp_path / "mark"
    arguments = (f"open({str(mark)!r}, 'w')",) if function is eval else ("x",)
    data = lz4.frame.compress(pickle.dumps(Runs(function, *arguments)))
    with pytest.raises(MessageError, match=rf"what is no message of edgeml's \(UnpicklingError: .*{function.__name__}"):
        decode(data)
    assert not mark.exists()


def test_ten_thousand_damaged_messages_are_an_error_each_or_data():
    random = np.random.default_rng(0)
    whole = encode({"image": np.zeros(64), "state": np.arange(7.0), "full_image": b"\xff\xd8" * 50})
    pickled = lz4.frame.decompress(whole)
    failed = 0
    for number in range(10_000):
        of_frame = number % 2 == 0
        damaged = bytearray(whole if of_frame else pickled)
        for place in random.integers(0, len(damaged), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        cut = bytes(damaged[: random.integers(0, len(damaged) + 1)]) if number % 5 == 0 else bytes(damaged)
        try:
            decode(cut if of_frame else lz4.frame.compress(cut))
        except MessageError:
            failed += 1
    assert failed > 5_000


def test_a_message_that_unpacks_to_too_much_is_refused():
    with pytest.raises(MessageError, match="cut off, or larger than 64 MB"):
        decode(lz4.frame.compress(bytes(LARGEST + 1)))


def test_a_byte_that_announces_memory_for_nothing_takes_none():
    pickled = b"\x80\x04}r\xff\xff\xff\x7f."  # an empty dict, remembered as number 2 ** 31 - 1
    assert decode(lz4.frame.compress(pickled)) == {}
