"""Milliseconds that a chunk takes with each decoding of a policy folder, in turn, and ratios to the first one.

    python -m scripts.benchmark_decodings l1 depth_ar speculative exit early_exit      # of released/; two minutes

Every decoding sees one observation before any sees the next one, in an order drawn anew each time: a slow moment
strikes them alike, and none always finds the caches that another has filled. Ratios are taken on the same observation.
What surprises first: the recorded observations are no sample of closed loops. A gate that opens here on most of them
may open there on half.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rsd
from rsd.files import write_atomically
from rsd.options import Options, any_path, held, new_file, reported
from rsd.progress import track
from rsd.queue import chunk_seed
from rsd.settings import Count, Device, Processes, require_device
from rsd.types import Chunk, Policy, Request
from scripts.record_policy import SEED, recorded_observations

ROOT = Path(__file__).parents[1]
WARMUP = 5  # chunks of each decoding before those that count
RESAMPLES, LEVEL = 2000, 95  # bootstrap of a median's interval, per cent


def interval(ratios: np.ndarray) -> list[float]:
    """Bootstrap percentile interval of the median of [n] ratios."""
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    return [float(value) for value in np.percentile(np.median(drawn, axis=1), [50 - LEVEL / 2, 50 + LEVEL / 2])]


def in_turn(policies: Mapping[str, Policy], chunks: int) -> dict[str, list[tuple[float, Chunk]]]:
    """Name → milliseconds and result of each chunk after the warm-up; see the head of this file."""
    observations = recorded_observations()
    random = np.random.default_rng(0)
    found: dict[str, list[tuple[float, Chunk]]] = {name: [] for name in policies}
    with track("chunks of each", total=WARMUP + chunks, done=0, report=print) as advance:
        for number in range(WARMUP + chunks):
            request = Request(observations[number % len(observations)], chunk_seed(SEED, number))
            for name in random.permutation(list(policies)).tolist():
                start = time.perf_counter()
                (chunk,) = policies[name].predict([request])
                found[name].append((1000 * (time.perf_counter() - start), chunk))
            advance(1)
    return {name: made[WARMUP:] for name, made in found.items()}


def times(made: Mapping[str, Sequence[tuple[float, Chunk]]], first: str) -> dict[str, dict[str, Any]]:
    """Name → "median_ms", and "ratio" to the first one with "interval"."""
    wall = {name: np.array([ms for ms, _ in one]) for name, one in made.items()}
    ratios = {name: values / wall[first] for name, values in wall.items()}
    return {
        name: {
            "median_ms": float(np.median(values)),
            "ratio": float(np.median(ratios[name])),
            "interval": interval(ratios[name]),
        }
        for name, values in wall.items()
    }


def benchmark(folder: Path, decodings: list[str], *, chunks: int, threads: int, device: str) -> dict[str, dict]:
    """Decoding → "median_ms", "ratio" to the first with "interval", "base_layers" a chunk, "early_exits" as a share.

    Raises:
        CheckpointError: the folder is no policy, or has no such decoding.
    """
    made = in_turn(
        {name: rsd.load(folder, decoding=name, num_threads=threads, device=device) for name in decodings}, chunks
    )
    work = {name: [chunk.work for _, chunk in one] for name, one in made.items()}
    return {
        name: one | {key: float(np.mean([row[key] for row in work[name]])) for key in ("base_layers", "early_exits")}
        for name, one in times(made, decodings[0]).items()
    }


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with what every benchmark of a policy folder takes."""
    parser.add_argument("--policy", type=any_path, default=ROOT / "released", metavar="DIR", help="policy (released)")
    parser.add_argument("--chunks", type=held(Count), default=100, help="timed chunks of each (100)")
    parser.add_argument(
        "--threads", type=held(Processes), default=os.cpu_count() or 1, help="computing threads (all cores)"
    )
    parser.add_argument("--device", type=held(Device), default="cpu", help="where the policy runs (cpu)")
    parser.add_argument("--out", type=new_file, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args()
    require_device(options.device)
    return options


@reported
def main() -> None:
    """Command line."""
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument("decodings", nargs="+", metavar="DECODING", help="in policy.json; ratios are to the first")
    options = options_of(parser)
    result = benchmark(
        options.policy, options.decodings, chunks=options.chunks, threads=options.threads, device=options.device
    )
    print(f"{'':<20} median ms  ratio, {LEVEL} % interval    layers  end early   ({options.chunks} chunks each)")
    for name, one in result.items():
        low, high = one["interval"]
        print(
            f"{name:<20} {one['median_ms']:9.1f}  {one['ratio']:.3f} ({low:.3f} … {high:.3f})  "
            f"{one['base_layers']:8.2f}  {one['early_exits']:8.0%}"
        )
    if options.out is not None:
        write_atomically(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
