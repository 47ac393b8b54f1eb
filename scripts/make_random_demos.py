"""An RLDS set with made-up pictures and motions in LIBERO's features, to try commands without a download:

python scripts/make_random_demos.py --out outputs/data/libero_spatial_no_noops/1.0.0

Shapes, sizes and speed are those of real sets; nothing can be learned from it, and its file paths say so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.data import DataError  # noqa: E402
from rsd.data.rlds import RLDSWriter  # noqa: E402
from rsd.images import CAMERA_SIZE  # noqa: E402

COARSE = 16  # pixels of the noise that is enlarged to a picture: smooth, as camera pictures are
INSTRUCTIONS = ("pick up the black bowl and place it on the plate", "open the drawer")


def picture(random: np.random.Generator) -> np.ndarray:
    """Smooth colours, [256, 256, 3], uint8."""
    noise = Image.fromarray(random.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8))
    return np.asarray(noise.resize((CAMERA_SIZE, CAMERA_SIZE), Image.Resampling.BICUBIC))


def episode(number: int, num_steps: int, seed: int) -> dict[str, Any]:
    """Episode `number` for RLDSWriter: a smooth random motion whose gripper closes half-way."""
    random = np.random.default_rng((seed, number))
    waves = np.sin(np.arange(num_steps)[:, None] / random.uniform(3, 12, 7) + random.uniform(0, 6, 7))
    actions = (random.uniform(0.2, 0.9, 7) * waves).astype(np.float32)
    actions[:, -1] = np.where(np.arange(num_steps) < num_steps // 2, -1, 1)
    states = np.cumsum(0.01 * random.normal(size=(num_steps, 15)), axis=0).astype(np.float32)
    return {
        "steps": {
            "observation": {
                "image": np.stack([picture(random) for _ in range(num_steps)]),
                "wrist_image": np.stack([picture(random) for _ in range(num_steps)]),
                "state": states[:, :8],
                "joint_state": states[:, 8:],
            },
            "action": actions,
            "language_instruction": INSTRUCTIONS[number % len(INSTRUCTIONS)],
        },
        "episode_metadata": {"file_path": f"made_up/shape_only/demo_{number}"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make: <data.root>/<name>/<version>")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="of an episode")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        with RLDSWriter(options.out, options.out.parent.name, options.out.name) as writer:
            for number in range(len(writer), options.episodes):
                writer.write_episode(episode(number, options.steps, options.seed))
            writer.finish()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.out}: {options.episodes} made-up episodes of {options.steps} steps")


if __name__ == "__main__":
    main()
