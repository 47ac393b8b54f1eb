"""What vla-evaluation-harness's messages say, protocol version 1, as plain dicts; bytes and sockets are elsewhere.

What surprises:
* Its LIBERO benchmark has rotated the pictures by 180 degrees already, as `Observation` wants them: nothing turns here.
* Left alone, that benchmark sends no wrist picture and no state, flips quaternions to w >= 0 before making axis-angles
  of them, and seeds the fixtures differently. `observation_params` of the server's hello tell it otherwise.
* Arrays and pictures are dicts with a marker; pictures are PNG unless the client chose otherwise. JPEG is refused: the
  policy does its own JPEG round trip, and a second one would be a picture that it has never seen.
* Nobody says who the client is: the size of a picture is looked at before it is decoded, and what is echoed is short.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rsd.errors import RSDError, SettingError
from rsd.serving.limits import MAX_INSTRUCTION
from rsd.settings import Count, Side, checked
from rsd.types import Observation

PROTOCOL_VERSION = 1
MESSAGE_TYPES = ("hello", "episode_start", "observation", "episode_end", "error")  # that a client may send
CAMERAS = {"image": "agentview", "wrist_image": "wrist"}  # RLDS name → the harness's
MAX_AXES = 8
PNG_ERRORS = (  # PIL has them all
    *(KeyError, TypeError, OSError, ValueError, SyntaxError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
ACTION_SPEC = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1, 1]},
}
IMAGE_SPEC = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
STATE_SPEC = {"name": "state", "dims": 8, "format": "eef_pos3_axisangle3_gripper2"}
MAX_ECHO = 500  # characters of what came that an answer or the log repeats
DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])|bool|u?int(?:8|16|32|64)|float(?:16|32|64)")
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">8s4x4sIIBB")  # signature, length of the chunk, its name, width, height, depth, colour type
PNG_CHANNELS = {0: (), 2: (3,), 3: (), 4: (2,), 6: (4,)}  # colour type → a picture's further axis
LANGUAGE_SPEC = {"name": "language", "dims": 0, "format": "language"}


class MessageError(RSDError, ValueError):
    """A client's message is not what the protocol or the policy needs."""


class ProtocolVersionError(RSDError):
    """The client speaks another version of the protocol; nothing that it says can be trusted to mean the same."""


@checked
@dataclass(frozen=True)
class ObservationReader:
    """Which parts of a client's observation the policy needs, and how they must look.

    Attributes:
        views: Names of the pictures, the policy's own (`CAMERAS` has the harness's).
        image_size: Height and width of every picture, pixels.
        proprio_dim: P.
        max_instruction: Characters of an instruction.

    Raises:
        SettingError: a view has no camera in the harness.
    """

    views: Sequence[str]
    image_size: Side
    proprio_dim: Count
    max_instruction: Count = MAX_INSTRUCTION

    def __post_init__(self) -> None:
        unknown = [view for view in self.views if view not in CAMERAS]
        if unknown:
            raise SettingError(f"views {unknown} have no camera in the harness; it offers {list(CAMERAS)}")

    def read(self, payload: dict[str, Any]) -> Observation:
        """The observation in this project's terms.

        Raises:
            MessageError: a part is missing, or has another shape, type or encoding.
        """
        images = part(payload, "images", dict, "observation")
        found = {CAMERAS[view]: part(images, CAMERAS[view], dict, "observation.images") for view in self.views}
        size = (self.image_size, self.image_size, 3)
        proprio = decode_array(part(payload, "states", dict, "observation"), "states")
        if proprio.shape != (self.proprio_dim,) or proprio.dtype.kind != "f" or not np.isfinite(proprio).all():
            raise MessageError(
                f"states are {proprio.dtype} {list(proprio.shape)}: {proprio}; expected [{self.proprio_dim}] finite "
                "floats: end-effector position, axis-angle, two gripper joints"
            )
        return Observation(
            images={view: decode_image(found[CAMERAS[view]], CAMERAS[view], size) for view in self.views},
            proprio=proprio.astype(np.float64),
            instruction=self.read_instruction(payload),
        )

    def read_instruction(self, payload: dict[str, Any]) -> str:
        """The instruction of an observation.

        Raises:
            MessageError: there is none, it has no words, or it is longer than any that can be read.
        """
        instruction = part(payload, "task_description", str, "observation")
        return checked_instruction(instruction, "observation.task_description", self.max_instruction)

    def hello(self) -> dict[str, Any]:
        """What the server's hello tells the benchmark: how to observe, what is read and what is answered."""
        cameras = [CAMERAS[view] for view in self.views]
        return {
            "protocol_version": PROTOCOL_VERSION,
            "observation_params": {
                "send_wrist_image": "wrist" in cameras,
                "send_state": True,
                "quat_no_antipodal": True,
                "env_seed": 0,
            },
            "observation_spec": {
                **dict.fromkeys(cameras, IMAGE_SPEC),
                "state": {**STATE_SPEC, "dims": self.proprio_dim},
                "language": LANGUAGE_SPEC,
            },
            "action_spec": ACTION_SPEC,
        }


def read_message(message: Any) -> tuple[str, dict[str, Any], int]:
    """Type, payload and sequence number of a decoded message.

    Raises:
        MessageError: it is not made like a message, or of a type that a client does not send.
    """
    kinds = {"type": str, "payload": dict, "seq": int}
    if not isinstance(message, dict):
        raise MessageError(f"the message is of type {type(message).__name__}, expected a map with {list(kinds)}")
    kind, payload, seq = (part(message, name, kinds[name], "the message") for name in kinds)
    if kind not in MESSAGE_TYPES:
        raise MessageError(f"message type {kind!r} is unknown; expected one of {list(MESSAGE_TYPES)}")
    return kind, payload, seq


def checked_instruction(instruction: str, name: str, longest: int) -> str:
    """An instruction that a client sent under this name.

    Raises:
        MessageError: it has no words, is no text that can be written down, or is longer than so many characters.
    """
    if len(instruction) > longest:
        raise MessageError(
            f"{name} has {len(instruction)} characters, expected {longest} at most: {instruction[:60]!r} …"
        )
    if not instruction.strip():
        raise MessageError(f"{name} is {instruction!r}; expected the instruction in words")
    try:
        instruction.encode()
    except UnicodeEncodeError as error:
        raise MessageError(f"{name} has half a character (a lone surrogate) at {error.start}") from error
    return instruction


def in_short(value: Any) -> str:
    """Something as text in one line, of MAX_ECHO characters at most."""
    text = " ".join(str(value)[: 4 * MAX_ECHO].split()).encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + " …"


def read_task(payload: dict[str, Any]) -> dict[str, Any]:
    """The task of an episode_start: name, task_id and episode_idx, which is the init state in LIBERO.

    Raises:
        MessageError: one of them is missing or of another type, or a number is below 0.
    """
    task = part(payload, "task", dict, "episode_start")
    kinds = {"name": str, "task_id": int, "episode_idx": int}
    read = {name: part(task, name, kind, "episode_start.task") for name, kind in kinds.items()}
    for name in ("task_id", "episode_idx"):
        if read[name] < 0:
            raise MessageError(f"episode_start.task.{name} is {read[name]}, expected 0 or more")
    return read


def check_hello(payload: dict[str, Any]) -> None:
    """Hold a client's hello against the version of the protocol that is spoken here.

    Raises:
        ProtocolVersionError: it is another one.
    """
    version = payload.get("protocol_version")
    if version != PROTOCOL_VERSION:
        harness = in_short(payload.get("harness_version", "of unknown version"))
        raise ProtocolVersionError(
            f"harness {harness} speaks protocol {in_short(version)}, this server {PROTOCOL_VERSION}; use vla-eval 0.8"
        )


def encode_array(array: np.ndarray) -> dict[str, Any]:
    """An array as the harness's clients decode it."""
    return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}


def decode_array(entry: dict[str, Any], name: str) -> np.ndarray:
    """The array in a marked dict, read-only.

    Raises:
        MessageError: the dict is no array, its type is not a number's, or its bytes do not fill its shape.
    """
    if "__ndarray__" not in entry:
        raise MessageError(f"{name} is a dict with keys {_names(entry)}; expected an encoded array (__ndarray__)")
    return _from_bytes(entry, name)


def decode_image(entry: dict[str, Any], name: str, size: tuple[int, int, int]) -> np.ndarray:
    """The picture in a marked dict, [H, W, 3], uint8, RGB.

    A picture of which the client did not make a picture (raw transport) is an array and taken too.

    Raises:
        MessageError: the dict is no picture, is JPEG or damaged, or the picture is not of this size and type.
    """
    if "__ndarray__" in entry or entry.get("format") == "raw":
        picture = _from_bytes(entry, name)
    elif entry.get("format") == "png":
        picture = _from_png(entry, name, size)
    elif "__image__" in entry:
        raise MessageError(
            f"picture {name!r} came as {entry.get('format')!r}; expected 'png' or 'raw', because the policy puts "
            "pictures through its own JPEG round trip; leave the client's image format at its default"
        )
    else:
        raise MessageError(f"picture {name!r} is a dict with keys {_names(entry)}; expected an encoded picture")
    _check_picture(picture.shape, picture.dtype, name, size)
    return picture


def part(parent: dict[str, Any], name: str, kind: type, where: str) -> Any:
    """An entry of a map that a client sent.

    Raises:
        MessageError: it is missing, or of another type.
    """
    if name not in parent:
        raise MessageError(f"{where} has no {name!r}; it has {_names(parent)}")
    if not isinstance(parent[name], kind) or (isinstance(parent[name], bool) and kind is not bool):
        raise MessageError(f"{where}.{name} is of type {type(parent[name]).__name__}, expected {kind.__name__}")
    return parent[name]


def _names(parent: dict[Any, Any]) -> list[str]:
    return sorted(map(str, parent))  # keys of a foreign message need not be text


def _check_picture(shape: Sequence[int], dtype: Any, name: str, size: tuple[int, int, int]) -> None:
    if tuple(shape) != size or dtype != np.uint8:
        raise MessageError(
            f"picture {name!r} is {dtype} {list(shape)}, expected uint8 {list(size)}; "
            "render that size, or set reader.image_size if the policy was trained on another"
        )


def _from_bytes(entry: dict[str, Any], name: str) -> np.ndarray:
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        if not isinstance(dtype, str) or DTYPE.fullmatch(dtype) is None:
            named = "object" if dtype == "O" else in_short(repr(dtype))
            raise ValueError(f"dtype {named} is not a number's")
        flat = np.frombuffer(entry["data"], dtype=dtype)
        if not isinstance(shape, list | tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape is {in_short(repr(shape))}, expected a list of numbers, 0 or more")
        if math.prod(shape) != flat.size or len(shape) > MAX_AXES:
            raise ValueError(f"cannot reshape array of size {flat.size} into shape {in_short(shape)}")
        return flat.reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"{name} does not decode to an array: {error}") from error


def _from_png(entry: dict[str, Any], name: str, size: tuple[int, int, int]) -> np.ndarray:
    try:
        start, chunk, width, height, depth, colour = PNG_HEADER.unpack_from(entry["data"])
        if start != PNG_START or chunk != b"IHDR" or colour not in PNG_CHANNELS:
            raise ValueError("it does not begin as a PNG picture does")
        shape = (height, width, *PNG_CHANNELS[colour])
        _check_picture(shape, np.dtype(f"uint{max(8, depth)}"), name, size)  # before its pixels are made
        with Image.open(io.BytesIO(entry["data"]), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise ValueError(f"its header comes twice, the second time with {image.width}×{image.height} pixels")
            return np.asarray(image)
    except MessageError:
        raise
    except PNG_ERRORS as error:
        raise MessageError(f"picture {name!r} does not decode as PNG: {error}") from error
