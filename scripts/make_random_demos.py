"""An RLDS set with made-up pictures and motions in LIBERO's features, to try commands without a download:

python scripts/make_random_demos.py --out outputs/data/libero_spatial_no_noops/1.0.0

Shapes, sizes and speed are those of real sets; nothing can be learned from it, and its file paths say so.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.data.made_up import demonstration, write_dataset  # noqa: E402
from rsd.options import Options, held, new_folder, reported  # noqa: E402
from rsd.settings import Range, Seed  # noqa: E402

Number = Annotated[int, Range(1, 100_000)]


@reported
def main() -> None:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, required=True, help="folder to make: <data.root>/<name>/<version>")
    parser.add_argument("--episodes", type=held(Number), default=8)
    parser.add_argument("--steps", type=held(Number), default=50, help="of an episode")
    parser.add_argument("--seed", type=held(Seed), default=0)
    options = parser.parse_args()
    write_dataset(options.out, [options.steps] * options.episodes, partial(demonstration, seed=options.seed))
    print(f"{options.out}: {options.episodes} made-up episodes of {options.steps} steps")


if __name__ == "__main__":
    main()
