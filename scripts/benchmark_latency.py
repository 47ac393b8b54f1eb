"""Milliseconds from decoded pictures to robot commands at 7B shapes with random weights: one GPU, all arms in turn.

    python scripts/benchmark_latency.py                            # one H100, five minutes; docs/results/latency.json
    python scripts/benchmark_latency.py --smoke --out /tmp/smoke   # a few layers, under a minute
    python scripts/benchmark_latency.py --budget                   # what each combination saves at most, from there

Depth 32/16/8 x tokens 256/128/64 a view x bf16/fp8, each as far up the ladder eager/captured/compiled as it goes.
Random weights: shapes only, no action means anything. Needs torch, transformers, safetensors, scipy, PIL, simplejpeg.

What surprises first: ratios are over the *fastest* bf16 way of the whole model in the same run, and stand beside an arm
only if its outputs on the timed observations are the eager model's, as far as its way of running promises.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.data.made_up import picture  # noqa: E402
from rsd.files import write_atomically  # noqa: E402
from rsd.models.openvla.base import OpenVLABase  # noqa: E402
from rsd.models.openvla.execution import CAPTURED_LIMIT, COMPILED_LIMITS, make_run  # noqa: E402
from rsd.models.openvla.fp8 import Fp8  # noqa: E402
from rsd.models.openvla.model import OpenVLAOFT  # noqa: E402
from rsd.models.openvla.random_weights import random_model  # noqa: E402
from rsd.models.openvla.segments import Eager, Run  # noqa: E402
from rsd.types import Observation  # noqa: E402
from scripts.benchmark_7b.cases import TWO_VIEWS, make_base  # noqa: E402
from scripts.latency.arms import FP8, Arm, Call, architecture_of, arms_of, halves  # noqa: E402
from scripts.latency.budget import budget  # noqa: E402
from scripts.latency.table import table  # noqa: E402
from scripts.latency.timing import Marks, Race, farthest  # noqa: E402
from scripts.latency.vision import measure_vision  # noqa: E402

RESULTS, TABLE = "latency.json", "latency.md"
OBSERVATIONS = 4  # different ones, in turn
WRITE_EVERY = 20  # rounds
# Random weights move by more than trained ones: at 32 layers of width 512 by 0.34, by 1.4 were the answers unrelated
LIMITS = {"eager": CAPTURED_LIMIT, "captured": CAPTURED_LIMIT, "compiled": COMPILED_LIMITS[torch.bfloat16], FP8: 0.75}
TIMING_SHARE = 0.4  # of --seconds: arms that are not ready by then are left out
LABEL = "shape only: random weights"


def made_up_observation(seed: int) -> Observation:
    """Smooth pictures of a live camera."""
    random = np.random.default_rng(seed)
    return Observation({view: picture(random) for view in TWO_VIEWS}, random.uniform(-0.9, 0.9, 8), "any")


class Benchmark:
    """One model, its ways of running, and the results as they come in."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.started = time.perf_counter()
        cuda = self.device.type == "cuda"
        self.model: OpenVLAOFT = random_model(architecture_of(options.size), seed=0, device=self.device)
        self.model.requires_grad_(False)
        self.bases: dict[str, OpenVLABase] = {
            place: make_base(self.model, TWO_VIEWS, pictures=place) for place in ("cpu", "device")
        }
        self.runs: dict[str, Run | Exception] = {}
        self.race = Race(self.device, [made_up_observation(seed) for seed in range(OBSERVATIONS)], self.report)
        architecture = self.model.architecture
        shapes = halves(self.model.num_layers), halves(architecture.num_patches)
        depths, tokens = (shape[:2] if options.size == "smoke" else shape for shape in shapes)
        self.arms = {arm.name: arm for arm in arms_of(depths, tokens)}
        self.results: dict[str, Any] = {
            "label": LABEL,
            "device": torch.cuda.get_device_name(self.device) if cuda else "CPU",
            "torch": torch.__version__,
            "size": options.size,
            "command": sys.argv,
            "whole": [self.model.num_layers, architecture.num_patches],
            "warmup": options.warmup,
            "rounds": 0,
            "arms": {},
            "vision": {},
            "refused": self.race.refused,
            "failed": self.race.failed,
        }
        self.report(f"{options.size} model of random weights on {self.results['device']}")

    def report(self, line: str) -> None:
        print(f"[{time.perf_counter() - self.started:5.0f} s] {line}", flush=True)

    def left(self) -> float:
        """Seconds until the last timed call may begin."""
        return self.started + self.options.seconds - time.perf_counter()

    def run_of(self, execution: str) -> Run:
        """What runs the segments; made once, and what speaks against it is said to every arm."""
        if execution not in self.runs:
            try:
                self.runs[execution] = make_run(self.model, execution, Fp8(limit=LIMITS[FP8]))
            except Exception as error:  # noqa: BLE001  raised below, and again for every other arm of this way
                self.runs[execution] = error
        found = self.runs[execution]
        if isinstance(found, Exception):
            raise found
        return found

    def make(self, arm: Arm) -> Call:
        return Call(arm, self.bases[arm.pictures], self.run_of(arm.execution))

    def write(self) -> None:
        """What is known so far."""
        self.results["seconds"] = time.perf_counter() - self.started
        self.results["arms"] = {
            name: self._record(arm) for name, arm in self.arms.items() if name in self.race.times and self._timed(name)
        }
        write_atomically(self.options.out / RESULTS, json.dumps(self.results, indent=1) + "\n")
        write_atomically(self.options.out / TABLE, table(self.results))

    def _timed(self, name: str) -> bool:
        return bool(self.race.times[name].whole)

    def _record(self, arm: Arm) -> dict[str, Any]:
        shape = {"execution": arm.execution, "depth": arm.depth, "tokens": arm.tokens, "pictures": arm.pictures}
        times = self.race.times[arm.name]
        check = self.results["arms"].get(arm.name, {}).get("check") or {"max_rel": None, "passed": False}
        return shape | {
            "precision": arm.precision,
            **times.to_json(),
            "check": check | {"limit": LIMITS[arm.execution]},
        }

    def calls(self) -> None:
        """Enter every arm, let them take turns, and check what they gave."""
        options, race = self.options, self.race
        for name, arm in self.arms.items():
            if self.left() < TIMING_SHARE * options.seconds:
                race.refused[name] = f"--seconds {options.seconds:.0f} leave no time to compile for it"
                continue
            race.enter(name, partial(self.make, arm))
        for number in range(options.warmup):
            race.round(number, timed=False)
        self.report(f"{len(race.calls)} arms, {options.calls} calls each")
        for number in range(options.calls):
            race.round(options.warmup + number, timed=True)
            self.results["rounds"] = number + 1
            late = self.left() < 0
            if (number + 1) % WRITE_EVERY == 0 or late:
                self.write()
                self.report(f"{number + 1} of {options.calls} calls each")
            if late:
                self.report(f"--seconds {options.seconds:.0f} are over after {number + 1} calls each")
                break
        self.write()
        self.check()

    def check(self) -> None:
        """Hold the timed calls' chunks to the eager model's of the same shape and pictures."""
        for name, arm in self.arms.items():
            if name not in self.results["arms"]:
                continue
            reference = Call(arm, self.bases[arm.pictures], Eager(self.model))
            chunks = self.race.times[name].chunks
            expected = {which: reference(self.race.observations[which], Marks(self.device)) for which in chunks}
            found, limit = farthest(expected, chunks), LIMITS[arm.execution]
            self.results["arms"][name]["check"] = {"max_rel": found, "limit": limit, "passed": found <= limit}
        self.write()
        self.report("outputs are checked")

    def vision(self) -> None:
        """The towers alone."""
        if self.device.type != "cuda":
            self.report("vision alone: refused: it is about CUDA graphs")
            return
        base, options = self.bases["device"], self.options
        pixels = base.on_device(base.prepare_live([self.race.observations[0]]))["pixel_values"]
        assert pixels is not None
        self.results["vision"] = measure_vision(
            self.model, pixels, warmup=options.warmup, calls=options.calls, report=self.report, left=self.left
        )
        self.write()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", metavar="DIR", help="(docs/results)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("7b", "smoke", "tiny"), default="7b")
    parser.add_argument("--smoke", action="store_true", help="--size smoke --warmup 3 --calls 10 --sections calls")
    parser.add_argument("--sections", nargs="+", choices=("calls", "vision"), default=["calls", "vision"])
    parser.add_argument("--warmup", type=int, default=20, help="calls of each arm before those that count (20)")
    parser.add_argument("--calls", type=int, default=200, help="timed calls of each arm (200)")
    parser.add_argument("--seconds", type=float, default=300, help="end the timed calls after this long (300)")
    parser.add_argument(
        "--budget", type=Path, nargs="?", const=ROOT / "docs" / "results" / RESULTS, metavar="FILE",
        help="run nothing; print ceilings from the parts in FILE (docs/results/latency.json)",
    )  # fmt: skip
    options = parser.parse_args()
    if options.smoke:
        options.size, options.warmup, options.calls, options.sections = "smoke", 3, 10, ["calls"]
    if options.calls < 1 or options.warmup < 0:
        parser.error("--calls is 1 or more, --warmup 0 or more")
    if options.budget is not None and not options.budget.is_file():
        parser.error(f"--budget {options.budget}: no such file; run the benchmark first, or name another latency.json")
    if options.budget is None and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; --device cpu --size tiny tries the script")
    return options


def main() -> int:
    """Command line."""
    options = arguments()
    if options.budget is not None:
        print(budget(json.loads(options.budget.read_text())), end="")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(options)
    for section in options.sections:
        try:
            getattr(benchmark, section)()
        except Exception:  # noqa: BLE001  what has been measured is kept; the run fails all the same
            benchmark.race.failed[section] = traceback.format_exc()
            benchmark.write()
    print(table(benchmark.results))
    for name, error in benchmark.race.failed.items():
        print(f"{name}\n{error}", file=sys.stderr)
    wrong = [name for name, arm in benchmark.results["arms"].items() if not arm["check"]["passed"]]
    for name in wrong:
        print(f"{name}: outputs failed their check", file=sys.stderr)
    return 1 if wrong or benchmark.race.failed else 0


if __name__ == "__main__":
    sys.exit(main())
