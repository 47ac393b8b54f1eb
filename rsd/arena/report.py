"""The arena's one table as csv and markdown, its page, and error against bits as a plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd.evaluation.page import MISSING, format_number, render_page

HERE = Path(__file__).parent
COLUMNS = (  # of report.csv, a row for each suite, contestant and depth
    "suite", "contestant", "idea", "depth", "num_stages", "total_tokens", "total_bits", "tokens", "longest", "bits",
    "entropy", "perplexity", "mean_mm", "max_mm", "mean_deg", "max_deg", "gripper_errors", "bound_mm", "tail_mm",
    "bound_deg", "tail_deg", "encode_per_s", "decode_per_s", "encode_ratio", "decode_ratio", "num_success",
    "num_episodes", "success_rate", "success_low", "success_high",
)  # fmt: skip
SHOWN = {  # of the markdown and the page: heading → how a row says it
    "tokens": lambda row: format_number(row["total_tokens"], 0 if row["total_tokens"] % 1 == 0 else 1),
    "bits": lambda row: format_number(row["total_bits"], 0),
    "entropy": lambda row: format_number(row["entropy"], 0),
    "perplexity": lambda row: format_number(row["perplexity"], 1),
    "mean mm": lambda row: _short(row["mean_mm"]),
    "max mm": lambda row: _short(row["max_mm"]),
    "mean °": lambda row: _short(row["mean_deg"]),
    "max °": lambda row: _short(row["max_deg"]),
    "gripper %": lambda row: format_number(100 * row["gripper_errors"], 2),
    "tail mm": lambda row: f"{_short(row['tail_mm'])} ≤ {_short(row['bound_mm'])}",
    "tail °": lambda row: f"{_short(row['tail_deg'])} ≤ {_short(row['bound_deg'])}",
    "encoded / s": lambda row: format_number(row["encode_per_s"], 0),
    "decoded / s": lambda row: format_number(row["decode_per_s"], 0),
    "× ResidualFSQ": lambda row: _ratios(row),
    "solved": lambda row: _solved(row),
}
COLOURS = ("#2b6a9b", "#c1602f", "#3d8f5f", "#8a5fb0", "#b08a1e", "#c04f7e", "#4aa3a8", "#7b6a58", "#5566cc", "#888888")
SIZE, LEFT, RIGHT, TOP, BOTTOM = 360, 46, 352, 10, 200  # of a plot and its axes


def _short(value: float | None) -> str:
    """Three digits; a dash for None."""
    return MISSING if value is None else "0" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ratios(row: Mapping[str, Any]) -> str:
    if row["encode_ratio"] is None:
        return MISSING
    return f"{row['encode_ratio']:.1f} / {row['decode_ratio']:.1f}"


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
            timed, stages = one["throughput"], one["throughput"].get("quantizer", {})
            for record in one["depths"]:
                known = {"suite": suite, "contestant": name, "idea": one["idea"], "num_stages": len(one["depths"])}
                known |= {key: timed[key] for key in ("encode_per_s", "decode_per_s")}
                known |= {f"{way}_ratio": stages[way]["ratio"] for way in ("encode", "decode") if way in stages}
                known |= record | arms.get(arm_of(name, record["depth"], len(one["depths"])), {})
                rows.append({column: known.get(column) for column in COLUMNS})
    return rows


def arm_of(name: str, depth: int, num_stages: int) -> str:
    """Name of what is replayed."""
    return f"{name} {depth}/{num_stages}"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """report.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """A row as people read it, without its suite."""
    return [row["contestant"], f"{row['depth']}/{row['num_stages']}", *(said(row) for said in SHOWN.values())]


def as_markdown(report: Mapping[str, Any]) -> str:
    """report.md: a table a suite."""
    lines: list[str] = []
    header = ["contestant", "depth", *SHOWN]
    for suite in report["suites"]:
        lines += [
            f"**{suite}**: {controls(report, suite)}",
            "",
            f"| {' | '.join(header)} |",
            "|---" * len(header) + "|",
        ]
        own = [row for row in rows_of(report) if row["suite"] == suite]
        lines += [f"| {' | '.join(cells_of(row))} |" for row in own] + [""]
    return "\n".join(lines + [f"Left out: `{name}`: {why}" for name, why in report["left_out"].items()]) + "\n"


def controls(report: Mapping[str, Any], suite: str) -> str:
    """What was measured on, and what the controls did, in a line."""
    part = report["suites"][suite]
    text = f"fitted on {part['num_fit_episodes']} demonstrations ({part['num_fit_chunks']} chunks), measured on "
    text += f"{part['num_held_episodes']} others ({part['num_held_chunks']} chunks)"
    for arm in part["replays"]:
        if arm["arm"] in ("raw", "normalised"):
            text += f"; {arm['arm']} {_solved(arm)}"
    return text + f"; normalising alone cuts off {_short(part['normalised']['mean_mm'])} mm on average"


def plot(rows: Sequence[Mapping[str, Any]], suite: str) -> str:
    """SVG of mean error, mm, against bits of a chunk, both logarithmic; a line a contestant, a point a depth."""
    own = [row for row in rows if row["suite"] == suite and row["mean_mm"] > 0]
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
        }
        for suite in report["suites"]
    ]
    ideas = {row["contestant"]: row["idea"] for row in rows}
    header = ["contestant", "depth", *SHOWN]
    return render_page(
        "arena.html", folder=HERE, suites=suites, header=header, ideas=ideas, left_out=report["left_out"],
        plan=report["plan"],
    )  # fmt: skip
