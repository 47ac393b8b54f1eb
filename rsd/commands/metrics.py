"""Metrics of a run that has ended: metrics.json, a table to read, and the number that a sweeper optimises."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rsd.record import write
from rsd.runs import METRICS_FILE


def flatten(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested metrics → ("name/1", number) pairs; list entries count from 1 as stages do, only numbers are kept."""
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{name}/")
        elif isinstance(value, list):
            yield from flatten({str(index): entry for index, entry in enumerate(value, start=1)}, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def shown_values(flat: dict[str, float], name: str) -> list[float]:
    """The values of one metric out of flat ones: one, or one a stage in the stages' order; none where it is missing."""
    return [value for key, value in flat.items() if key == name or key.rpartition("/")[0] == name]


def finish_run(run_dir: Path, title: str, metrics: dict[str, Any], shown: Sequence[str]) -> float | None:
    """Write metrics.json (flat) and print those named in `shown`, a row each: one value, or below them one a stage.

    Returns:
        What a sweeper optimises: the first of them that is there, of the last stage where it has one value a stage.
    """
    flat = dict(flatten(metrics))
    write(run_dir / METRICS_FILE, flat)
    rows = {name: shown_values(flat, name) for name in shown}
    table = Table(box=None, pad_edge=False, show_header=False)
    single = {name: values for name, values in rows.items() if len(values) < 2}
    staged = {name: values for name, values in rows.items() if len(values) > 1}
    for name, values in single.items():
        table.add_row(name, *(f"{value:.3g}" for value in values))
    if staged:
        table.add_row("stage", *(str(stage) for stage in range(1, 1 + max(map(len, staged.values())))))
    for name, values in staged.items():
        table.add_row(name, *(f"{value:.3g}" for value in values))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(title, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"run folder: {run_dir}", soft_wrap=True, markup=False)
    return next((values[-1] for values in rows.values() if values), None)
