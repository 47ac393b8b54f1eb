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
import sys
import time
from pathlib import Path

import numpy as np

import rsd
from rsd.errors import RSDError
from rsd.files import write_atomically
from rsd.progress import track
from rsd.queue import chunk_seed
from rsd.types import Request
from scripts.record_policy import SEED, recorded_observations

ROOT = Path(__file__).parents[1]
WARMUP = 5  # chunks of each decoding before those that count
RESAMPLES, LEVEL = 2000, 95  # bootstrap of a median's interval, per cent


def interval(ratios: np.ndarray) -> list[float]:
    """Bootstrap percentile interval of the median of [n] ratios."""
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    return [float(value) for value in np.percentile(np.median(drawn, axis=1), [50 - LEVEL / 2, 50 + LEVEL / 2])]


def benchmark(folder: Path, decodings: list[str], *, chunks: int, threads: int, device: str) -> dict[str, dict]:
    """Decoding → "median_ms", "ratio" to the first with "interval", "base_layers" a chunk, "early_exits" as a share.

    Raises:
        CheckpointError: the folder is no policy, or has no such decoding.
    """
    arms = {name: rsd.load(folder, decoding=name, num_threads=threads, device=device) for name in decodings}
    observations = recorded_observations()
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in arms}
    counts: dict[str, list[list[int | list[int]]]] = {name: [] for name in arms}
    with track("chunks of each decoding", total=WARMUP + chunks, done=0, report=print) as advance:
        for number in range(WARMUP + chunks):
            request = Request(observations[number % len(observations)], chunk_seed(SEED, number))
            for name in random.permutation(decodings).tolist():
                policy = arms[name]
                start = time.perf_counter()
                (chunk,) = policy.predict([request])
                times[name].append(1000 * (time.perf_counter() - start))
                counts[name].append([chunk.work["base_layers"], chunk.work["early_exits"]])
            advance(1)
    wall = {name: np.array(values[WARMUP:]) for name, values in times.items()}
    result = {}
    for name, values in wall.items():
        ratios = values / wall[decodings[0]]
        layers, exits = np.mean(counts[name][WARMUP:], axis=0)
        result[name] = {
            "median_ms": float(np.median(values)),
            "ratio": float(np.median(ratios)),
            "interval": interval(ratios),
            "base_layers": float(layers),
            "early_exits": float(exits),
        }
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("decodings", nargs="+", metavar="DECODING", help="in policy.json; ratios are to the first")
    parser.add_argument("--policy", type=Path, default=ROOT / "released", metavar="DIR", help="policy (released)")
    parser.add_argument("--chunks", type=int, default=100, help="timed chunks of each (100)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="computing threads (all cores)")
    parser.add_argument("--device", default="cpu", help="where the policy runs (cpu)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args()
    if options.chunks < 1 or options.threads < 1:
        parser.error("--chunks and --threads are 1 or more")
    try:
        result = benchmark(
            options.policy, options.decodings, chunks=options.chunks, threads=options.threads, device=options.device
        )
    except RSDError as error:
        sys.exit(f"error: {error}")
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
