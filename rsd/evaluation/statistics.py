"""Success rates with their intervals.

An episode that crashed says nothing about the policy: it is counted in num_errors and in no rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rsd.types import EpisodeResult

CONFIDENCE = 0.95
COUNTERS = {  # of work, as they stand in `EpisodeResult.stats`: what a reader calls them
    "base_layers": "Base model layers",
    "vision_calls": "Vision calls",
    "pictures_prepared": "Pictures prepared",
    "visual_tokens": "Visual tokens",
    "draft_passes": "Draft passes",
    "target_passes": "Target passes",
    "corrections": "Corrections of late chunks",
    "model_ms": "Model milliseconds",
}


def wilson_interval(num_success: int, num_trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a success probability; (0, 1) when nothing was tried."""
    if num_trials == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest  # a second to import, which --help does not wait for

    interval = binomtest(num_success, num_trials).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def summarize_success(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Counts, rate and Wilson interval of some episodes.

    Returns:
        num_episodes (all), num_errors, num_success, success_rate (of the episodes without error; None when there is
        none), success_low, success_high (95 % Wilson interval).
    """
    num_errors = sum(result.error is not None for result in results)
    num_success = sum(result.success for result in results)
    num_trials = len(results) - num_errors
    low, high = wilson_interval(num_success, num_trials)
    return {
        "num_episodes": len(results),
        "num_errors": num_errors,
        "num_success": num_success,
        "success_rate": num_success / num_trials if num_trials else None,
        "success_low": low,
        "success_high": high,
    }


def summarize_tasks(results: Sequence[EpisodeResult]) -> list[dict[str, Any]]:
    """`summarize_success` for each task, with suite, task_id, instruction and mean steps of the successes."""
    tasks = []
    for task_id in sorted({result.task_id for result in results}):
        own = [result for result in results if result.task_id == task_id]
        steps = [result.num_steps for result in own if result.success]
        tasks.append(
            {
                "suite": own[0].suite,
                "task_id": task_id,
                "instruction": own[0].instruction,
                **summarize_success(own),
                "mean_steps_of_successes": sum(steps) / len(steps) if steps else None,
            }
        )
    return tasks


def summarize_seeds(runs: Sequence[tuple[int | None, Sequence[EpisodeResult]]]) -> dict[str, Any]:
    """Several runs that differ in nothing but their seed.

    Two intervals, because they answer two questions. The pooled one treats all episodes of all seeds as independent and
    says how well the success rate of this policy is known; as seeds share their init states, it is rather too narrow.
    The one over seeds is Student's and says what another seed would change; with two or three seeds it is wide. Neither
    speaks of training seeds, unless that is what the seed is.

    Args:
        runs: (seed, its episodes), at least one with an episode that did not crash.

    Returns:
        seeds (list of seed and `summarize_success`), mean (of the seeds' rates), std (between seeds, n - 1; None for
        one), mean_low, mean_high (95 %, Student; None for one seed), pooled (`summarize_success` of all episodes).
    """
    seeds = [{"seed": seed, **summarize_success(results)} for seed, results in runs]
    rates = np.array([seed["success_rate"] for seed in seeds if seed["success_rate"] is not None])
    mean, spread = float(rates.mean()), None
    low = high = None
    if len(rates) > 1:
        spread = float(rates.std(ddof=1))
        from scipy.stats import t

        half = float(t.ppf((1 + CONFIDENCE) / 2, len(rates) - 1)) * spread / len(rates) ** 0.5
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    pooled = summarize_success([result for _, results in runs for result in results])
    return {"seeds": seeds, "mean": mean, "std": spread, "mean_low": low, "mean_high": high, "pooled": pooled}


def summarize_decoding(totals: dict[str, Any]) -> dict[str, Any]:
    """Acceptance and work per chunk from the summed counters of the decoding.

    Args:
        totals: Sums over all episodes of `EpisodeResult.stats`. Optional there: accepted_tokens and checked_tokens,
            [Q] each, from which the acceptance per token and the number of drafted stages follow.

    Returns:
        has_tokens (False for a continuous decoding: no accept_counts, or an empty list, and no pass of draft or target;
        then nothing else but num_chunks), num_chunks,
        target_passes_per_chunk, draft_passes_per_chunk, proposed_stages, accepted_stages, acceptance_rate (accepted ÷
        proposed stages, None when nothing was proposed), accept_counts (entry n: first proposals with exactly n leading
        stages accepted), stages (see `_stage_rates`).
    """
    num_chunks = totals.get("num_chunks", 0)
    if not num_chunks or not any(totals.get(name) for name in ("accept_counts", "target_passes", "draft_passes")):
        return {"has_tokens": False, "num_chunks": num_chunks}
    proposed, accepted = totals.get("proposed_stages", 0), totals.get("accepted_stages", 0)
    return {
        "has_tokens": True,
        "num_chunks": num_chunks,
        "target_passes_per_chunk": totals.get("target_passes", 0) / num_chunks,
        "draft_passes_per_chunk": totals.get("draft_passes", 0) / num_chunks,
        "proposed_stages": proposed,
        "accepted_stages": accepted,
        "acceptance_rate": accepted / proposed if proposed else None,
        "accept_counts": totals.get("accept_counts", []),
        "stages": _stage_rates(totals),
    }


def summarize_work(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """What was run for the chunks, crashed episodes included.

    Returns:
        num_chunks, num_success, early_exit_share (chunks that ended before the base model's end ÷ chunks),
        drafted_steps_per_chunk, late_steps_per_chunk (see `rsd.work.Work`), counters: a
        record for each of COUNTERS with counter, label, total, per_chunk, per_solved_episode (everything that was run,
        failures too, ÷ solved episodes). None where an episode did not record it, or there is nothing to divide by.
    """
    acted = [result for result in results if result.stats.get("num_chunks")]
    num_chunks = sum(result.stats["num_chunks"] for result in acted)
    num_success = sum(result.success for result in results)
    counters = []
    for counter, label in COUNTERS.items():
        if counter == "corrections" and not any(counter in result.stats for result in acted):
            continue  # only who corrects counts that
        total = _total(acted, counter)
        counters.append(
            {
                "counter": counter,
                "label": label,
                "total": total,
                "per_chunk": None if total is None else total / num_chunks,
                "per_solved_episode": total / num_success if total is not None and num_success else None,
            }
        )
    early_exits = _total(acted, "early_exits")
    of_the_draft = {name: _total(acted, name) for name in ("drafted_steps", "late_steps")}
    return {
        "num_chunks": num_chunks,
        "num_success": num_success,
        "early_exit_share": None if early_exits is None else early_exits / num_chunks,
        **{f"{name}_per_chunk": None if n is None else n / num_chunks for name, n in of_the_draft.items()},
        "counters": counters,
    }


def summarize_delay(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """How late actions were, crashed episodes included.

    Returns:
        num_steps, num_still (of them, those in which the robot stood still because no chunk was there), still_share
        (None without steps), age_mean and age_max (control steps from the picture that an executed action came of to
        the action; None where an episode with steps did not record it).
    """
    num_steps = sum(result.num_steps for result in results)
    num_still = sum(result.num_still for result in results)
    recorded = all(result.action_ages for result in results if result.num_steps > result.num_still)
    ages = [(age, count) for result in results for age, count in enumerate(result.action_ages) if count]
    num_executed = sum(count for _, count in ages)
    told = bool(recorded and num_executed)
    return {
        "num_steps": num_steps,
        "num_still": num_still,
        "still_share": num_still / num_steps if num_steps else None,
        "age_mean": sum(age * count for age, count in ages) / num_executed if told else None,
        "age_max": max(age for age, _ in ages) if told else None,
    }


def summarize_bounds(results: Sequence[EpisodeResult], action_names: Sequence[str]) -> dict[str, Any] | None:
    """What was certified of the chunks: how far an action can be off, see `rsd.types.Code.bound`.

    Args:
        action_names: See `Task`; empty when nobody knows, and then dims have their numbers.

    Returns:
        num_chunks, num_bounded (chunks that have a bound), bounded_share, max (over dims and chunks), dims: a record
        for each action dim with dim, mean and max over the bounded chunks. None where no chunk has one.

    Raises:
        ValueError: the episodes' bounds are of different numbers of action dims.
    """
    bounds = [bound for result in results for bound in result.bounds if bound is not None]
    if not bounds:
        return None
    if len(widths := {len(bound) for bound in bounds}) > 1:
        raise ValueError(f"bounds are of {sorted(widths)} action dims, expected the same in every episode")
    array = np.array(bounds)  # [N, A]
    names = action_names if len(action_names) == array.shape[1] else [str(dim) for dim in range(array.shape[1])]
    num_chunks = sum(result.stats.get("num_chunks", 0) for result in results)
    return {
        "num_chunks": num_chunks,
        "num_bounded": len(bounds),
        "bounded_share": len(bounds) / num_chunks,
        "max": float(array.max(initial=0.0)),
        "dims": [
            {"dim": name, "mean": float(own.mean()), "max": float(own.max())}
            for name, own in zip(names, array.T, strict=True)
        ],
    }


def _total(acted: Sequence[EpisodeResult], counter: str) -> float | None:
    """Sum of a counter over episodes with chunks; None when one of them did not record it."""
    if counter == "model_ms":
        values = [result.model_ms or None for result in acted]
    else:
        values = [result.stats.get(counter) for result in acted]
    recorded = [value for value in values if value is not None]
    return sum(recorded) if recorded and len(recorded) == len(values) else None


def _stage_rates(totals: dict[str, Any]) -> list[dict[str, Any]]:
    """For each drafted stage n: how often all stages before n were accepted (reached), how often n was too (accepted),
    their quotient (rate, None when never reached), and the share of accepted tokens (token_rate, None when unknown)."""
    counts = totals.get("accept_counts", [])  # [Q + 1]
    tokens = totals.get("checked_tokens")
    if tokens is not None:
        num_stages = sum(count > 0 for count in tokens)
    else:  # the deepest acceptance seen; stages that were drafted but never accepted cannot be told from undrafted ones
        num_stages = max((n for n, count in enumerate(counts) if count), default=0)
        num_stages = max(num_stages, 1) if sum(counts) else 0
    stages = []
    for stage in range(1, num_stages + 1):
        reached, accepted = sum(counts[stage - 1 :]), sum(counts[stage:])
        checked = tokens[stage - 1] if tokens else 0
        stages.append(
            {
                "stage": stage,
                "reached": reached,
                "accepted": accepted,
                "rate": accepted / reached if reached else None,
                "token_rate": totals["accepted_tokens"][stage - 1] / checked if checked else None,
            }
        )
    return stages
