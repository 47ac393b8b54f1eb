"""The table of a pipeline: pipeline.csv and pipeline.html in its folder, made of the steps' run folders.

The page has the steps with what each one read and measured, the evaluations' success with its 95 % interval, the time
that each step took, and the plots that the steps have drawn.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table

from rsd.commands.run_index import read_runs
from rsd.errors import RSDError
from rsd.evaluation.axes import Axis
from rsd.evaluation.page import data_url, render_page
from rsd.files import write_atomically
from rsd.inputs import INPUTS_FILE, SHOWN
from rsd.record import ReadError, read, read_json
from rsd.runs import METRICS_FILE, PROVENANCE_FILE

CSV_FILE, HTML_FILE = "pipeline.csv", "pipeline.html"
PAGES = ("report.html", "comparison.html")
LEFT, RIGHT, ROW = 8, 352, 34  # of a plot in its SVG, and the height of a bar with its name
MOST_PLOTS = 8  # pictures of the steps
COLUMNS = ("step", "status", "seconds", "reads", "figures", "error", "folder", "command")


class _Read(TypedDict):
    """What is read of a part in inputs.json."""

    path: str
    digest: str | None


@dataclass
class Row:
    """A step in the table.

    Attributes:
        status: done, failed, waiting, there already, not finished, or "" where it was not its turn yet.
        run: Its run folder; None where it has none.
        made: Digests of what it made.
        reads: Steps that it reads, for one that keeps no inputs.json.
        note: Beside the status: "already" where nothing had to be done.
    """

    step: str
    command: list[str]
    status: str
    run: Path | None = None
    seconds: float = 0.0
    error: str | None = None
    note: str = ""
    made: Sequence[str] = ()
    reads: Sequence[str] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    figures: str = ""
    lineage: list[str] = field(default_factory=list)


def write_pipeline(rows: Sequence[Row], folder: Path, name: str) -> None:
    """Write both files; what a step's folder has that cannot be read is left out of them."""
    makers = {digest: row.step for row in rows for digest in row.made}
    for row in rows:
        if row.run is not None:
            row.metrics, row.figures = _measured(row.run)
            row.lineage = _lineage(row.run, makers) or list(row.reads)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *metrics])
    for row in rows:
        own = [row.step, row.status, f"{row.seconds:.1f}" if row.seconds else "", "; ".join(row.lineage), row.figures]
        own += [row.error or "", "" if row.run is None else os.path.relpath(row.run, folder), _typed(row)]
        writer.writerow([*own, *(row.metrics.get(name, "") for name in metrics)])
    write_atomically(folder / CSV_FILE, text.getvalue())
    shown = [
        {
            "row": row,
            "command": _typed(row),
            "link": None if row.run is None else os.path.relpath(_page(row.run) or row.run, folder),
        }
        for row in rows
    ]
    page = render_page(
        "pipeline.html",
        name=name,
        rows=shown,
        success=success_plot(rows),
        times=time_plot(rows),
        pictures=_pictures(rows),
        minutes=sum(row.seconds for row in rows) / 60,
    )
    write_atomically(folder / HTML_FILE, page)


def _typed(row: Row) -> str:
    return shlex.join(["python", *row.command])


def _page(run: Path) -> Path | None:
    return next((run / name for name in PAGES if (run / name).is_file()), None)


def _measured(run: Path) -> tuple[dict[str, float], str]:
    """A step's figures, and those of them that people look at first, in words."""
    try:
        metrics = {k: v for k, v in (read_json(run / METRICS_FILE) or {}).items() if isinstance(v, int | float)}
        if (comparison := read_json(run / "comparison.json")) is not None:
            return metrics, "; ".join(map(_verdict, comparison["comparisons"]))
    except ReadError as error:
        return {}, str(error)
    if (run / PROVENANCE_FILE).is_file():
        (row,) = read_runs([run])
        return metrics, row.figures
    return metrics, ", ".join(f"{value:.4g} {name}" for name, value in metrics.items() if name != "seconds")


def _verdict(pair: dict[str, Any]) -> str:
    points = "–" if pair["difference"] is None else f"{100 * pair['difference']:+.1f}"
    interval = f"{100 * pair['low']:+.1f} … {100 * pair['high']:+.1f}"
    return f"{pair['other']} − {pair['reference']}: {points} points ({interval}), {pair['verdict']}"


def _lineage(run: Path, makers: dict[str, str]) -> list[str]:
    """What a step read, each part with the step that made it, or its place, and its first digits."""
    path = run / INPUTS_FILE
    kind: Any = dict[str, _Read]
    try:
        found = read(path, kind, error=ReadError, remedy="make it anew") if path.is_file() else {}
    except RSDError as error:
        return [str(error)]
    return [
        f"{part} of {makers.get(one['digest'] or '', one['path'])} ({(one['digest'] or 'not there')[:SHOWN]})"
        for part, one in found.items()
    ]


def success_plot(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Success of the evaluations, each with its interval: places in an SVG; None without evaluations."""
    judged = [row for row in rows if "success_rate" in row.metrics]
    if not judged:
        return None
    axis = Axis(0.0, 1.0, LEFT, RIGHT)
    bars = [
        {
            "name": row.step,
            "y": ROW * index,
            "at": axis.at(row.metrics["success_rate"]),
            "low": axis.at(row.metrics["success_low"]),
            "high": axis.at(row.metrics["success_high"]),
            "text": _interval(row),
        }
        for index, row in enumerate(judged)
    ]
    ticks = [{"place": axis.at(tick), "text": f"{100 * tick:.0f} %"} for tick in axis.ticks]
    return {"bars": bars, "ticks": ticks, "height": ROW * len(bars)}


def _interval(row: Row) -> str:
    """ "50.0 % (9.5–90.5)"."""
    rate, low, high = (100 * row.metrics[f"success_{one}"] for one in ("rate", "low", "high"))
    return f"{rate:.1f} % ({low:.1f}–{high:.1f})"


def time_plot(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Seconds of the steps: places in an SVG; None where none has run."""
    timed = [row for row in rows if row.seconds]
    if not timed:
        return None
    axis = Axis(0.0, max(row.seconds for row in timed), LEFT, RIGHT)
    bars = [
        {"name": row.step, "y": ROW * index, "width": axis.at(row.seconds) - LEFT, "text": f"{row.seconds:.0f} s"}
        for index, row in enumerate(timed)
    ]
    return {"bars": bars, "height": ROW * len(bars)}


def _pictures(rows: Sequence[Row]) -> list[dict[str, str]]:
    files = [(row.step, path) for row in rows if row.run is not None for path in sorted(row.run.glob("*.png"))]
    return [
        {"name": f"{step}: {path.stem.replace('_', ' ')}", "url": data_url(path, "image/png")}
        for step, path in files[:MOST_PLOTS]
    ]


def print_pipeline(rows: Sequence[Row], folder: Path) -> None:
    """The table for the terminal, and where the files are."""
    table = Table(box=None, pad_edge=False)
    for column in ("step", "status", "seconds", "figures"):
        table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for row in rows:
        status = f"{row.status}, {row.note}" if row.note else row.status
        table.add_row(row.step, status, f"{row.seconds:.0f}" if row.seconds else "", row.error or row.figures)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print()
    console.print(table)
    console.print(f"Table of the steps: {folder / HTML_FILE} and {folder / CSV_FILE}", soft_wrap=True, markup=False)
