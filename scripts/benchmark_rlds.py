"""How fast the RLDS reader is: steps/s of actions alone, decoded frames/s, peak memory; one process.

    python scripts/benchmark_rlds.py --dataset outputs/data/libero_spatial_no_noops/1.0.0
    python scripts/benchmark_rlds.py        # writes a data set with pictures of about real size to a temporary folder

Files are read once before the clock starts: the numbers are those of a warm page cache. Every checksum is checked.
What surprises first: each row runs in a fresh process, because a process's peak memory never goes down. On a machine
that does other things too, the rate per CPU second is the one to compare.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from rsd.data.libero_features import IMAGE_SHAPE
from rsd.data.rlds_reader import RLDSDataset
from rsd.options import Options, any_path, held, reported
from rsd.settings import Range

MADE_UP = "libero_made_up_no_noops"
VIEWS = ("image", "wrist_image")
Number = Annotated[int, Range(1, 100_000)]
Seconds = Annotated[float, Range(0, 3600, above=True)]
GRAIN = 4.0  # standard deviation of the noise on each pixel, of 255 levels


def peak_mb() -> float:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(directory: Path, what: str, seconds: float) -> dict[str, float]:
    """Read the whole data set again and again for some seconds; runs in a process of its own.

    Args:
        what: "open" (metadata only), "actions", or "frames" (all pictures of both views, decoded).
    """
    dataset = RLDSDataset(directory)
    start_mb = peak_mb()
    count, elapsed = 0, 0.0
    if what == "frames":
        from rsd.jpeg import decode_jpeg

        start_mb = peak_mb()
    start, start_cpu = time.perf_counter(), time.process_time()
    while what != "open" and elapsed < seconds:
        for index in range(len(dataset)):
            episode = dataset.episode(index, images=what == "frames")
            if what == "frames":
                for view in VIEWS:
                    for data in episode[f"observation/{view}"]:
                        decode_jpeg(data)
                        count += 1
            else:
                count += len(episode["action"])
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                break
    cpu = time.process_time() - start_cpu
    return {
        "rate": count / elapsed if elapsed else 0.0,
        "cpu_rate": count / cpu if elapsed else 0.0,
        "start_mb": start_mb,
        "peak_mb": peak_mb(),
    }


def describe(directory: Path) -> dict[str, Any]:
    """Sizes of the data set, and its first touch, which fills the page cache."""
    dataset = RLDSDataset(directory)
    steps = sum(len(episode["action"]) for episode in dataset.episodes())
    pictures = [len(data) for view in VIEWS for data in dataset.episode(0, images=True)[f"observation/{view}"]]
    size = sum(path.stat().st_size for path in directory.glob("*.tfrecord*"))
    return {"name": dataset.name, "episodes": len(dataset), "steps": steps, "MB": size / 1e6, "jpeg": np.mean(pictures)}


def write_made_up(directory: Path, num_episodes: int, num_steps: int) -> None:
    """A made-up data set; its few pictures come again and again, and have enough grain for files of LIBERO's size."""
    from rsd.data.made_up import demonstration, picture, write_dataset
    from rsd.jpeg import encode_jpeg

    def grained(random: np.random.Generator) -> bytes:
        return encode_jpeg((picture(random) + random.normal(0, GRAIN, IMAGE_SHAPE)).clip(0, 255).astype(np.uint8))

    rng = np.random.default_rng(0)
    jpegs = [grained(rng) for _ in range(32)]
    again = partial(demonstration, picture=lambda random: jpegs[random.integers(len(jpegs))])
    write_dataset(directory, [num_steps] * num_episodes, again)


def run(directory: Path, seconds: float) -> None:
    """Print the table."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        print(json.dumps(pool.submit(describe, directory).result(), default=float))
        rows = {what: pool.submit(measure, directory, what, seconds).result() for what in ("open", "actions", "frames")}
    print(f"{'':24}{'per second':>12}{'per CPU second':>16}{'peak RSS MB':>14}{'of it imports':>16}")
    labels = {"open": "open (metadata)", "actions": "steps, actions only", "frames": "frames, decoded"}
    for what, row in rows.items():
        print(
            f"{labels[what]:24}{row['rate']:12.0f}{row['cpu_rate']:16.0f}{row['peak_mb']:14.0f}{row['start_mb']:16.0f}"
        )


@reported
def main() -> None:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=any_path, help="an RLDS directory <name>/<version>; default: make one up")
    parser.add_argument("--seconds", type=held(Seconds), default=5.0, help="how long each row is measured")
    parser.add_argument("--episodes", type=held(Number), default=50, help="of the made-up data set")
    parser.add_argument("--steps", type=held(Number), default=120, help="of each made-up episode")
    args = parser.parse_args()
    if args.dataset is not None:
        run(args.dataset, args.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / MADE_UP / "1.0.0"
        print("made-up data set (blurred noise, not LIBERO), page cache warm", file=sys.stdout)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(write_made_up, directory, args.episodes, args.steps).result()
        run(directory, args.seconds)


if __name__ == "__main__":
    main()
