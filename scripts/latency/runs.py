"""latency.json: one run after the other, so that what was cut is gone on with and nothing that was measured is lost.

A run is one section on one device in one process; its arms took turns, and ratios are taken within it. Runs with the
same circumstances are a group: an arm counts as measured when a run of its group has all calls of it, and a later run
takes only the missing ones, and what they are held against once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.errors import RSDError
from rsd.record import EntryError, conform, read, write

RESULTS, TABLE = "latency.json", "latency.md"
SHAPES, TOWERS, POLICY = "shapes", "vision", "policy"  # sections
CIRCUMSTANCES = ("section", "device", "torch", "what")
RUN = {"section": str, "device": str, "torch": str, "what": str, "label": str, "arms": dict[str, dict[str, Any]]}
ARM = {"wall_ms": dict[str, float], "parts_ms": dict[str, dict[str, float]], "check": dict[str, Any]}
Run = dict[str, Any]


class LatencyError(RSDError, ValueError):
    """A file of results that cannot be used."""


@dataclass(frozen=True)
class Group:
    """Runs of one section under the same circumstances, in the order of time."""

    runs: Sequence[Run]

    @property
    def last(self) -> Run:
        return self.runs[-1]

    def best(self, name: str) -> tuple[Run, dict[str, Any]] | None:
        """The run that has most calls of an arm, the last of them, and its record there."""
        found = [(run, run["arms"][name]) for run in self.runs if name in run["arms"]]
        return max(reversed(found), key=lambda one: one[1]["wall_ms"]["calls"], default=None)

    @property
    def arms(self) -> dict[str, tuple[Run, dict[str, Any]]]:
        """Arm → its best run and record, in the order in which they were first measured."""
        names = dict.fromkeys(name for run in self.runs for name in run["arms"])
        return {name: found for name in names if (found := self.best(name)) is not None}

    def measured(self, calls: int) -> set[str]:
        """Arms that need not be timed again."""
        return {name for name, (_, record) in self.arms.items() if record["wall_ms"]["calls"] >= calls}


def groups(runs: Sequence[Run], section: str | None = None) -> Iterator[Group]:
    """Runs with the same circumstances together."""
    together: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if section in (None, run["section"]):
            together.setdefault(tuple(run[name] for name in CIRCUMSTANCES), []).append(run)
    yield from map(Group, together.values())


def stored_runs(path: Path) -> list[Run]:
    """The runs of a file; none where there is none.

    Raises:
        LatencyError: it is damaged, or holds something else.
    """
    if not path.is_file():
        return []
    remedy = "remove it, or measure into another folder (--out)"
    record: Any = read(path, Any, error=LatencyError, remedy=remedy)
    try:
        runs: list[Run] = conform(record, {"runs": list[dict[str, Any]]}, str(path))["runs"]
        for number, run in enumerate(runs):
            arms = conform(run, RUN, str(path), f"runs.{number}")["arms"]
            for name, arm in arms.items():
                conform(arm, ARM, str(path), f"runs.{number}.arms.{name}")
    except EntryError as error:
        raise LatencyError(f"{error}; {remedy}") from error
    return runs


def store(path: Path, runs: Sequence[Run]) -> None:
    """Write all runs that measured something."""
    write(path, {"runs": [run for run in runs if run["arms"] or run.get("failed")]})
