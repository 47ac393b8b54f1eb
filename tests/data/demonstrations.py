"""Small demonstrations of the LIBERO kind, made up but whole: what the writer takes, with real JPEG pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from rsd.data.rlds import RLDSWriter

NAME = "libero_toy_no_noops"


def demonstration(number: int, num_steps: int, *, seed: int = 0) -> dict[str, Any]:
    """Episode `number`, with smooth pictures that differ from step to step and from view to view."""
    rng = np.random.default_rng((seed, number))
    ramp = np.add.outer(np.arange(256), np.arange(256))[None, :, :, None]
    offsets = rng.integers(0, 256, size=(2, num_steps, 1, 1, 3))
    image, wrist_image = ((ramp // 4 + offset) % 256 // 2 + 64 for offset in offsets)
    actions = rng.uniform(-1, 1, size=(num_steps, 7)).astype(np.float32)
    actions[:, -1] = np.where(actions[:, -1] > 0, 1, -1)
    return {
        "steps": {
            "observation": {
                "image": image.astype(np.uint8),
                "wrist_image": wrist_image.astype(np.uint8),
                "state": rng.normal(size=(num_steps, 8)).astype(np.float32),
                "joint_state": rng.normal(size=(num_steps, 7)).astype(np.float32),
            },
            "action": actions,
            "language_instruction": f"put toy {number} away",
        },
        "episode_metadata": {"file_path": f"toy/demo_{number}"},
    }


def write_dataset(root: Path, lengths: list[int]) -> Path:
    """A finished data set with episodes of these lengths; returns its directory."""
    directory = root / NAME / "1.0.0"
    with RLDSWriter(directory, NAME) as writer:
        for number, length in enumerate(lengths):
            writer.write_episode(demonstration(number, length))
        writer.finish()
    return directory
