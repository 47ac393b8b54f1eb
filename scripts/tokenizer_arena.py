"""Action tokenizers beside each other on real chunks, and replayed: python scripts/tokenizer_arena.py --data DIR

Each contestant is fitted on a part of a suite's demonstrations and measured on the others: error per prefix depth in
millimetres and degrees, tokens, bits, entropy, certified bounds, throughput; then the held-out demonstrations are
executed in the simulator as each one says them. Ends with one table (report.csv, .json, .md), one page (arena.html) and
plots of error against bits. What is measured is on disk at once; the same command goes on. A contestant that fails is
named in table and page, and the others go on.

    python scripts/tokenizer_arena.py --suites libero_spatial libero_object libero_goal
    python scripts/tokenizer_arena.py --workers 24 --render-devices 0 1 --replays 40
    python scripts/tokenizer_arena.py --contestants dct_d3 bins256 fast --replays 0    # without the simulator

What surprises first: held out is every second demonstration of a task that was collected without disturbance, because
only there the recorded actions are those that were executed; the disturbed ones are fitted on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # throughput is of one core

from rich.console import Console  # noqa: E402

from rsd.arena import ArenaError  # noqa: E402
from rsd.arena.contestants import OTHERS  # noqa: E402
from rsd.arena.plan import keep_plan  # noqa: E402
from rsd.options import Options, any_path, held, new_folder, reported  # noqa: E402
from rsd.settings import ChunkLength, Count, Natural, Processes, Seed  # noqa: E402
from scripts.arena.composed import CONFIGURED, contestant_of  # noqa: E402
from scripts.arena.replays import read_replays, replay, summary_of, with_replays  # noqa: E402
from scripts.arena.suites import read_suite  # noqa: E402

if TYPE_CHECKING:  # needs torch, which --help does not wait for
    from rsd.arena.contract import Contestant
    from rsd.arena.splitting import Suite

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
PLANNED = ("chunk", "seed", "rounds", "steps", "max_demos")  # options that plan.json holds


def run(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns report.json."""
    import torch

    from rsd.arena.completing import measure_all
    from rsd.arena.writing import part_of, write_report

    torch.set_num_threads(1)
    suites = {name: read_suite(name, asked) for name in asked.suites}
    settings = {key: getattr(asked, key) for key in PLANNED}
    data = {name: suite.demonstrations.content_id() for name, suite in suites.items()}
    report: dict[str, Any] = {"plan": keep_plan(asked.out, settings, data), "suites": {}, "pooled": []}
    results = {}
    for name, suite in suites.items():
        (asked.out / name).mkdir(parents=True, exist_ok=True)
        report["suites"][name] = part = part_of(suite)
        results[name] = read_replays(asked.out, name)
        with_replays(part, results[name], asked.contestants, [])
    report["pooled"] = summary_of(results, asked.contestants)

    def make(name: str, suite: Suite) -> Contestant:
        return contestant_of(name, suite.space, asked.chunk, asked.seed)

    measure_all(
        suites,
        asked.contestants,
        make,
        report,
        out=asked.out,
        seed=asked.seed,
        steps=asked.steps,
        rounds=asked.rounds,
        num_workers=asked.workers,
        say=partial(console.print, markup=False),
    )
    for name, suite in suites.items() if asked.replays else ():
        part = report["suites"][name]
        results[name], failures = replay(suite, part["contestants"], asked, console)
        with_replays(part, results[name], asked.contestants, failures)
        report["pooled"] = summary_of(results, asked.contestants)
        write_report(asked.out, report)
        for why in failures:
            console.print(f"{name} is not replayed: {why}", markup=False)
    return report


@reported
def main() -> None:
    """Command line."""
    every = (*CONFIGURED, *OTHERS)
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=any_path, default=Path("outputs/data"), metavar="DIR", help="data sets of suites"
    )
    parser.add_argument(
        "--suites",
        nargs="+",
        choices=SUITES,
        metavar="SUITE",
        help="(the first three, and libero_10 where it has data)",
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=every, default=[*every], metavar="NAME", help=f"of {', '.join(every)}"
    )
    parser.add_argument("--max-demos", type=held(Count), help="of a suite, undisturbed ones first (all)")
    parser.add_argument("--chunk", type=held(ChunkLength), default=8, help="steps of a chunk (8)")
    parser.add_argument("--seed", type=held(Seed), default=0, help="of weights and batches (0)")
    parser.add_argument("--steps", type=held(Count), help="optimizer steps of those that are trained (their own: 5000)")
    parser.add_argument("--rounds", type=held(Count), default=50, help="timed calls of each arm (50)")
    parser.add_argument("--replays", type=held(Natural), default=20, help="demonstrations a suite to execute (20)")
    parser.add_argument("--replay-depths", choices=("full", "ends", "all"), default="ends", help="(ends: 1 and all)")
    parser.add_argument("--workers", type=held(Processes), default=2, help="processes that fit, and simulators (2)")
    parser.add_argument(
        "--render-devices",
        nargs="+",
        type=held(Natural),
        metavar="N",
        help="EGL devices that simulators draw on in turn",
    )
    parser.add_argument(
        "--patience", type=held(Count), default=300, help="seconds that a simulator may be silent (300)"
    )
    parser.add_argument("--out", type=new_folder, default=Path("outputs/tokenizer_arena"), help="results")
    asked = parser.parse_args()
    if asked.suites is None:
        asked.suites = [*SUITES[:3], *(name for name in SUITES[3:] if any(asked.data.glob(f"{name}*")))]
    console = Console(highlight=False, soft_wrap=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.replays:
        from rsd.envs.gl import check_simulator

        check_simulator()
    from rsd.arena.writing import failures_of

    report = run(asked, console)
    console.print(f"{asked.out / 'report.md'}, report.csv, report.json, arena.html", markup=False)
    if failed := [*failures_of(report)]:
        raise ArenaError(
            f"not everything could be done, which the table says: {'; '.join(failed)}. The same command tries it again"
        )


if __name__ == "__main__":
    main()
