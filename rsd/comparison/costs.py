"""What candidates cost on the episodes that all of them have, and who is on the Pareto front of success and cost.

What surprises first: a cost is that of a *solved* episode: everything that was run for these episodes, failures too,
divided by those that were solved. Whoever is quick and fails pays for it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd.comparison.candidates import Candidate, EpisodeKey
from rsd.evaluation.statistics import summarize_success, summarize_work
from rsd.types import EpisodeResult

COSTS = {  # what a cost is called here, and its counter of work: who never asks the base model shows it no picture
    "model_ms": "model_ms",
    "base_calls": "vision_calls",
    "base_layers": "base_layers",
}
GOAL = 0.5  # of the reference's base calls and base layers: what an acceleration is built for


def summarize_costs(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Success and costs of candidates on the same episodes.

    Returns:
        num_episodes (that all have and in none of them crashed), candidates (a record for each: letter,
        `summarize_success` of these episodes, steps_to_success (mean control steps of the solved ones), calls (of the
        policy), model_ms, base_calls and base_layers, each a solved episode, early_exit_share (of its chunks), jerk
        (mean over the episodes); None where not recorded, or nothing is solved), fronts (of each of COSTS the letters
        of its Pareto front, by rising cost).
    """
    shared = common_episodes(candidates)
    rows = [{"letter": c.letter, **_costs(results)} for c, results in zip(candidates, shared, strict=True)]
    return {
        "num_episodes": len(shared[0]),
        "candidates": rows,
        "fronts": {cost: pareto_front(rows, cost) for cost in COSTS},
    }


def common_episodes(candidates: Sequence[Candidate]) -> list[list[EpisodeResult]]:
    """Of each candidate the episodes that all of them have, without those that crashed in one of them."""
    by_seed = any(len(candidate.runs) > 1 for candidate in candidates)
    episodes = [candidate.episodes(by_seed) for candidate in candidates]
    keys: set[EpisodeKey] = set.intersection(*(set(own) for own in episodes))
    kept = [key for key in sorted(keys) if all(own[key].error is None for own in episodes)]
    return [[own[key] for key in kept] for own in episodes]


def pareto_front(rows: Sequence[dict[str, Any]], cost: str) -> list[str]:
    """Letters of the rows that no other one beats: none is as good in both of success and cost, and better in one."""
    known = [row for row in rows if row[cost] is not None and row["success_rate"] is not None]

    def beaten(row: dict[str, Any]) -> bool:
        return any(
            other["success_rate"] >= row["success_rate"]
            and other[cost] <= row[cost]
            and (other["success_rate"], other[cost]) != (row["success_rate"], row[cost])
            for other in known
        )

    return [row["letter"] for row in sorted(known, key=lambda row: row[cost]) if not beaten(row)]


def work_shares(pairs: Sequence[tuple[Any, EpisodeResult, EpisodeResult]]) -> dict[str, float | None]:
    """Base calls and base layers of the second runs of pairs as a share of the first's; None: not recorded, or 0."""
    shares: dict[str, float | None] = {}
    for cost in ("base_calls", "base_layers"):
        totals = [_total([pair[side] for pair in pairs], COSTS[cost]) for side in (1, 2)]
        shares[cost] = totals[1] / totals[0] if totals[0] and totals[1] is not None else None
    return shares


def steps_where_both_solve(pairs: Sequence[tuple[Any, EpisodeResult, EpisodeResult]]) -> list[float] | None:
    """Mean control steps of reference and other over the pairs that both solve; None without one."""
    both = [(first.num_steps, second.num_steps) for _, first, second in pairs if first.success and second.success]
    if not both:
        return None
    return [sum(steps) / len(both) for steps in zip(*both, strict=True)]


def early_exits_from(results: Sequence[EpisodeResult], step: int) -> float | None:
    """Share of the chunks asked for from a control step on that were decided early; None where there are none."""
    asked = sum(one >= step for result in results for one in result.chunk_steps)
    early = sum(one >= step for result in results for one in result.exit_steps)
    return early / asked if asked else None


def _costs(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    work = summarize_work(results)
    counters = {counter["counter"]: counter["per_solved_episode"] for counter in work["counters"]}
    steps = [result.num_steps for result in results if result.success]
    jerks = [result.jerk for result in results if result.jerk is not None]
    return {
        **summarize_success(results),
        "steps_to_success": sum(steps) / len(steps) if steps else None,
        "calls": work["num_chunks"] / len(steps) if steps else None,
        "early_exit_share": work["early_exit_share"],
        **{cost: counters[counter] for cost, counter in COSTS.items()},
        "jerk": sum(jerks) / len(jerks) if len(jerks) == len(results) and jerks else None,
    }


def _total(results: Sequence[EpisodeResult], counter: str) -> float | None:
    known = [result.stats[counter] for result in results if counter in result.stats]
    return float(sum(known)) if len(known) == len(results) else None
