"""comparison.html: a comparison as one page that opens offline.

The grid of trials is made from the candidates themselves; everything else is in comparison.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd.comparison.candidates import Candidate, shared_episodes
from rsd.evaluation.axes import Axis
from rsd.evaluation.page import data_url, render_page
from rsd.evaluation.player import EMBEDDED_TOTAL_BYTES, EMBEDDED_VIDEO_BYTES, is_video
from rsd.types import EpisodeResult

WIDEST = 1000  # columns that all tasks share
MOST_FILMED = 6  # pairs of videos
COMPARISON_HTML = "comparison.html"
PLOTTED = {  # of costs.COSTS, what stands below the plot
    "model_ms": "model-milliseconds a solved episode",
    "base_calls": "base calls a solved episode",
    "base_layers": "base layers a solved episode",
}
HERE = Path(__file__).parent
LEFT, RIGHT, TOP, BOTTOM = 44, 348, 12, 212  # of a plot in its 360 x 250 units


def render_comparison(comparison: dict[str, Any], candidates: Sequence[Candidate]) -> str:
    """The HTML page of a comparison that `build_comparison` made of these candidates."""
    bounds = [abs(value) for pair in comparison["comparisons"] for value in (pair["low"], pair["high"])]
    return render_page(
        "comparison.html",
        folder=HERE,
        comparison=comparison,
        suite=", ".join(candidates[0].suites),
        several_suites=len(candidates[0].suites) > 1,
        grid=trial_grid(candidates),
        filmed=side_by_side(candidates),
        span=min(1.0, 1.1 * max([2 * comparison["margin"], *bounds])),  # half width of the graphs of differences
        plots=pareto_plots(comparison),
        legend=[],
        latency_rows=_latency_rows(comparison["candidates"]),
    )


def render_plots(comparison: dict[str, Any]) -> dict[str, str]:
    """The Pareto plots as files of their own: name (pareto_model_ms.svg, …) → SVG, with the candidates' names."""
    legend = [{"letter": one["letter"], "name": one["name"]} for one in comparison["candidates"]]
    return {
        f"pareto_{plot['cost']}.svg": render_page("pareto.svg", folder=HERE, plot=plot, legend=legend)
        for plot in pareto_plots(comparison)
    }


def trial_grid(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """For each task its episodes, as {suite, task_id, cells: [{title, outcomes (one a candidate), discordant}]}.

    All tasks have the same columns: the init states, and for several seeds each of them once a seed; with more than
    WIDEST of them, each task has its own. An outcome is
    "success", "failure", "error" or "missing". Discordant: some succeed and some fail.
    """
    by_seed = any(len(candidate.runs) > 1 for candidate in candidates)
    episodes = [candidate.episodes(by_seed) for candidate in candidates]
    keys = set().union(*episodes)
    columns = sorted({(init_state_id, seed) for _, _, init_state_id, seed in keys})
    rows = []
    for suite, task_id in sorted({key[:2] for key in keys}):
        cells = []
        own_columns = sorted(key[2:] for key in keys if key[:2] == (suite, task_id))
        for init_state_id, seed in columns if len(columns) <= WIDEST else own_columns:
            outcomes = [_outcome(own.get((suite, task_id, init_state_id, seed))) for own in episodes]
            place = f"init state {init_state_id}" + (f", seed {seed}" if by_seed else "")
            told = ", ".join(f"{c.letter} {outcome}" for c, outcome in zip(candidates, outcomes, strict=True))
            discordant = {"success", "failure"} <= set(outcomes)
            cells.append({"title": f"{place}: {told}", "outcomes": outcomes, "discordant": discordant})
        rows.append({"suite": suite, "task_id": task_id, "cells": cells})
    return rows


def side_by_side(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Episodes that the reference and another candidate have videos of, those that only one of them solved first.

    Returns:
        title, videos ({letter, outcome, num_steps, source: a data: URL} of the two); at most MOST_FILMED, and as many
        as the page has room for. Videos that are too large to stand in a page are left out.
    """
    reference, *others = candidates
    found = []
    for other in others:
        for key, *pair in shared_episodes(reference, other):
            paths = [_video(one, result) for one, result in zip((reference, other), pair, strict=True)]
            there = [path for path in paths if path is not None]
            if len(there) == len(paths):
                found.append((pair[0].success == pair[1].success, key, (reference, other), pair, there))
    shown, room = [], EMBEDDED_TOTAL_BYTES
    for _, key, both, pair, there in sorted(found, key=lambda one: one[:2])[:MOST_FILMED]:
        room -= sum(path.stat().st_size * 4 // 3 for path in there)
        if room < 0:
            break
        videos = [
            {
                "letter": candidate.letter,
                "outcome": _outcome(result),
                "num_steps": result.num_steps,
                "source": data_url(path, "video/mp4"),
            }
            for candidate, result, path in zip(both, pair, there, strict=True)
        ]
        shown.append({"title": f"{key[0]} task {key[1]}, init state {key[2]}: {pair[0].instruction}", "videos": videos})
    return shown


def _video(candidate: Candidate, result: EpisodeResult) -> Path | None:
    """The video of an episode, where there is one that a page has room for."""
    run = next(run for run in candidate.runs if any(one is result for one in run.results))
    if result.video is None or not is_video(run.path, result.video):
        return None
    path = run.path / result.video
    return path if path.stat().st_size <= EMBEDDED_VIDEO_BYTES else None


def pareto_plots(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Success against each cost, as places in an SVG: {cost, label, points, front, x_ticks, y_ticks, missing}.

    A point is {letter, x, y, y_low, y_high (its 95 % interval), title, on_front, is_reference}; front is the polyline
    of its points; ticks are {place, text}; missing are the letters of candidates that cannot be shown. Milliseconds
    are left out where latencies are not comparable.
    """
    rows = comparison["costs"]["candidates"]
    plots = []
    for cost, label in PLOTTED.items():
        shown = [row for row in rows if row[cost] is not None and row["success_rate"] is not None]
        if not shown or (cost == "model_ms" and comparison["latency_note"]):
            continue
        x = Axis(0.0, 1.08 * max(row[cost] for row in shown) or 1.0, LEFT, RIGHT)
        y = Axis(min(0.9, min(row["success_low"] for row in shown)), 1.0, BOTTOM, TOP)
        front = comparison["costs"]["fronts"][cost]
        points = [
            {
                "letter": row["letter"],
                "x": x.at(row[cost]),
                "y": y.at(row["success_rate"]),
                "y_low": y.at(row["success_low"]),
                "y_high": y.at(row["success_high"]),
                "title": f"{row['letter']}: {100 * row['success_rate']:.1f} %, {row[cost]:.4g} {label}",
                "on_front": row["letter"] in front,
                "is_reference": row["letter"] == rows[0]["letter"],
            }
            for row in shown
        ]
        places = {point["letter"]: point for point in points}
        plots.append(
            {
                "cost": cost,
                "label": label,
                "points": points,
                "front": " ".join(f"{places[letter]['x']},{places[letter]['y']}" for letter in front),
                "x_ticks": [{"place": x.at(tick), "text": f"{tick:g}"} for tick in x.ticks],
                "y_ticks": [{"place": y.at(tick), "text": f"{100 * tick:g}"} for tick in y.ticks],
                "missing": [row["letter"] for row in rows if row["letter"] not in places],
            }
        )
    return plots


def _outcome(result: EpisodeResult | None) -> str:
    if result is None:
        return "missing"
    if result.error is not None:
        return "error"
    return "success" if result.success else "failure"


def _latency_rows(candidates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of all candidates in the order of appearance, the total last; None where a candidate lacks one."""
    found = [{part["part"]: part for part in c["latency"]["parts"]} for c in candidates]
    parts = list(dict.fromkeys(name for own in found for name in own))
    rows = [{"part": part, "values_ms": [own.get(part) for own in found]} for part in parts]
    return [*rows, {"part": "Total", "values_ms": [c["latency"]["total"] for c in candidates]}]
