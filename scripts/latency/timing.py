"""Wall clock of whole calls with the time at which each part of them ended, and all arms in turn."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rsd.models.openvla.execution import ExecutionError, deviation
from rsd.types import Observation
from scripts.benchmark_7b.clocks import summary
from scripts.latency.arms import PARTS, Call

SUM_TOLERANCE = 0.05  # parts against the whole


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
    """Of one arm's timed calls, ms, and the last chunk that each observation has led to."""

    whole: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    chunks: dict[int, np.ndarray] = field(default_factory=dict)

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
        refused: Arm → what the model's code says against it, or that there was no time left.
        failed: Arm → traceback.
    """

    def __init__(self, device: torch.device, observations: Sequence[Observation], report: Callable[[str], None]):
        self.device, self.observations, self.report = device, observations, report
        self.calls: dict[str, Call] = {}
        self.times: dict[str, Times] = {}
        self.refused: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def enter(self, name: str, make: Callable[[], Call]) -> None:
        """Make an arm and call it once on every observation: compiling and capturing happen here."""
        started = time.perf_counter()
        try:
            call = make()
            for observation in self.observations:
                call(observation, Marks(self.device))
        except ExecutionError as error:
            self.refused[name] = str(error)
            self.report(f"{name}: refused: {error}")
            return
        except Exception:  # noqa: BLE001  the other arms are still worth their time; the run fails all the same
            self.failed[name] = traceback.format_exc()
            self.report(f"{name}: FAILED: {self.failed[name].splitlines()[-1]}")
            return
        self.calls[name], self.times[name] = call, Times()
        self.report(f"{name}: ready after {time.perf_counter() - started:.1f} s")

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
                times.chunks[which] = chunk
                for part, value in parts.items():
                    times.parts[part].append(value)


def farthest(reference: dict[int, np.ndarray], chunks: dict[int, np.ndarray]) -> float:
    """Largest deviation of the chunks from the reference's of the same observations, in parts of its largest value."""
    pairs = ((torch.from_numpy(reference[which]), torch.from_numpy(chunk)) for which, chunk in chunks.items())
    return max(deviation(*pair)["max_rel"] for pair in pairs)
