"""A checkpoint folder with the published names and shapes and random weights, to try commands without a download:

python scripts/make_random_checkpoint.py --out outputs/checkpoints/openvla/openvla-7b-oft-finetuned-libero-spatial
python train.py phase=draft model=oft_spatial device=cuda

7B takes 15 GB of disk and, with --device cuda, about as long as writing it. Its actions mean nothing.
"""

from __future__ import annotations

import argparse
import time
from typing import Annotated

from rsd.data.datasets import Demonstrations
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from rsd.options import Options, any_path, held, new_folder, reported
from rsd.settings import Device, Range, Seed, require_device

GIGABYTE = 10**9
ShardSize = Annotated[float, Range(0.001, 1000)]  # gigabytes
KINDS = {"oft": ("l1", 8), "oft_diffusion": ("diffusion", 8), "openvla": ("autoregressive", None)}


@reported
def main() -> None:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, required=True, help="folder to make")
    parser.add_argument("--kind", choices=sorted(KINDS), default="oft", help="which heads and inputs")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--seed", type=held(Seed), default=0)
    parser.add_argument("--device", type=held(Device), default="cpu", help="where the numbers are drawn: cpu, cuda")
    parser.add_argument("--shard-gb", type=held(ShardSize), default=5.0, help="largest shard, 10^9 bytes")
    parser.add_argument(
        "--data", type=any_path, help="RLDS data set, <root>/<name>/<version>, whose statistics it gets"
    )
    options = parser.parse_args()
    action_head, proprio_dim = KINDS[options.kind]
    started = time.monotonic()
    require_device(options.device)
    write_random_checkpoint(
        options.out,
        architecture=openvla_architecture(action_head=action_head, proprio_dim=proprio_dim, size=options.size),
        seed=options.seed,
        device=options.device,
        shard_bytes=int(options.shard_gb * GIGABYTE),
        entry=None if options.data is None else Demonstrations(options.data).norm_stats,
    )
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / GIGABYTE:.2f} GB of random weights in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
