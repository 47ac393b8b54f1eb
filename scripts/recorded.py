"""Observations of closed loops that were written down: what policies are timed with and held to without a simulator.

`released_policy.npz` has some of each suite, `episodes.npz` all that `l1` was shown in three episodes of
libero_spatial, in order. Pictures are JPEG; what they decode to counts as the camera's picture.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from rsd.errors import SettingError
from rsd.jpeg import decode_jpeg, encode_jpeg
from rsd.types import Observation

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
FIXTURE, EPISODES = GOLDEN / "released_policy.npz", GOLDEN / "episodes.npz"
VIEWS = ("image", "wrist_image")
SEED = 7
LENGTHS = "lengths"  # observations of each episode


def stored(observation: Observation) -> dict[str, Any]:
    """An observation as plain data; its pictures as JPEG."""
    return {
        **{view: np.frombuffer(encode_jpeg(observation.images[view]), dtype=np.uint8) for view in VIEWS},
        "proprio": observation.proprio,
        "instruction": observation.instruction,
    }


def restored(record: dict[str, Any]) -> Observation:
    """The observation that the fixture means: its decoded JPEGs are the camera's pictures."""
    images = {view: decode_jpeg(record[view].tobytes()) for view in VIEWS}
    return Observation(images=images, proprio=record["proprio"], instruction=str(record["instruction"]))


def numbered(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Stored observations as arrays of a fixture."""
    return {
        f"observation.{number}.{name}": value
        for number, record in enumerate(records)
        for name, value in record.items()
    }  # fmt: skip


def recorded_observations(path: Path = FIXTURE) -> list[Observation]:
    """All observations of a recorded fixture."""
    with np.load(path) as arrays:
        count = sum(name.endswith(".proprio") for name in arrays.files)
        return [
            restored({name: arrays[f"observation.{number}.{name}"] for name in (*VIEWS, "proprio", "instruction")})
            for number in range(count)
        ]


def recorded_episodes(path: Path = EPISODES) -> list[list[Observation]]:
    """Observations of each recorded episode, one a chunk.

    Raises:
        SettingError: the file is none of those.
    """
    try:
        with np.load(path) as arrays:
            lengths = arrays[LENGTHS].tolist()
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SettingError(f"{path} holds no recorded episodes; name a file of record_policy.py --episodes") from error
    seen = iter(recorded_observations(path))
    return [[next(seen) for _ in range(length)] for length in lengths]
