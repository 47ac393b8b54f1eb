"""One demonstration as the features of a LIBERO record, checked before anything is written.

What surprises first: the published sets carry rewards and flags that say nothing new; they follow from the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg

from rsd.data import DataError
from rsd.data.libero_features import ACTION_DIM, IMAGE_SHAPE, JOINT_DIM, STATE_DIM
from rsd.data.trajectories import check_finite
from rsd.jpeg import encode_jpeg

FILE_PATH = "episode_metadata/file_path"


def episode_features(steps: dict[str, Any], file_path: str) -> dict[str, np.ndarray | list[bytes]]:
    """The record's features by flat name, checked; rewards and flags of a demonstration added.

    Args:
        steps: As `RLDSWriter.write_episode` takes them.
        file_path: Names the episode.

    Raises:
        DataError: a feature has another shape or is not finite; the message names episode and feature.
    """
    observation = steps["observation"]
    num_steps = len(steps["action"])
    if num_steps == 0:
        raise DataError(f"episode {file_path!r} has no steps; expected at least one")
    first, last = np.arange(num_steps) == 0, np.arange(num_steps) == num_steps - 1
    return {
        FILE_PATH: [file_path.encode()],
        "steps/action": _vectors("action", steps["action"], (num_steps, ACTION_DIM), file_path),
        "steps/discount": np.ones(num_steps, dtype=np.float32),
        "steps/is_first": first,
        "steps/is_last": last,
        "steps/is_terminal": last,
        "steps/language_instruction": [steps["language_instruction"].encode()] * num_steps,
        "steps/observation/image": _pictures("image", observation["image"], num_steps, file_path),
        "steps/observation/joint_state": _vectors(
            "observation/joint_state", observation["joint_state"], (num_steps, JOINT_DIM), file_path
        ),
        "steps/observation/state": _vectors(
            "observation/state", observation["state"], (num_steps, STATE_DIM), file_path
        ),
        "steps/observation/wrist_image": _pictures("wrist_image", observation["wrist_image"], num_steps, file_path),
        "steps/reward": last.astype(np.float32),
    }


def _vectors(name: str, values: Any, shape: tuple[int, int], file_path: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float32)
    if array.shape != shape:
        raise DataError(f"episode {file_path!r}: feature {name}: expected shape {list(shape)}, got {list(array.shape)}")
    check_finite(array, name, f"episode {file_path!r}")
    return array


def _pictures(name: str, pictures: Sequence[Any], num_steps: int, file_path: str) -> list[bytes]:
    if len(pictures) != num_steps:
        raise DataError(
            f"episode {file_path!r}: feature observation/{name}: expected {num_steps} pictures, one for each action, "
            f"got {len(pictures)}"
        )
    return [_jpeg(name, picture, step, file_path) for step, picture in enumerate(pictures)]


def _jpeg(name: str, picture: bytes | np.ndarray, step: int, file_path: str) -> bytes:
    if isinstance(picture, bytes):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(picture)
        except ValueError as error:
            raise DataError(f"episode {file_path!r}: observation/{name} at step {step} is no JPEG: {error}") from error
        got, dtype = (height, width, 3), "uint8"
    else:
        got, dtype = np.shape(picture), str(np.asarray(picture).dtype)
    if got != IMAGE_SHAPE or dtype != "uint8":
        raise DataError(
            f"episode {file_path!r}: feature observation/{name} at step {step}: expected {list(IMAGE_SHAPE)} uint8, "
            f"got {list(got)} {dtype}"
        )
    return picture if isinstance(picture, bytes) else encode_jpeg(picture)
