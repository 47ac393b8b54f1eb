"""The plots of a sweep's page, as places in SVGs: objectives against each other with their front, and against settings.

Without objectives (search.json), what the command's main returned is plotted against each setting that was swept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsd.evaluation.axes import Axis

LEFT, RIGHT, TOP, BOTTOM = 56, 348, 12, 212  # of a plot in its SVG
DECADES = 1.5  # numbers above zero that span more are plotted by their logarithm
MOST = 24  # plots on a page


@dataclass(frozen=True)
class Figure:
    """A column of a sweep: its name and a value a run, a number where it is a figure, a text where it was typed."""

    name: str
    values: Sequence[float | str | None]


@dataclass(frozen=True)
class Scale:
    """Places of a figure's values along an axis; texts in their order of appearance."""

    axis: Axis
    is_log: bool
    names: Sequence[str]

    def at(self, value: float | str) -> float:
        if self.names:
            return self.axis.at(self.names.index(str(value)))
        return self.axis.at(math.log10(float(value)) if self.is_log else float(value))

    @property
    def ticks(self) -> list[dict[str, Any]]:
        if self.names:
            return [{"place": self.axis.at(index), "text": name} for index, name in enumerate(self.names)]
        return [
            {"place": self.axis.at(tick), "text": f"{10**tick:.2g}" if self.is_log else f"{tick:g}"}
            for tick in self.axis.ticks
        ]


def sweep_plots(
    names: Sequence[str],
    settings: Sequence[Figure],
    figures: Sequence[Figure],
    best: Sequence[bool],
    *,
    is_search: bool,
) -> list[dict[str, Any]]:
    """{x_label, y_label, points, front, x_ticks, y_ticks} a plot, for sweep.html.

    Args:
        names: Of the runs.
        settings: What was swept.
        figures: What came of it; of a search its objectives.
        best: Whether a run is on the front.
        is_search: Whether there is a front to show; it is a line where there are two objectives.
    """
    pairs = [(other, figures[0]) for other in figures[1:]] if is_search else []
    typed = [one for one in settings if one.name not in {figure.name for figure in figures}]
    pairs += [(setting, figure) for figure in figures for setting in typed]
    plots = []
    for x, y in pairs[:MOST]:
        line = is_search and len(figures) == 2 and x in figures
        plot = _plot(names, x, y, best if is_search else [False] * len(names), line=line)
        plots += [] if plot is None else [plot]
    return plots


def _plot(names: Sequence[str], x: Figure, y: Figure, best: Sequence[bool], *, line: bool) -> dict[str, Any] | None:
    """One plot; None where fewer than two runs have both values, or x is the same in all."""
    rows = [
        (name, a, b, front)
        for name, a, b, front in zip(names, x.values, y.values, best, strict=True)
        if a is not None and b is not None
    ]
    if len({a for _, a, _, _ in rows}) < 2:
        return None
    across = scale([a for _, a, _, _ in rows], LEFT, RIGHT)
    up = scale([b for _, _, b, _ in rows], BOTTOM, TOP)
    points = [
        {
            "x": across.at(a),
            "y": up.at(b),
            "on_front": front,
            "title": f"run {name}: {x.name} {_text(a)}, {y.name} {_text(b)}",
        }
        for name, a, b, front in rows
    ]
    front = sorted({(point["x"], point["y"]) for point in points if point["on_front"]}) if line else []
    return {
        "x_label": x.name,
        "y_label": y.name,
        "points": points,
        "front": " ".join(f"{a},{b}" for a, b in front),
        "x_ticks": across.ticks,
        "y_ticks": up.ticks,
    }


def scale(values: Sequence[float | str], start: float, end: float) -> Scale:
    """From values to places between start and end, with a little room on both sides."""
    numbers = [number for value in values if (number := number_of(value)) is not None]
    if len(numbers) < len(values):
        names = list(dict.fromkeys(map(str, values)))
        return Scale(Axis(-0.5, len(names) - 0.5, start, end), False, names)
    is_log = min(numbers) > 0 and math.log10(max(numbers) / min(numbers)) > DECADES
    shown = [math.log10(number) for number in numbers] if is_log else numbers
    low, high = min(shown), max(shown)
    room = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
    return Scale(Axis(low - room, high + room, start, end), is_log, ())


def number_of(value: float | str | None) -> float | None:
    """A value as a number; None for another text."""
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
