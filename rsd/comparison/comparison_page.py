"""comparison.html: a comparison as one page that opens offline.

The grid of trials is made from the candidates themselves; everything else is in comparison.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd.comparison.candidates import Candidate
from rsd.evaluation.page import render_page
from rsd.types import EpisodeResult

WIDEST = 1000  # columns that all tasks share
COMPARISON_HTML = "comparison.html"


def render_comparison(comparison: dict[str, Any], candidates: Sequence[Candidate]) -> str:
    """The HTML page of a comparison that `build_comparison` made of these candidates."""
    bounds = [abs(value) for pair in comparison["comparisons"] for value in (pair["low"], pair["high"])]
    return render_page(
        "comparison.html",
        folder=Path(__file__).parent,
        comparison=comparison,
        suite=candidates[0].results[0].suite,
        grid=trial_grid(candidates),
        span=min(1.0, 1.1 * max([2 * comparison["margin"], *bounds])),  # half width of the graphs of differences
        latency_rows=_latency_rows(comparison["candidates"]),
    )


def trial_grid(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """For each task its episodes, as {task_id, cells: [{title, outcomes (one a candidate), discordant}]}.

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
        rows.append({"task_id": task_id, "cells": cells})
    return rows


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
