"""What a search is for: figures of its jobs' metrics.json, or settings, each with a direction, and their front.

The table of a sweep is made of files alone, so this knows no Optuna.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from rsd.commands.metrics import shown_values
from rsd.commands.sweep_plots import number_of
from rsd.errors import SettingError
from rsd.record import read

SEARCH_FILE = "search.json"
RESULT = "result"  # of the command's main, see rsd/commands/sweep.py
Direction = Literal["minimize", "maximize"]
DIRECTIONS = ("minimize", "maximize")


class SearchRecord(TypedDict):
    """search.json: all that decides the trials. `space` is key to Optuna's distribution, in its words."""

    objectives: dict[str, Direction]
    sampler: str
    seed: int
    space: dict[str, str]


def read_search(sweep_dir: Path) -> SearchRecord | None:
    """What decides a sweep's trials; None where it is no search.

    Raises:
        SettingError: the record is damaged.
    """
    path = sweep_dir / SEARCH_FILE
    if not path.is_file():
        return None
    record: SearchRecord = read(path, SearchRecord, error=SettingError, remedy=f"remove {sweep_dir}")
    return record


def objective(
    name: str, metrics: Mapping[str, float], result: float | None, settings: Mapping[str, str]
) -> float | None:
    """A figure of a job, of the last stage where it has one a stage, or a setting of it that is a number; else None."""
    values = [result] if name == RESULT else shown_values(dict(metrics), name)
    return values[-1] if values else number_of(settings.get(name))


def on_front(rows: Sequence[Sequence[float | None]], directions: Sequence[str]) -> list[bool]:
    """Whether no other row is as good in every objective and better in one; False for a row with None."""
    signs = [1 if direction == "minimize" else -1 for direction in directions]
    costs: list[list[float] | None] = []
    for row in rows:
        known = [value for value in row if value is not None]
        costs.append([s * v for s, v in zip(signs, known, strict=True)] if len(known) == len(signs) else None)

    def beaten(own: list[float]) -> bool:
        return any(o is not None and o != own and all(a <= b for a, b in zip(o, own, strict=True)) for o in costs)

    return [own is not None and not beaten(own) for own in costs]
