"""Part (a): 7B shapes with random weights, depth x tokens x precision, each as far up the ladder as it goes.

One set of weights serves all arms; fp8 adds the language model's once more, in half the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from rsd.data.made_up import picture
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.execution import CAPTURED_LIMIT, COMPILED_LIMITS, Quantised, make_run
from rsd.models.openvla.fp8 import Fp8
from rsd.models.openvla.random_weights import random_model
from rsd.models.openvla.segments import Eager, Run
from rsd.types import Observation
from scripts.benchmark_7b.cases import TWO_VIEWS, make_base
from scripts.latency.arms import CAPTURED, COMPILED, EAGER, FP8, Arm, Call, architecture_of, arms_of, halves
from scripts.latency.arms import selection_of as of_base
from scripts.latency.timing import Chunks, Marks, Race

LABEL = "random weights, shape only"
OBSERVATIONS = 4  # different ones, in turn
WRITE_EVERY = 20  # rounds
ENTRY_S = 40.0  # what compiling for one more arm may take
# Random weights move by more than trained ones: at 32 layers of width 512 by 0.34, by 1.4 were the answers unrelated
LIMITS = {EAGER: CAPTURED_LIMIT, CAPTURED: CAPTURED_LIMIT, COMPILED: COMPILED_LIMITS[torch.bfloat16], FP8: 0.75}


def made_up_observation(seed: int) -> Observation:
    """Smooth pictures of a live camera."""
    random = np.random.default_rng(seed)
    return Observation({view: picture(random) for view in TWO_VIEWS}, random.uniform(-0.9, 0.9, 8), "any")


class Shapes:
    """One model, its ways of running, and the arms.

    Args:
        size: Of `architecture_of`.
        left: Seconds until the last timed call may begin.
        report: Told of what happens.

    Attributes:
        arms: Name → arm, those first that goals are about.
        race: In which they take turns.
    """

    def __init__(
        self, device: torch.device, size: str, *, left: Callable[[], float], report: Callable[[str], None]
    ) -> None:
        self.device, self.left, self.report = device, left, report
        self.model = random_model(architecture_of(size), seed=0, device=device).requires_grad_(False)
        shapes = halves(self.model.num_layers), halves(self.model.architecture.num_patches)
        depths, tokens = (shape[:2] if size == "smoke" else shape for shape in shapes)
        self.whole = [depths[0], tokens[0]]
        self.arms = {arm.name: arm for arm in arms_of(depths, tokens)}
        self.race = Race(device, [made_up_observation(seed) for seed in range(OBSERVATIONS)], report)
        self._runs: dict[str, Run | Exception] = {}
        self.base_of, self.selection_of = cache(self._base_of), cache(self._selection_of)
        self.expected_of = cache(self._expected_of)

    def _base_of(self, pictures: str) -> OpenVLABase:
        return make_base(self.model, TWO_VIEWS, pictures=pictures)

    def _selection_of(self, tokens: int) -> Any:
        return of_base(self.base_of("cpu"), tokens)

    def _expected_of(self, depth: int, tokens: int, pictures: str) -> Chunks:
        """What the eager model says of each observation."""
        call = self._call(Arm(EAGER, depth, tokens, pictures), Eager(self.model))
        return {which: call(seen, Marks(self.device)) for which, seen in enumerate(self.race.observations)}

    def _call(self, arm: Arm, run: Run) -> Call:
        return Call(arm, self.base_of(arm.pictures), run, self.selection_of(arm.tokens))

    def _run_of(self, execution: str) -> Run:
        """What runs the segments; made once, and what speaks against it is said to every arm."""
        if execution not in self._runs:
            try:
                self._runs[execution] = make_run(self.model, execution, Fp8(limit=LIMITS[FP8]))
            except Exception as error:  # noqa: BLE001  raised below, and again for every other arm of this way
                self._runs[execution] = error
        found = self._runs[execution]
        if isinstance(found, Exception):
            raise found
        return found

    def make(self, arm: Arm) -> Call:
        """An arm, ready to be called."""
        return self._call(arm, self._run_of(arm.execution))

    def measure(self, known: set[str], *, warmup: int, calls: int, write: Callable[[dict[str, Any]], None]) -> None:
        """Enter the arms that are not known, and the first one, and let them take turns; results as they come.

        Args:
            known: Names of arms that an earlier run has timed.
            write: Keeps what is known so far.
        """
        race, first = self.race, next(iter(self.arms))
        wanted = [name for name in self.arms if name == first or name not in known]
        postponed: list[str] = []

        def kept(rounds: int) -> dict[str, Any]:
            arms = {name: self._record(name) for name in race.times if race.times[name].whole}
            run = self._runs.get(FP8)
            found = run.deviation if isinstance(run, Quantised) else None
            return {
                "label": LABEL, "whole": self.whole, "warmup": warmup, "rounds": rounds, "arms": arms,
                "fp8_deviation": found, "refused": race.refused, "failed": race.failed, "postponed": postponed,
            }  # fmt: skip

        for name in wanted:
            if name != first and self.left() < ENTRY_S + race.round_ms * (warmup + calls) / 1000:
                postponed.append(name)
                continue
            arm = self.arms[name]
            race.enter(name, partial(self.make, arm), partial(self.expected_of, arm.depth, arm.tokens, arm.pictures))
        if not race.calls.keys() - known:
            write(kept(0))
            self.report("no arm is left that can be timed; --again forgets those that were")
            return
        if postponed:
            self.report(f"{len(postponed)} arms are left for the next run: there is no time to compile for them")
        for number in range(warmup):
            race.round(number, timed=False)
        self.report(f"{len(race.calls)} arms, {calls} calls each, {race.round_ms:.0f} ms a round")
        for number in range(calls):
            race.round(warmup + number, timed=True)
            late = self.left() < 0
            if (number + 1) % WRITE_EVERY == 0 or late or number + 1 == calls:
                write(kept(number + 1))
                self.report(f"{number + 1} of {calls} calls each")
            if late:
                self.report("the time is over")
                return

    def _record(self, name: str) -> dict[str, Any]:
        arm, times = self.arms[name], self.race.times[name]
        limit, off = LIMITS[arm.execution], times.farthest
        return {
            "label": LABEL, "execution": arm.execution, "precision": arm.precision, "depth": arm.depth,
            "tokens": arm.tokens, "pictures": arm.pictures, **times.to_json(),
            "check": {"off": off if np.isfinite(off) else None, "limit": limit, "passed": off <= limit},
        }  # fmt: skip
