"""Messages ↔ records, without a socket and without the extra's packages."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rsd.serving.messages import (
    MessageError,
    ObservationReader,
    ProtocolVersionError,
    check_hello,
    decode_array,
    decode_image,
    encode_array,
    read_message,
    read_task,
)
from tests.serving.policies import HELLO, READER, SIZE, TASK, message, observation, png

PICTURE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
RAW = {"__image__": True, "format": "raw", "data": PICTURE.tobytes(), "dtype": "|u1", "shape": [SIZE, SIZE, 3]}


def test_an_observation_keeps_its_pixels_where_they_are():
    payload = observation()
    payload["images"]["agentview"] = png(PICTURE)
    payload["images"]["third camera"] = png(PICTURE)
    read = READER.read(payload)
    assert list(read.images) == ["image", "wrist_image"]
    np.testing.assert_array_equal(read.images["image"], PICTURE)
    assert read.proprio.tolist() == (np.arange(8.0) / 8).tolist() and read.proprio.dtype == np.float64
    assert read.instruction == "reach"


def test_states_of_single_precision_are_taken():
    payload = {**observation(), "states": encode_array(np.full(8, 0.1, dtype=np.float32))}
    assert READER.read(payload).proprio.tolist() == [float(np.float32(0.1))] * 8


@pytest.mark.parametrize("entry", [png(PICTURE), RAW, encode_array(PICTURE)], ids=["png", "raw", "array"])
def test_pictures_arrive_lossless(entry):
    np.testing.assert_array_equal(decode_image(entry, "agentview", PICTURE.shape), PICTURE)


def test_only_the_views_that_the_policy_needs_are_asked_for_and_read():
    reader = ObservationReader(views=("image",), image_size=SIZE, proprio_dim=8)
    payload = observation()
    del payload["images"]["wrist"]
    assert list(reader.read(payload).images) == ["image"]
    assert reader.hello()["observation_params"]["send_wrist_image"] is False
    assert list(reader.hello()["observation_spec"]) == ["agentview", "state", "language"]
    assert READER.hello()["observation_params"]["send_wrist_image"] is True


@pytest.mark.parametrize("array", [np.arange(7.0), np.float32([[1], [2]]), np.zeros((0, 7))])
def test_arrays_round_trip(array):
    decoded = decode_array(encode_array(array), "actions")
    assert decoded.dtype == array.dtype and decoded.shape == array.shape
    np.testing.assert_array_equal(decoded, array)


def jpeg() -> dict:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, format="JPEG")
    return {"__image__": True, "format": "jpeg", "data": buffer.getvalue(), "shape": [SIZE, SIZE, 3]}


def png_header(width: int, height: int) -> dict:
    """A picture of which there is nothing but its size."""
    data = struct.pack(">8sI4sIIBBBBBI", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", width, height, 8, 2, 0, 0, 0, 0)
    return {"__image__": True, "format": "png", "data": data, "shape": [height, width, 3]}


def two_headers(width: int, height: int) -> dict:
    """A picture that says another size after the one that is looked at first."""
    entry = png(PICTURE)
    second = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(second) - 4) + second + struct.pack(">I", zlib.crc32(second))
    end = len(png_header(0, 0)["data"])  # of the signature and the first header
    return {**entry, "data": entry["data"][:end] + chunk + entry["data"][end:]}


def damaged() -> dict:
    entry = png(PICTURE)
    return {**entry, "data": entry["data"][:60]}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (png(PICTURE[:, :12]), r"'agentview' is uint8 \[16, 12, 3\], expected uint8 \[16, 16, 3\]; render that size"),
        (png(PICTURE[..., 0]), r"is uint8 \[16, 16\], expected uint8 \[16, 16, 3\]"),
        (encode_array(PICTURE / 255), r"is float64 \[16, 16, 3\], expected uint8"),
        (jpeg(), "came as 'jpeg'; expected 'png' or 'raw', because the policy puts pictures through its own JPEG"),
        ({**png(PICTURE), "format": None}, "came as None; expected 'png' or 'raw'"),
        (damaged(), "'agentview' does not decode as PNG"),
        ({**jpeg(), "format": "png"}, "does not decode as PNG"),
        ({"format": "png"}, "does not decode as PNG: 'data'"),
        ({"pixels": 3}, r"is a dict with keys \['pixels'\]; expected an encoded picture"),
        ({**RAW, "shape": [4]}, "agentview does not decode to an array: cannot reshape"),
        (png_header(13_000, 13_000), r"'agentview' is uint8 \[13000, 13000, 3\], expected uint8 \[16, 16, 3\]"),
        (png_header(2**31, 2**31), r"'agentview' is uint8 \[2147483648, 2147483648, 3\], expected uint8"),
        (two_headers(9_000, 9_000), "'agentview' does not decode as PNG: its header comes twice, .* 9000×9000 pixels"),
        (two_headers(60_000, 60_000), "'agentview' does not decode as PNG: Image size .* exceeds limit"),
        ({**png(PICTURE), "data": "text"}, "does not decode as PNG"),
        ({**png(PICTURE), "data": [1]}, "does not decode as PNG"),
    ],
)
def test_wrong_pictures_are_named(entry, said):
    payload = observation()
    payload["images"]["agentview"] = entry
    with pytest.raises(MessageError, match=said):
        READER.read(payload)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("images", None, r"observation has no 'images'; it has \['states', 'task_description'\]"),
        ("images", {"agentview": png(PICTURE)}, r"observation.images has no 'wrist'; it has \['agentview'\]"),
        ("images", [1], "observation.images is of type list, expected dict"),
        ("images", {"agentview": 1, "wrist": 2}, "observation.images.agentview is of type int, expected dict"),
        ("states", None, "observation has no 'states'"),
        ("states", encode_array(np.zeros(7)), r"states are float64 \[7\]: .*; expected \[8\] finite floats"),
        ("states", encode_array(np.full(8, np.nan)), r"states are float64 \[8\]: \[nan"),
        ("states", encode_array(np.zeros(8, dtype=int)), "states are int64"),
        ("states", {"x": 1}, r"states is a dict with keys \['x'\]; expected an encoded array"),
        ("states", {**encode_array(np.zeros(8)), "dtype": "O"}, "states does not decode to an array: dtype object"),
        ("states", {"__ndarray__": True}, "states does not decode to an array: 'dtype'"),
        ("task_description", None, "observation has no 'task_description'"),
        ("task_description", 7, "observation.task_description is of type int, expected str"),
        ("task_description", " \t", r"observation.task_description is ' \\t'; expected the instruction in words"),
        ("task_description", True, "observation.task_description is of type bool, expected str"),
        ("images", {b"agentview": 1, 3: 4}, "observation.images has no 'agentview'; it has "),
        ("states", {"x": 1, b"y": 2}, "states is a dict with keys .*y.*x.*; expected an encoded array"),
        *(
            ("states", {**encode_array(np.zeros(8)), "dtype": dtype}, "states does not decode to an array: dtype")
            for dtype in (
                "(",
                ",f8",
                "V8",
                "M8[s]",
                "S8",
                "c16",
                "f8,f8",
                "(8,)f8",
                "f16",
                None,
                3,
                ["f8"],
                {"a": 1},
                "f8" * 9**6,
            )
        ),
        *(
            ("states", {**encode_array(np.zeros(8)), "shape": shape}, "states does not decode to an array")
            for shape in ([2**70], [-1], [True, 8], ["8"], [[8]], 8, None, {"a": 1}, [1] * 40 + [8], [0, 8])
        ),
        ("states", {**encode_array(np.zeros(8)), "data": "text"}, "states does not decode to an array"),
    ],
)
def test_wrong_observations_are_named(part, value, said):
    payload = observation()
    if value is None:
        del payload[part]
    else:
        payload[part] = value
    with pytest.raises(MessageError, match=said):
        READER.read(payload)


def test_a_view_that_the_harness_lacks():
    with pytest.raises(
        ValueError, match=r"views \['left'\] have no camera in the harness; it offers \['image', 'wrist"
    ):
        ObservationReader(views=("image", "left"), image_size=SIZE, proprio_dim=8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("hello", "the message is of type str, expected a map with"),
        ({"type": "hello"}, r"the message has no 'payload'; it has \['type'\]"),
        (message("hello", seq="1"), "the message.seq is of type str, expected int"),
        (message("action"), "message type 'action' is unknown; expected one of"),
    ],
)
def test_wrong_messages_are_named(wrong, said):
    with pytest.raises(MessageError, match=said):
        read_message(wrong)


def test_a_message_is_type_payload_and_sequence_number():
    assert read_message(message("episode_end", {"steps": 3}, seq=9)) == ("episode_end", {"steps": 3}, 9)


def test_the_task_of_an_episode():
    assert read_task({"task": TASK}) == {"name": "reach", "task_id": 3, "episode_idx": 5}
    with pytest.raises(MessageError, match="episode_start has no 'task'"):
        read_task({})
    with pytest.raises(MessageError, match=r"episode_start.task has no 'episode_idx'; it has \['name', 'task_id'\]"):
        read_task({"task": {"name": "reach", "task_id": 3}})


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (
            {"harness_version": "1.0.0", "protocol_version": 2},
            "harness 1.0.0 speaks protocol 2, this server 1; use vla-",
        ),
        ({}, "harness of unknown version speaks protocol None"),
    ],
)
def test_another_version_of_the_protocol(payload, said):
    with pytest.raises(ProtocolVersionError, match=said) as raised:
        check_hello(payload)
    assert len(str(raised.value).encode()) <= 123  # what fits into the close frame of a websocket


def test_this_version_of_the_protocol():
    check_hello(HELLO["payload"])
