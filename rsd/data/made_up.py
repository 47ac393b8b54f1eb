"""Demonstrations in LIBERO's features with made-up pictures and motions, to try commands and measure speed.

Shapes, sizes and speed are those of real sets; nothing can be learned from them, and their file paths say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsd.data.libero_features import ACTION_DIM, IMAGE_SHAPE, JOINT_DIM, STATE_DIM

COARSE = 16  # pixels of the noise that is enlarged to a picture: smooth, as camera pictures are
INSTRUCTIONS = ("pick up the black bowl and place it on the plate", "open the drawer")


def picture(random: np.random.Generator) -> np.ndarray:
    """Smooth colours, [256, 256, 3], uint8."""
    noise = Image.fromarray(random.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8))
    return np.asarray(noise.resize(IMAGE_SHAPE[:2], Image.Resampling.BICUBIC))


def demonstration(
    number: int,
    num_steps: int,
    *,
    seed: int = 0,
    picture: Callable[[np.random.Generator], np.ndarray | bytes] = picture,
) -> dict[str, Any]:
    """Episode `number` for RLDSWriter: a smooth random motion whose gripper closes half-way.

    Args:
        picture: Draws one picture, [256, 256, 3] uint8 or JPEG bytes.
    """
    random = np.random.default_rng((seed, number))
    waves = np.sin(np.arange(num_steps)[:, None] / random.uniform(3, 12, ACTION_DIM) + random.uniform(0, 6, ACTION_DIM))
    actions = (random.uniform(0.2, 0.9, ACTION_DIM) * waves).astype(np.float32)  # [n, 7]
    actions[:, -1] = np.where(np.arange(num_steps) < num_steps // 2, -1, 1)
    walk = np.cumsum(0.01 * random.normal(size=(num_steps, STATE_DIM + JOINT_DIM)), axis=0).astype(np.float32)
    return {
        "steps": {
            "observation": {
                "image": [picture(random) for _ in range(num_steps)],
                "wrist_image": [picture(random) for _ in range(num_steps)],
                "state": walk[:, :STATE_DIM],
                "joint_state": walk[:, STATE_DIM:],
            },
            "action": actions,
            "language_instruction": INSTRUCTIONS[number % len(INSTRUCTIONS)],
        },
        "episode_metadata": {"file_path": f"made_up/shape_only/demo_{number}"},
    }


def write_dataset(
    directory: Path, lengths: Sequence[int], make: Callable[[int, int], dict[str, Any]] = demonstration
) -> None:
    """Write episodes of these lengths to <root>/<name>/<version>, or those that are not there yet.

    Args:
        make: Called as make(number, num_steps); see `demonstration`.

    Raises:
        DataError: the directory holds something else.
    """
    from rsd.data.rlds_writer import RLDSWriter  # here, because pictures are made where protobuf is not installed

    with RLDSWriter(directory, directory.parent.name, directory.name) as writer:
        for number in range(len(writer), len(lengths)):
            writer.write_episode(make(number, lengths[number]))
        writer.finish()
