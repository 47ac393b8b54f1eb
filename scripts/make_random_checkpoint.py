"""A checkpoint folder with the published names and shapes and random weights, to try commands without a download:

python scripts/make_random_checkpoint.py --out outputs/checkpoints/openvla/openvla-7b-oft-finetuned-libero-spatial
python train.py phase=draft model=oft_spatial device=cuda

7B takes 15 GB of disk and, with --device cuda, about as long as writing it. Its actions mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rsd.data.datasets import Demonstrations
from rsd.errors import RSDError
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint

GIGABYTE = 10**9
KINDS = {"oft": ("l1", 8), "oft_diffusion": ("diffusion", 8), "openvla": ("autoregressive", None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--kind", choices=sorted(KINDS), default="oft", help="which heads and inputs")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the numbers are drawn: cpu, cuda")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest shard, 10^9 bytes")
    parser.add_argument("--data", type=Path, help="RLDS data set, <root>/<name>/<version>, whose statistics it gets")
    options = parser.parse_args()
    action_head, proprio_dim = KINDS[options.kind]
    started = time.monotonic()
    try:
        write_random_checkpoint(
            options.out,
            architecture=openvla_architecture(action_head=action_head, proprio_dim=proprio_dim, size=options.size),
            seed=options.seed,
            device=options.device,
            shard_bytes=int(options.shard_gb * GIGABYTE),
            entry=None if options.data is None else Demonstrations(options.data).norm_stats,
        )
    except (RSDError, OSError) as error:
        sys.exit(f"error: {error}")
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / GIGABYTE:.2f} GB of random weights in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
