"""report.json, which says what there is from the first moment on, and all files that are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsd.arena import NOT_INSTALLED
from rsd.arena.measure import distances
from rsd.arena.report import as_csv, as_markdown, page, plot, rows_of
from rsd.arena.splitting import Suite
from rsd.files import write_atomically
from rsd.record import write


def part_of(suite: Suite) -> dict[str, Any]:
    """A suite's part of the report, before any contestant."""
    return {
        "num_fit_episodes": len(suite.fit_episodes),
        "num_disturbed": suite.num_disturbed,
        "num_held_episodes": len(suite.held_episodes),
        "num_fit_chunks": len(suite.fit),
        "num_held_chunks": len(suite.held),
        "normalised": normalised_of(suite),
        "contestants": {},
        "left_out": {},
        "replays": [],
        "num_other_starts": 0,
        "replay_failures": [],
    }


def normalised_of(suite: Suite) -> dict[str, float]:
    """What normalising alone cuts off of the held-out actions, millimetres and degrees."""
    actions = np.concatenate([suite.actions[number] for number in suite.held_episodes])
    back = suite.space.action.unnormalize(suite.space.to_model(actions))
    millimetres, degrees = distances(back, actions)
    ends = {"mean_mm": millimetres.mean(), "max_mm": millimetres.max(), "mean_deg": degrees.mean()}
    return {name: float(value) for name, value in (ends | {"max_deg": degrees.max()}).items()}


def write_report(out: Path, report: dict[str, Any]) -> None:
    """The table, the page and the plots, of what is there."""
    rows = rows_of(report)
    write(out / "report.json", report)
    write_atomically(out / "report.csv", as_csv(rows))
    write_atomically(out / "report.md", as_markdown(report))
    write_atomically(out / "arena.html", page(report))
    for name in report["suites"]:
        write_atomically(out / f"{name}.svg", plot(rows, name))


def failures_of(report: Mapping[str, Any]) -> Iterator[str]:
    """What failed, in a few words each; a package that is not installed is no failure."""
    for suite, part in report["suites"].items():
        for name, why in part["left_out"].items():
            if NOT_INSTALLED not in why:
                yield f"{suite} {name}"
        if part["replay_failures"]:
            yield f"{len(part['replay_failures'])} replays of {suite}"
