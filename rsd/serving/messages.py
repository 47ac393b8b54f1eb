"""What vla-evaluation-harness's messages say, protocol version 1, as plain dicts; bytes and sockets are elsewhere.

What surprises:
* Its LIBERO benchmark has rotated the pictures by 180 degrees already, as `Observation` wants them: nothing turns here.
* Left alone, that benchmark sends no wrist picture and no state, flips quaternions to w >= 0 before making axis-angles
  of them, and seeds the fixtures differently. `observation_params` of the server's hello tell it otherwise.
* Arrays and pictures are dicts with a marker; pictures are PNG unless the client chose otherwise. JPEG is refused: the
  policy does its own JPEG round trip, and a second one would be a picture that it has never seen.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rsd.errors import RSDError, SettingError
from rsd.settings import Count, Width, checked
from rsd.types import Observation

PROTOCOL_VERSION = 1
MESSAGE_TYPES = ("hello", "episode_start", "observation", "episode_end", "error")  # that a client may send
CAMERAS = {"image": "agentview", "wrist_image": "wrist"}  # RLDS name → the harness's
ACTION_SPEC = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1, 1]},
}
IMAGE_SPEC = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
STATE_SPEC = {"name": "state", "dims": 8, "format": "eef_pos3_axisangle3_gripper2"}
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

    Raises:
        SettingError: a view has no camera in the harness.
    """

    views: Sequence[str]
    image_size: Width
    proprio_dim: Count

    def __post_init__(self) -> None:
        unknown = [view for view in self.views if view not in CAMERAS]
        if unknown:
            raise SettingError(f"views {unknown} have no camera in the harness; it offers {list(CAMERAS)}")

    def read(self, payload: dict[str, Any]) -> Observation:
        """The observation in this project's terms.

        Raises:
            MessageError: a part is missing, or has another shape, type or encoding.
        """
        images = _part(payload, "images", dict, "observation")
        found = {CAMERAS[view]: _part(images, CAMERAS[view], dict, "observation.images") for view in self.views}
        size = (self.image_size, self.image_size, 3)
        proprio = decode_array(_part(payload, "states", dict, "observation"), "states")
        if proprio.shape != (self.proprio_dim,) or proprio.dtype.kind != "f" or not np.isfinite(proprio).all():
            raise MessageError(
                f"states are {proprio.dtype} {list(proprio.shape)}: {proprio}; expected [{self.proprio_dim}] finite "
                "floats: end-effector position, axis-angle, two gripper joints"
            )
        return Observation(
            images={view: decode_image(found[CAMERAS[view]], CAMERAS[view], size) for view in self.views},
            proprio=proprio.astype(np.float64),
            instruction=_part(payload, "task_description", str, "observation"),
        )

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
    kind, payload, seq = (_part(message, name, kinds[name], "the message") for name in kinds)
    if kind not in MESSAGE_TYPES:
        raise MessageError(f"message type {kind!r} is unknown; expected one of {list(MESSAGE_TYPES)}")
    return kind, payload, seq


def read_task(payload: dict[str, Any]) -> dict[str, Any]:
    """The task of an episode_start: name, task_id and episode_idx, which is the init state in LIBERO.

    Raises:
        MessageError: one of them is missing or of another type.
    """
    task = _part(payload, "task", dict, "episode_start")
    kinds = {"name": str, "task_id": int, "episode_idx": int}
    return {name: _part(task, name, kind, "episode_start.task") for name, kind in kinds.items()}


def check_hello(payload: dict[str, Any]) -> None:
    """Hold a client's hello against the version of the protocol that is spoken here.

    Raises:
        ProtocolVersionError: it is another one.
    """
    version = payload.get("protocol_version")
    if version != PROTOCOL_VERSION:
        harness = payload.get("harness_version", "of unknown version")
        raise ProtocolVersionError(
            f"harness {harness} speaks protocol {version}, this server {PROTOCOL_VERSION}; use vla-eval 0.8"
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
        raise MessageError(f"{name} is a dict with keys {sorted(entry)}; expected an encoded array (__ndarray__)")
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
        picture = _from_png(entry, name)
    elif "__image__" in entry:
        raise MessageError(
            f"picture {name!r} came as {entry.get('format')!r}; expected 'png' or 'raw', because the policy puts "
            "pictures through its own JPEG round trip; leave the client's image format at its default"
        )
    else:
        raise MessageError(f"picture {name!r} is a dict with keys {sorted(entry)}; expected an encoded picture")
    if picture.shape != size or picture.dtype != np.uint8:
        raise MessageError(
            f"picture {name!r} is {picture.dtype} {list(picture.shape)}, expected uint8 {list(size)}; "
            "render that size, or set reader.image_size if the policy was trained on another"
        )
    return picture


def _part(parent: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if name not in parent:
        raise MessageError(f"{where} has no {name!r}; it has {sorted(parent)}")
    if not isinstance(parent[name], kind):
        raise MessageError(f"{where}.{name} is of type {type(parent[name]).__name__}, expected {kind.__name__}")
    return parent[name]


def _from_bytes(entry: dict[str, Any], name: str) -> np.ndarray:
    try:
        dtype = np.dtype(entry["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"dtype {dtype} is not a number's")
        return np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"{name} does not decode to an array: {error}") from error


def _from_png(entry: dict[str, Any], name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(entry["data"]), formats=["PNG"]) as image:
            return np.asarray(image)
    except (KeyError, TypeError, OSError, ValueError, SyntaxError) as error:  # PIL: SyntaxError for damaged chunks
        raise MessageError(f"picture {name!r} does not decode as PNG: {error}") from error
