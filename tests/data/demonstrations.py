"""Small demonstrations of the LIBERO kind: made-up ones under names of their own."""

from pathlib import Path
from typing import Any

import numpy as np

from rsd.data import made_up

NAME = "libero_toy_no_noops"


def demonstration(number: int, num_steps: int) -> dict[str, Any]:
    """Episode `number`, whose instruction and file path say which it is; its actions are noise, so alike in all."""
    episode = made_up.demonstration(number, num_steps)
    steps = episode["steps"]
    steps["language_instruction"] = f"put toy {number} away"
    steps["action"] = np.random.default_rng((0, number)).uniform(-1, 1, (num_steps, 7)).astype(np.float32)
    steps["action"][:, -1] = np.where(steps["action"][:, -1] > 0, 1, -1)
    episode["episode_metadata"]["file_path"] = f"toy/demo_{number}"
    return episode


def write_dataset(root: Path, lengths: list[int]) -> Path:
    """A finished data set with episodes of these lengths; returns its directory."""
    directory = root / NAME / "1.0.0"
    made_up.write_dataset(directory, lengths, demonstration)
    return directory
