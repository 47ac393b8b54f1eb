"""Wall clock of whole calls with the time at which each part of them ended, and all arms in turn."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rsd.models.openvla.execution import ExecutionError, deviation
from rsd.types import Observation
from scripts.benchmark_7b.clocks import summary
from scripts.latency.arms import PARTS, Call

SUM_TOLERANCE = 0.05  # parts against the whole
Chunks = Mapping[int, np.ndarray]  # observation → [1, T, A]


class Marks:
    """Ends of the parts of one call: on a GPU as its own events, which nothing waits for, else by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._ends: list[tuple[str, Any]] = []
        if self.cuda:
            torch.cuda.synchronize()
        self._start = self._now()
        self.started = time.perf_counter()

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __call__(self, part: str) -> None:
        self._ends.append((part, self._now()))

    def stop(self) -> tuple[float, dict[str, float]]:
        """(wall ms of the whole, ms of each part)."""
        if self.cuda:
            torch.cuda.synchronize()
        whole = 1000 * (time.perf_counter() - self.started)
        parts, before = {}, self._start
        for part, end in self._ends:
            parts[part] = before.elapsed_time(end) if self.cuda else 1000 * (end - before)
            before = end
        return whole, parts


@dataclass
class Times:
    """Of one arm's timed calls, ms, and how far their chunks were off the eager model's at most."""

    whole: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    farthest: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Medians, and whether parts and whole agree."""
        parts = {part: summary(values) for part, values in self.parts.items() if values}
        ratio = float(np.median(np.sum([*self.parts.values()], axis=0) / np.array(self.whole)))
        sums = {"parts_over_whole": ratio, "parts_sum": abs(ratio - 1) <= SUM_TOLERANCE}
        return {"wall_ms": summary(self.whole), "parts_ms": parts, **sums}


class Race:
    """All arms in turn, an observation after the other, in an order drawn anew for each.

    Attributes:
        calls: Arms that are ready; one that fails is taken out.
        refused: Arm → what the model's code says against it.
        failed: Arm → traceback.
        round_ms: What a call of every arm takes, about.
    """

    def __init__(self, device: torch.device, observations: Sequence[Observation], report: Callable[[str], None]):
        self.device, self.observations, self.report = device, observations, report
        self.calls: dict[str, Call] = {}
        self.times: dict[str, Times] = {}
        self.refused: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.round_ms = 0.0
        self._expected: dict[str, Chunks] = {}

    def enter(self, name: str, make: Callable[[], Call], expect: Callable[[], Chunks]) -> None:
        """Make an arm and call it on every observation: compiling and capturing happen here.

        Args:
            expect: Makes the chunks that its own are held to.
        """
        started = time.perf_counter()
        try:
            call, expected = make(), expect()
            for observation in self.observations:
                marks = Marks(self.device)
                call(observation, marks)
                last_ms, _ = marks.stop()
        except ExecutionError as error:
            self.refused[name] = str(error)
            self.report(f"{name}: refused: {error}")
            return
        except Exception:  # noqa: BLE001  the other arms are still worth their time; the run fails all the same
            self.failed[name] = traceback.format_exc()
            self.report(f"{name}: FAILED: {self.failed[name].splitlines()[-1]}")
            return
        self.calls[name], self.times[name], self._expected[name] = call, Times(), expected
        self.round_ms += last_ms
        self.report(f"{name}: ready after {time.perf_counter() - started:.1f} s, {last_ms:.1f} ms")

    def round(self, number: int, *, timed: bool) -> None:
        """One observation through every arm."""
        which = number % len(self.observations)
        order = np.random.default_rng(number).permutation(sorted(self.calls)).tolist()
        for name in order:
            try:
                marks = Marks(self.device)
                chunk = self.calls[name](self.observations[which], marks)
                whole, parts = marks.stop()
            except Exception:  # noqa: BLE001  as above
                self.failed[name] = traceback.format_exc()
                self.report(f"{name}: FAILED in round {number}: {self.failed[name].splitlines()[-1]}")
                del self.calls[name]
                continue
            if timed:
                times = self.times[name]
                times.whole.append(whole)
                times.farthest = max(times.farthest, distance(self._expected[name][which], chunk))
                for part, value in parts.items():
                    times.parts[part].append(value)


def distance(expected: np.ndarray, chunk: np.ndarray) -> float:
    """Largest deviation, in parts of the largest value; infinity where one is not finite."""
    found = deviation(torch.from_numpy(expected), torch.from_numpy(chunk))["max_rel"]
    return found if np.isfinite(found) else float("inf")
