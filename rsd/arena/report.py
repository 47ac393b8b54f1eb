"""The arena's one table as csv and markdown, its page, and error against bits as a plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd.arena.replaying import CONTROLS, arm_of
from rsd.evaluation.page import MISSING, format_number, render_page

HERE = Path(__file__).parent
COLUMNS = (  # of report.csv, a row for each suite, contestant and depth
    "suite", "contestant", "idea", "depth", "num_stages", "total_tokens", "total_bits", "tokens", "longest", "bits",
    "entropy", "perplexity", "mean_mm", "max_mm", "mean_deg", "max_deg", "gripper_errors", "bound_mm", "tail_mm",
    "bound_deg", "tail_deg", "encode_per_s", "decode_per_s", "encode_ratio", "decode_ratio", "num_success",
    "num_episodes", "success_rate", "success_low", "success_high", "left_out",
)  # fmt: skip
WAYS = ("encode", "decode")
SHOWN = {  # of the markdown and the page: heading → how a row says it
    "tokens": lambda row: format_number(row["total_tokens"], 0 if row["total_tokens"] % 1 == 0 else 1),
    "bits": lambda row: format_number(row["total_bits"], 0),
    "entropy": lambda row: format_number(row["entropy"], 0),
    "perplexity": lambda row: format_number(row["perplexity"], 1),
    "mm mean / max": lambda row: _both(row, "mean_mm", "max_mm"),
    "° mean / max": lambda row: _both(row, "mean_deg", "max_deg"),
    "gripper %": lambda row: format_number(100 * row["gripper_errors"], 2),
    "tail mm": lambda row: _both(row, "tail_mm", "bound_mm", " ≤ "),
    "tail °": lambda row: _both(row, "tail_deg", "bound_deg", " ≤ "),
    "1000 / s": lambda row: _ways(row, "per_s", 0, 1000),
    "× ResidualFSQ": lambda row: _ways(row, "ratio", 1),
    "solved": lambda row: _solved(row),
}
REPLAYED = ("arm", "solved", "− raw, points", "95 %", "lost", "gained")  # heading of the table of all suites
HEADER = ("contestant", "depth", *SHOWN)
COLOURS = ("#2b6a9b", "#c1602f", "#3d8f5f", "#8a5fb0", "#b08a1e", "#c04f7e", "#4aa3a8", "#7b6a58", "#5566cc", "#888888")
SIZE, LEFT, RIGHT, TOP, BOTTOM = 360, 46, 352, 10, 200  # of a plot and its axes


def _short(value: float | None) -> str:
    """Three digits; a dash for None."""
    if value is None:
        return MISSING
    return "0" if value == 0 else "<0.001" if value < 0.001 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _both(row: Mapping[str, Any], first: str, second: str, between: str = " / ") -> str:
    return f"{_short(row[first])}{between}{_short(row[second])}"


def _ways(row: Mapping[str, Any], what: str, digits: int, unit: float = 1) -> str:
    """Encoding and decoding; a dash where nothing was timed."""
    found = [row[f"{way}_{what}"] for way in WAYS]
    return MISSING if None in found else " / ".join(format_number(one / unit, digits) for one in found)


def _solved(row: Mapping[str, Any]) -> str:
    if not row["num_episodes"]:
        return MISSING
    ends = f"{100 * row['success_low']:.0f}–{100 * row['success_high']:.0f} %"
    return f"{row['num_success']}/{row['num_episodes']} ({ends})"


def rows_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table: what report.json says, flat, with None where nothing was measured."""
    rows = []
    for suite, part in report["suites"].items():
        arms = {one["arm"]: one for one in part["replays"]}
        for name, one in part["contestants"].items():
            timed = one["throughput"] or {}  # None until it is measured
            stages = timed.get("quantizer", {})
            for record in one["depths"]:
                known = {"suite": suite, "contestant": name, "idea": one["idea"], "num_stages": len(one["depths"])}
                known |= {f"{way}_per_s": timed.get(f"{way}_per_s") for way in WAYS}
                known |= {f"{way}_ratio": stages[way]["ratio"] for way in WAYS if way in stages}
                known |= record | arms.get(arm_of(name, record["depth"], len(one["depths"])), {})
                rows.append({column: known.get(column) for column in COLUMNS})
        for name, why in part.get("left_out", {}).items():
            known = {"suite": suite, "contestant": name, "left_out": why}
            rows.append({column: known.get(column) for column in COLUMNS})
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """report.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """A row as people read it, without its suite."""
    if row["left_out"]:
        return [row["contestant"], "left out", *[MISSING] * len(SHOWN)]
    return [row["contestant"], f"{row['depth']}/{row['num_stages']}", *(said(row) for said in SHOWN.values())]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def replayed_cells(report: Mapping[str, Any]) -> list[list[str]]:
    """Arms of all suites together as people read them; none where nothing was replayed."""
    rows = []
    for arm in report["pooled"]:
        cells = [arm["arm"], _solved(arm)]
        if arm.get("num_pairs"):
            middle, low, high = (_points(arm[f"difference{end}"]) for end in ("", "_low", "_high"))
            cells += [middle, f"{low} … {high}", str(arm["lost"]), str(arm["gained"])]
        rows.append([*cells, *[MISSING] * (len(REPLAYED) - len(cells))])
    return rows


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in [header, *rows]]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def as_markdown(report: Mapping[str, Any]) -> str:
    """report.md: a table a suite, and one of all replays."""
    lines: list[str] = []
    rows = rows_of(report)
    for suite in report["suites"]:
        own = [cells_of(row) for row in rows if row["suite"] == suite]
        lines += [f"**{suite}**: {controls(report, suite)}", "", *_markdown_table(HEADER, own), ""]
        lines += [f"* {note}" for note in notes(report, suite)]
    if report["pooled"]:
        lines += ["", "**all suites**", "", *_markdown_table(REPLAYED, replayed_cells(report))]
    return "\n".join(lines) + "\n"


def notes(report: Mapping[str, Any], suite: str) -> list[str]:
    """What of a suite is not there, and why."""
    part = report["suites"][suite]
    found = [f"{name} is left out: {why}" for name, why in part["left_out"].items()]
    found += [f"not replayed: {why}" for why in part["replay_failures"]]
    if part["num_other_starts"]:
        found.append(
            f"{part['num_other_starts']} demonstrations begin otherwise than recorded, and count for nothing: another "
            "simulator, or no pictures"
        )
    return found


def controls(report: Mapping[str, Any], suite: str) -> str:
    """What was measured on, and what the controls did, in a line."""
    part = report["suites"][suite]
    disturbed = f", {part['num_disturbed']} of them disturbed" if part["num_disturbed"] else ""
    text = (
        f"fitted on {part['num_fit_episodes']} demonstrations{disturbed} ({part['num_fit_chunks']} chunks), measured "
    )
    text += f"on {part['num_held_episodes']} others ({part['num_held_chunks']} chunks)"
    for arm in part["replays"]:
        if arm["arm"] in CONTROLS:
            text += f"; {arm['arm']} {_solved(arm)}"
    return text + f"; normalising alone cuts off {_short(part['normalised']['mean_mm'])} mm on average"


def plot(rows: Sequence[Mapping[str, Any]], suite: str) -> str:
    """SVG of mean error, mm, against bits of a chunk, both logarithmic; a line a contestant, a point a depth."""
    own = [row for row in rows if row["suite"] == suite and row["mean_mm"]]
    names = list(dict.fromkeys(row["contestant"] for row in own))
    x_ends, y_ends = (_ends([row[key] for row in own]) for key in ("total_bits", "mean_mm"))

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        across = (math.log10(row["total_bits"]) - x_ends[0]) / (x_ends[1] - x_ends[0])
        up = (math.log10(row["mean_mm"]) - y_ends[0]) / (y_ends[1] - y_ends[0])
        return round(LEFT + across * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)

    lines = []
    for number, name in enumerate(names):
        points = [
            (*place(row), f"{name} {row['depth']}/{row['num_stages']}") for row in own if row["contestant"] == name
        ]
        legend = (LEFT + number % 4 * 78, BOTTOM + 52 + number // 4 * 16)
        lines.append({"name": name, "colour": COLOURS[number % len(COLOURS)], "points": points, "legend": legend})
    ticks = {
        "x": [(round(LEFT + share * (RIGHT - LEFT), 1), text) for share, text in _ticks(x_ends)],
        "y": [(round(BOTTOM - share * (BOTTOM - TOP), 1), text) for share, text in _ticks(y_ends)],
    }
    height = BOTTOM + 60 + (len(names) + 3) // 4 * 16
    return render_page(
        "plot.svg", folder=HERE, suite=suite, lines=lines, ticks=ticks, width=SIZE, height=height, left=LEFT,
        right=RIGHT, top=TOP, bottom=BOTTOM,
    )  # fmt: skip


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Powers of ten a little beyond the values."""
    low, high = math.log10(min(values, default=1)), math.log10(max(values, default=1))
    margin = 0.05 * (high - low) + 0.02
    return low - margin, high + margin


def _ticks(ends: tuple[float, float]) -> list[tuple[float, str]]:
    """Shares of an axis and what stands there: 1, 2 and 5 of each power of ten, or the powers alone if many."""
    powers = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
    steps = (1, 2, 5) if ends[1] - ends[0] < 2 else (1,)
    values = [step * 10.0**power for power in powers for step in steps]
    return [
        ((math.log10(value) - ends[0]) / (ends[1] - ends[0]), f"{value:g}")
        for value in values
        if ends[0] <= math.log10(value) <= ends[1]
    ]


def page(report: Mapping[str, Any]) -> str:
    """arena.html."""
    rows = rows_of(report)
    suites = [
        {
            "name": suite,
            "controls": controls(report, suite),
            "plot": plot(rows, suite),
            "rows": [cells_of(row) for row in rows if row["suite"] == suite],
            "notes": notes(report, suite),
        }
        for suite in report["suites"]
    ]
    ideas = {row["contestant"]: row["idea"] for row in rows if row["idea"]}
    return render_page(
        "arena.html", folder=HERE, suites=suites, header=HEADER, ideas=ideas, replayed=REPLAYED,
        pooled=replayed_cells(report), plan=report["plan"],
    )  # fmt: skip
