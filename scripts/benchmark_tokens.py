"""What fewer picture tokens do to a policy's own chunks, and the milliseconds that they save.

    python -m scripts.benchmark_tokens --tokens 24 16 8 4                       # of released/; three minutes
    python -m scripts.benchmark_tokens --tokens 16 --scorer outputs/checkpoints/scorer/…

Every selection sees one observation before any sees the next one, in an order drawn anew each time. The distance is the
mean absolute difference to the chunk of the same model with all of its tokens, model space. What surprises first: it
says nothing about success; a chunk may be another one and as good.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import rsd
from rsd.checkpoint import load_checkpoint
from rsd.decoding import L1
from rsd.files import write_atomically
from rsd.models.openvla.visual_tokens import KIND, PRODUCE, Grid, Learned, Random, VisualTokens
from rsd.options import Options, any_path, held, new_file, reported
from rsd.settings import Count, Device, Processes, require_device
from rsd.types import ALL_TOKENS
from scripts.latency.replay import LEVEL, RESAMPLES, in_turn
from scripts.recorded import recorded_observations

ROOT = Path(__file__).parents[1]
WARMUP = 5  # chunks of each selection before those that count


def interval(ratios: np.ndarray) -> list[float]:
    """Bootstrap percentile interval of the median of [n] ratios."""
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    return [float(value) for value in np.percentile(np.median(drawn, axis=1), [50 - LEVEL / 2, 50 + LEVEL / 2])]


def selections(counts: Sequence[int], scorers: Sequence[Path]) -> dict[str, VisualTokens | None]:
    """Name to a selection; all tokens first."""
    found: dict[str, VisualTokens | None] = {ALL_TOKENS: None}
    for count in counts:
        found |= {f"grid {count}": Grid(num_tokens=count), f"random {count}": Random(num_tokens=count)}
    for directory in scorers:
        count = load_checkpoint(directory, kind=KIND, produce=PRODUCE).config["num_tokens"]
        found[f"learned {count}"] = Learned(num_tokens=count, checkpoint=directory)
    return found


def benchmark(
    folder: Path,
    arms: dict[str, VisualTokens | None],
    *,
    chunks: int,
    threads: int,
    device: str,
    text_source: str | None = None,
) -> dict[str, dict]:
    """Name → "visual_tokens", "l1" and "largest_l1" of a chunk to that of all tokens, "median_ms", "base_ms" of the
    model alone, and "ratio" of the whole with "interval".

    Raises:
        CheckpointError: the folder is no policy, or a scorer is another model's.
        SettingError: more tokens than the model has.
    """
    options = {
        "decoding": L1(), "num_threads": threads, "device": device, "canaries": False, "text_source": text_source,
    }  # fmt: skip
    policies = {name: rsd.load(folder, visual_tokens=one, **options) for name, one in arms.items()}
    observations = recorded_observations()
    whole = torch.stack([policies[ALL_TOKENS].base.look([one]).chunk()[0] for one in observations])  # [N, T, A]
    made = in_turn(policies, [[one] for one in observations], warmup=WARMUP, calls=chunks)
    wall = {name: np.array([asked.ms for asked in all_asked]) for name, all_asked in made.items()}
    result = {}
    for name, ms in wall.items():
        got = torch.stack([policies[name].base.look([one]).chunk()[0] for one in observations])
        moved = (got - whole).abs().mean(dim=(1, 2))  # [N]
        ratios = ms / wall[ALL_TOKENS]
        result[name] = {
            "median_ms": float(np.median(ms)),
            "ratio": float(np.median(ratios)),
            "interval": interval(ratios),
            "visual_tokens": made[name][-1].chunk.work["visual_tokens"],
            "l1": float(moved.mean()),
            "largest_l1": float(moved.max()),
            "base_ms": float(np.median([asked.chunk.latency_ms["base_model"] for asked in made[name]])),
        }
    return result


@reported
def main() -> None:
    """Command line."""
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tokens", type=held(Count), nargs="+", default=[16], help="tokens a view, of grid and random (16)"
    )
    parser.add_argument("--scorer", type=any_path, nargs="+", default=[], metavar="DIR", help="of phase=tokens")
    parser.add_argument("--policy", type=any_path, default=ROOT / "released", metavar="DIR", help="policy (released)")
    parser.add_argument("--chunks", type=held(Count), default=100, help="timed chunks of each (100)")
    parser.add_argument(
        "--threads", type=held(Processes), default=os.cpu_count() or 1, help="computing threads (all cores)"
    )
    parser.add_argument("--device", type=held(Device), default="cpu", help="where the policy runs (cpu)")
    parser.add_argument(
        "--text-source", type=any_path, help="files of the sentence encoder, of a policy that reads sentences"
    )
    parser.add_argument("--out", type=new_file, metavar="FILE", help="write the figures as JSON, too")
    options: argparse.Namespace = parser.parse_args()
    require_device(options.device)
    arms = selections(options.tokens, options.scorer)
    result = benchmark(
        options.policy,
        arms,
        chunks=options.chunks,
        threads=options.threads,
        device=options.device,
        text_source=None if options.text_source is None else str(options.text_source),
    )
    print(
        f"{'':<12} tokens  L1 to all  largest  median ms  base model  ratio, {LEVEL} % interval   "
        f"({options.chunks} chunks each)"
    )
    for name, one in result.items():
        low, high = one["interval"]
        print(
            f"{name:<12} {one['visual_tokens']:6d}  {one['l1']:9.4f}  {one['largest_l1']:7.3f}  "
            f"{one['median_ms']:9.1f}  {one['base_ms']:10.1f}  {one['ratio']:.3f} ({low:.3f} … {high:.3f})"
        )
    if options.out is not None:
        write_atomically(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
