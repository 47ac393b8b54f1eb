"""Plots and pictures of a data set's page (survey.html), as text inside of it: no file, script or font besides.

Plots are SVG in the page's own colours, and stretch to the width that there is; numbers stand beside them as text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rsd.data.survey import Content
from rsd.finding import Finding

FOLDER = Path(__file__).parent
TEMPLATE = "survey.html"
MOST_ROWS = 60  # episodes in a plot that has a row for each
DIGITS = 3  # of a number


def page_values(content: Content, figures: dict[str, Any], findings: Sequence[Finding]) -> dict[str, Any]:
    """What survey.html shows, beside the figures: findings, strips of pictures, and the functions that draw."""
    return {
        "figures": figures,
        "findings": findings,
        "strips": strips(content),
        "number": number,
        "histogram": histogram,
        "course": course,
        "gripper_rows": gripper_rows,
        "idle_bars": idle_bars,
        "size": size,
        "most_rows": MOST_ROWS,
    }


def strips(content: Content) -> dict[str, list[dict[str, Any]]]:
    """For each view the episodes whose pictures are shown, with their steps and pictures as data: URLs."""
    return {
        view: [
            {
                "episode": one.index,
                "instruction": one.instructions[0] if one.instructions else "",
                "pictures": [
                    {"step": step, "url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}
                    for step, data in zip(one.pictures[view].steps, one.pictures[view].thumbnails, strict=True)
                ],
            }
            for one in content.episodes
            if view in one.pictures and one.pictures[view].thumbnails
        ]
        for view in content.places.views
    }


def number(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    if value is None:
        return "–"
    whole = abs(value) >= 1000 and float(value).is_integer()
    return (f"{value:.0f}" if whole else f"{value:.{DIGITS}g}").replace("-", "−")


def size(num_bytes: int) -> str:
    """Bytes in the unit that fits."""
    amount, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"


def histogram(counts: Sequence[int], low: float, high: float, marks: Sequence[float] = ()) -> Markup:
    """Bars, and a line at each mark; the axis goes from low to high."""
    most, width = max([*counts, 1]), 320 / max(len(counts), 1)
    bars = "".join(
        f'<rect x="{place * width:.1f}" y="{48 * (1 - (count / most) ** 0.5):.1f}" width="{width - 1:.1f}" '
        f'height="{48 * (count / most) ** 0.5:.1f}"/>'
        for place, count in enumerate(counts)
        if count
    )
    span = high - low or 1.0
    lines = "".join(_line(320 * (mark - low) / span) for mark in marks if low <= mark <= high)
    return _svg(320, 50, f'<g class="bars-of">{bars}</g>{lines}<line class="axis" x1="0" y1="49" x2="320" y2="49"/>')


def _line(x: float) -> str:
    return f'<line class="mark" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="49"/>'


def course(quantiles: Sequence[Sequence[float]]) -> Markup:
    """A band between the first and the last of three rows of numbers, and a line along the one in the middle."""
    if not quantiles:
        return Markup("")
    low, high = min(quantiles[0]), max(quantiles[2])
    span = high - low or 1.0

    def points(row: Sequence[float]) -> list[str]:
        return [f"{320 * k / (len(row) - 1):.1f},{47 - 44 * (y - low) / span:.1f}" for k, y in enumerate(row)]

    band = " ".join([*points(quantiles[2]), *reversed(points(quantiles[0]))])
    middle = " ".join(points(quantiles[1]))
    return _svg(320, 50, f'<polygon class="band" points="{band}"/><polyline class="middle" points="{middle}"/>')


def gripper_rows(episodes: Sequence[dict[str, Any]]) -> Markup:
    """A row an episode, its length to scale: open thin, closed thick."""
    rows, height = list(episodes)[:MOST_ROWS], 6
    longest = max([row["num_steps"] for row in rows], default=1)
    drawn = []
    for place, row in enumerate(rows):
        y, scale = place * height, 600 / max(longest, 1)
        drawn.append(f'<rect class="open" x="0" y="{y + 2}" width="{row["num_steps"] * scale:.1f}" height="1"/>')
        for start, end in closed_spans(row):
            x, width = start * scale, max((end - start) * scale, 1)
            drawn.append(f'<rect class="closed" x="{x:.1f}" y="{y + 0.5}" width="{width:.1f}" height="4"/>')
    return _svg(600, max(len(rows), 1) * height, "".join(drawn), fixed=True)


def closed_spans(row: dict[str, Any]) -> list[tuple[int, int]]:
    """From which step to which a gripper is closed."""
    starts = ([0] if row["starts_closed"] else []) + row["closings"]
    ends = row["openings"] + [row["num_steps"]]
    return [(start, next(end for end in ends if end > start)) for start in starts if start < row["num_steps"]]


def idle_bars(idle: dict[str, Any]) -> Markup:
    """A bar an episode: the share of its steps that are idle at the beginning, inside and at the end."""
    total = len(idle["episodes"])
    step = max(1, -(-total // 200))
    places = list(range(0, total, step))
    width, drawn = 600 / max(len(places), 1), []
    for column, place in enumerate(places):
        count = idle["at_start"][place] + idle["inside"][place] + idle["at_end"][place]
        whole = count / idle["per_episode"][place] if idle["per_episode"][place] else 1.0
        y = 60.0
        for name in ("at_start", "inside", "at_end"):
            height = 60 * idle[name][place] / whole
            y -= height
            x = column * width
            drawn.append(
                f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width * 0.85:.1f}" height="{height:.1f}"/>'
            )
    return _svg(600, 61, "".join(drawn) + '<line class="axis" x1="0" y1="60.5" x2="600" y2="60.5"/>')


def _svg(width: int, height: int, inside: str, fixed: bool = False) -> Markup:
    style = f' style="height:{height}px"' if fixed else ""
    return Markup(
        f'<svg class="plot"{style} viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f"{inside}</svg>"
    )
