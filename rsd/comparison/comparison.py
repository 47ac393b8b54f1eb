"""comparison.json: several evaluations side by side, each against the reference. comparison_page.py shows it.

    schema          int, this layout's version
    margin          share; the loss that was declared acceptable
    rule            str; how the verdicts come about
    candidates      list of {letter, name, runs (paths), num_missing (planned episodes without a result, or null),
                    success (statistics.summarize_success), seeds (statistics.summarize_seeds, null for one run),
                    decoding, work, busy (null, or why its milliseconds are those of a busy machine), latency, devices,
                    published (published.compare_with_published, or null)}; the first is
                    the reference
    comparisons     list of {reference, other, both, only_reference, only_other, neither, num_pairs, num_crashed,
                    num_unpaired ([reference, other]), difference (other - reference), low, high (95 %), p_value (exact
                    McNemar), verdict, induced_failures ({count, num_pairs, share, bound}: episodes that the reference
                    solved and the other failed, with the one-sided 95 % bound of Clopper and Pearson), work_shares
                    (base_calls and base_layers of the other ÷ the reference's on the same episodes, or null), goal
                    (whether both are at most costs.GOAL and the verdict is non-inferior, or null: not recorded),
                    steps_where_both_solve ([reference, other] or null), tasks, discordant}
    costs           costs.summarize_costs, over the episodes that all candidates have
    latency_note    null, or why latencies are not shown side by side
    configuration   list of {key, values}: settings of the plans that differ, one value a candidate; null: not recorded
                    by all
    provenance      the same for what the runs were made with
    notes           list of str
p-values and intervals are each for one comparison; they are not corrected for the number of comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import reduce
from typing import Any

from rsd.comparison.candidates import (
    ANY_SEED,
    Candidate,
    ComparisonError,
    Run,
    check_comparable,
    shared_episodes,
)
from rsd.comparison.costs import GOAL, early_exits_from, steps_where_both_solve, summarize_costs, work_shares
from rsd.comparison.paired import PairedCounts, difference_interval, mcnemar, noninferiority, upper_bound
from rsd.comparison.published import compare_with_published, look_up
from rsd.differences import differences
from rsd.evaluation.latency import busy_note, summarize_latency
from rsd.evaluation.seen import told_inputs
from rsd.evaluation.statistics import summarize_decoding, summarize_seeds, summarize_success, summarize_work
from rsd.types import EpisodeResult
from rsd.work import add_counts

SCHEMA = 2
FAILS_AT = re.compile(r"\bstart=(\d+)")  # of an ablation's cameras, see rsd/envs/ablations.py
COMPARISON_JSON = "comparison.json"
RULE = (
    "non-inferior: the whole 95 % interval of the difference lies above the negative margin; "
    "inferior: it lies below; otherwise undecided"
)


def build_comparison(
    candidates: Sequence[Candidate], *, margin: float, allow: Collection[str], published: dict[str, Any]
) -> dict[str, Any]:
    """The content of comparison.json; see the head of this file.

    Args:
        candidates: At least two; the first is the reference.
        margin: Largest acceptable loss of success rate, a share.
        allow: Packages whose versions may differ.
        published: `published.load_published`.

    Raises:
        ComparisonError: a candidate cannot be compared with the reference.
        ValueError: the margin is not a share.
    """
    reference, *others = candidates
    notes = [note for other in others for note in _check_suites(reference, other, allow)]
    shown = [_describe(candidate, published) for candidate in candidates]
    return {
        "schema": SCHEMA,
        "margin": margin,
        "rule": RULE,
        "candidates": shown,
        "comparisons": [_compare(reference, other, margin) for other in others],
        "costs": summarize_costs(candidates),
        "latency_note": _latency_note(candidates),
        "configuration": _differences(
            [None if run.plan is None else run.plan.settings() for run in _firsts(candidates)]
        ),
        "provenance": _differences([_made_with(run) for run in _firsts(candidates)]),
        "notes": [
            *notes,
            *_early_stops(candidates),
            *_with_broken_cameras(reference, others),
            *(line for other in others for line in _same_inputs(reference, other)),
        ],
    }


def _check_suites(reference: Candidate, other: Candidate, allow: Collection[str]) -> list[str]:
    """`check_comparable`, for several suites of each in turn."""
    if len(reference.suites) == 1 or reference.suites != other.suites:
        return check_comparable(reference, other, allow)
    pairs = [(reference.of(suite), other.of(suite)) for suite in reference.suites]
    notes = [note for first, second in pairs for note in check_comparable(first, second, allow)]
    if not shared_episodes(reference, other):
        raise ComparisonError(
            f"{reference.name} and {other.name} have other seeds; evaluate all suites with the same seed"
        )
    return notes


def _describe(candidate: Candidate, published: dict[str, Any]) -> dict[str, Any]:
    results = candidate.results
    totals: dict[str, Any] = reduce(add_counts, (result.stats for result in results), {})
    num_chunks = totals.get("num_chunks", 0)
    success = summarize_success(results)
    missing = [run.num_missing for run in candidate.runs if run.num_missing is not None]
    several, one_suite = len({run.seed for run in candidate.runs}) > 1, len(candidate.suites) == 1
    return {
        "letter": candidate.letter,
        "name": candidate.name,
        "runs": [str(run.path) for run in candidate.runs],
        "num_missing": sum(missing) if len(missing) == len(candidate.runs) else None,
        "success": success,
        "seeds": summarize_seeds([(run.seed, run.results) for run in candidate.runs]) if several else None,
        "decoding": summarize_decoding(totals),
        "work": summarize_work(results),
        "busy": next(filter(None, (run.plan and busy_note(run.plan) for run in candidate.runs)), None),
        "latency": summarize_latency(results, sum(r.num_steps for r in results) / num_chunks if num_chunks else None),
        "devices": _devices(candidate),
        "published": compare_with_published(
            published, _model(candidate.runs[0]), results[0].suite, success, _settings(candidate)
        )
        if one_suite
        else None,
    }


def _same_inputs(reference: Candidate, other: Candidate) -> list[str]:
    pairs = [(first, second) for _, first, second in shared_episodes(reference, other)]
    return told_inputs(pairs, (reference.letter, other.letter))


def _compare(reference: Candidate, other: Candidate, margin: float) -> dict[str, Any]:
    shared = shared_episodes(reference, other)
    pairs = [pair for pair in shared if pair[1].error is None and pair[2].error is None]
    counts = count_pairs(pairs)
    low, high = difference_interval(counts)
    verdict, shares = noninferiority(low, high, margin), work_shares(pairs)
    known = [share for share in shares.values() if share is not None]
    tasks = []
    for place in sorted({key[:2] for key, _, _ in pairs}):
        own = [pair for pair in pairs if pair[0][:2] == place]
        suite, task_id = place
        tasks.append(
            {"suite": suite, "task_id": task_id, "instruction": own[0][1].instruction, **_counted(count_pairs(own))}
        )
    return {
        "reference": reference.letter,
        "other": other.letter,
        **_counted(counts),
        "num_crashed": len(shared) - len(pairs),
        "num_unpaired": [len(reference.results) - len(shared), len(other.results) - len(shared)],
        "p_value": mcnemar(counts),
        "verdict": verdict,
        "induced_failures": induced_failures(counts),
        "work_shares": shares,
        "goal": verdict == "non-inferior" and max(known) <= GOAL if len(known) == len(shares) else None,
        "steps_where_both_solve": steps_where_both_solve(pairs),
        "tasks": tasks,
        "discordant": [
            {
                "suite": first.suite,
                "task_id": first.task_id,
                "init_state_id": first.init_state_id,
                "seed": None if key[3] == ANY_SEED else key[3],
                "solved_by": other.letter if second.success else reference.letter,
                "num_steps": [first.num_steps, second.num_steps],
            }
            for key, first, second in pairs
            if first.success != second.success
        ],
    }


def count_pairs(pairs: Sequence[tuple[Any, EpisodeResult, EpisodeResult]]) -> PairedCounts:
    """Outcomes of (key, reference, other) triples without errors."""
    outcomes = [(first.success, second.success) for _, first, second in pairs]
    return PairedCounts(
        both=outcomes.count((True, True)),
        only_first=outcomes.count((True, False)),
        only_second=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )


def induced_failures(counts: PairedCounts) -> dict[str, Any]:
    """Acceleration-induced failures: episodes that the reference solved and the other failed, of all pairs.

    Counted per episode, as CARE does (arXiv 2610.08917): what the other solves instead is not set off against them.
    """
    return {
        "count": counts.only_first,
        "num_pairs": counts.num_pairs,
        "share": counts.only_first / counts.num_pairs if counts.num_pairs else None,
        "bound": upper_bound(counts.only_first, counts.num_pairs),
    }


def _counted(counts: PairedCounts) -> dict[str, Any]:
    low, high = difference_interval(counts)
    return {
        "both": counts.both,
        "only_reference": counts.only_first,
        "only_other": counts.only_second,
        "neither": counts.neither,
        "num_pairs": counts.num_pairs,
        "difference": counts.difference,
        "low": low,
        "high": high,
    }


def _firsts(candidates: Sequence[Candidate]) -> list[Run]:
    return [candidate.runs[0] for candidate in candidates]


def _settings(candidate: Candidate) -> dict[str, Any]:
    """What the published settings are held against; a version that varies within the candidate is a list."""
    run = candidate.runs[0]
    settings = {} if run.plan is None else run.plan.settings()
    versions = {name: sorted({v for run in candidate.runs for v in run.versions(name)}) for name in run.score_versions}
    settings["versions"] = {name: v[0] if len(v) == 1 else v for name, v in versions.items() if v}
    settings["num_errors"] = sum(result.error is not None for result in candidate.results)
    return settings


def _model(run: Run) -> str | None:
    return None if run.plan is None else run.plan.policy.model


def _devices(candidate: Candidate) -> list[str]:
    return sorted({start["device"] for run in candidate.runs for start in run.starts})


def _with_broken_cameras(reference: Candidate, others: Sequence[Candidate]) -> list[str]:
    """Does a gate become surer when a camera fails? From the step on at which it does, on the same episodes."""
    notes = []
    for other in others:
        plan = other.runs[0].plan
        starts = None if plan is None or plan.ablation is None else FAILS_AT.search(plan.ablation)
        if plan is None or starts is None:
            continue
        step, shared = int(starts[1]), shared_episodes(reference, other)
        sides = [first for _, first, _ in shared], [second for _, _, second in shared]
        shares = [early_exits_from(results, step) for results in sides]
        before, after = ("–" if share is None else f"{share:.1%}" for share in shares)
        notes.append(
            f"{other.letter}, {plan.ablation}: from step {step} on {after} of the chunks were decided early, "
            f"{before} of {reference.letter}'s on the same episodes"
        )
    return notes


def _latency_note(candidates: Sequence[Candidate]) -> str | None:
    devices = [_devices(candidate) for candidate in candidates]
    if any(len(own) != 1 for own in devices) or len({own[0] for own in devices}) > 1:
        told = "; ".join(
            f"{c.letter}: {', '.join(own) or 'unknown'}" for c, own in zip(candidates, devices, strict=True)
        )
        return f"Latencies are not comparable: the devices are not the same ({told})."
    plans = [run.plan for candidate in candidates for run in candidate.runs]
    workers = [None if plan is None else plan.num_workers for plan in plans]
    if len(set(workers)) > 1:
        return f"Latencies are not comparable: numbers of worker processes differ ({workers})."
    return None


def _made_with(run: Run) -> dict[str, Any] | None:
    """Choices of config groups and the last start, without its time."""
    if run.provenance is None:
        return None
    start = {name: value for name, value in run.starts[-1].items() if name != "time"}
    return {"choices": run.provenance["choices"], **start}


def _differences(nodes: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]] | None:
    """Dotted keys whose value is not the same for all; None when one side has nothing recorded."""
    recorded = [node for node in nodes if node is not None]
    if len(recorded) < len(nodes):
        return None
    reference, *others = recorded
    keys = sorted({one.key for other in others for one in differences(reference, other)})
    return [{"key": key, "values": [look_up(node, key) for node in recorded]} for key in keys]


def _early_stops(candidates: Sequence[Candidate]) -> list[str]:
    stopped = [c.letter for c in candidates if any(run.plan and run.plan.stopping for run in c.runs)]
    if not stopped:
        return []
    return [
        f"{', '.join(stopped)} ran with a stopping rule: intervals and p-values here assume a number of episodes that "
        "was fixed beforehand; see rsd.evaluation.sequential for an interval that does not"
    ]
