"""A gate's threshold with a promise in closed loop: of the episodes, few are lost because of the acceleration.

An acceleration-induced failure is an episode that the reference solves and the accelerated policy fails, from the same
init state. Thresholds are looked at from the strictest on, each by its one-sided bound of Clopper and Pearson, until
one's is above the risk (fixed-sequence testing). With probability 1 - delta the threshold that comes out loses at most
that share of episodes like these. What surprises first: which thresholds there are has to be decided before the
episodes are run, and the episodes have to be others than those that are reported later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from rsd.comparison.candidates import Candidate, ComparisonError, Run, check_comparable, shared_episodes
from rsd.comparison.comparison import count_pairs, induced_failures
from rsd.comparison.paired import upper_bound
from rsd.errors import SettingError
from rsd.evaluation.plan import Plan
from rsd.evaluation.statistics import summarize_work

REFERENCE = "l1"  # the decoding that skips nothing
MOST = 100_000  # episodes that anybody would run


@dataclass(frozen=True)
class Arm:
    """One threshold in closed loop.

    Attributes:
        threshold: Of the gate.
        coverage: Share of its chunks that were decided before the base model's end.
        num_failures: Episodes that the reference solved and this one failed.
        num_episodes: Pairs of episodes.
        bound: Largest failure probability at which so few failures still happen with probability delta.
    """

    threshold: float
    coverage: float
    num_failures: int
    num_episodes: int
    bound: float


def arms(runs: Sequence[Run], delta: float) -> list[Arm]:
    """What every threshold lost, the strictest first.

    Args:
        runs: Of one policy: for each suite one of the decoding l1, and one of the gated decoding for each threshold.
        delta: Probability that a bound is not kept.

    Raises:
        ComparisonError: a run is not finished, of another kind, or not to be compared with its reference; or a suite
            lacks a threshold or its reference.
    """
    references: dict[str, Run] = {}
    gated: dict[float, dict[str, Run]] = {}
    for run in runs:
        plan = _finished(run)
        if plan.policy.decoding == REFERENCE:
            _keep(references, plan.suite, run, f"decoding {REFERENCE}")
        else:
            threshold = threshold_of(run)
            _keep(gated.setdefault(threshold, {}), plan.suite, run, f"threshold {threshold:g}")
    if not references or not gated:
        raise ComparisonError(
            f"the runs are {len(references)} of decoding {REFERENCE} and {sum(map(len, gated.values()))} of a gate, "
            "expected one of each at least: the reference, and one run for each threshold"
        )
    for threshold, found in gated.items():
        if different := sorted(found.keys() ^ references.keys()):
            raise ComparisonError(
                f"threshold {threshold:g} and decoding {REFERENCE} were not run on the same suites: "
                f"{', '.join(different)} is of one of them alone; run the other one, too"
            )
    return [_arm(threshold, gated[threshold], references, delta) for threshold in sorted(gated, reverse=True)]


def loosest(found: Sequence[Arm], *, risk: float, delta: float) -> Arm:
    """The loosest threshold that keeps the promise.

    Args:
        found: `arms`.
        risk: Largest probability of an acceleration-induced failure.

    Raises:
        SettingError: there are too few episodes for any promise of the kind, or none keeps it; it says how many would
            do.
    """
    strictest, kept = found[0], None
    if strictest.num_episodes < (needed := enough(risk, delta) or MOST):
        raise SettingError(
            f"{strictest.num_episodes} episodes are too few: a risk of {risk:g} with delta {delta:g} takes {needed} at "
            "least, when no failure is induced in any; run more, or promise less"
        )
    for arm in found:
        if arm.bound > risk:
            break
        kept = arm
    if kept is not None:
        return kept
    share = strictest.num_failures / strictest.num_episodes
    more = enough(risk, delta, share)
    told = f"at this rate {more} episodes would do" if more else f"no number of episodes shows a risk of {risk:g}"
    raise SettingError(
        f"no threshold keeps a risk of {risk:g} with delta {delta:g}: of {strictest.num_episodes} episodes the "
        f"strictest, {strictest.threshold:g}, loses {strictest.num_failures}, so up to {strictest.bound:.1%}; {told}; "
        "run more, add a stricter threshold, or promise less"
    )


def enough(risk: float, delta: float, share: float = 0.0) -> int | None:
    """Fewest episodes that show a risk at delta when that share of them fails; None where MOST do not."""
    counts = np.arange(1, MOST + 1)
    failures = np.ceil(share * counts)
    open_ends = failures < counts
    counts, failures = counts[open_ends], failures[open_ends]
    shown = np.flatnonzero(beta.ppf(1 - delta, failures + 1, counts - failures) <= risk)
    return int(counts[shown[0]]) if len(shown) else None


def threshold_of(run: Run) -> float:
    """The threshold of a run's gate.

    Raises:
        ComparisonError: its decoding has none.
    """
    gate = {} if run.plan is None else run.plan.policy.options.get("gate")
    threshold = gate.get("threshold") if isinstance(gate, Mapping) else None
    try:
        return float(threshold)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ComparisonError(
            f"{run.path} has no gate with a threshold and is not of decoding {REFERENCE}, leave it out"
        ) from error


def in_json(found: Sequence[Arm], kept: Arm, runs: Sequence[Run], *, risk: float, delta: float) -> dict[str, Any]:
    """What is written beside a threshold, in JSON types."""
    plans = [run.plan for run in runs if run.plan is not None]
    states = [one.init_state_id for plan in plans for one in plan.episodes]
    return {
        "rule": "acceleration-induced failures, Clopper-Pearson, fixed sequence",
        "risk": risk,
        "delta": delta,
        **asdict(kept),
        "suites": sorted({plan.suite for plan in plans}),
        "init_states": [min(states), max(states)],
        "runs": [run.path.resolve().name for run in runs],
        "curve": [[arm.threshold, arm.coverage, arm.num_failures / arm.num_episodes, arm.bound] for arm in found],
    }


def _finished(run: Run) -> Plan:
    """The plan of a run whose every episode was run as planned, with nothing withheld."""
    plan = run.plan
    if plan is None:
        raise ComparisonError(f"{run.path} has no plan.json, so nobody knows its threshold; run it again")
    if plan.ablation is not None or plan.stopping is not None:
        raise ComparisonError(
            f"{run.path} was run with {plan.ablation or plan.stopping}, so its episodes are not those of the suite"
        )
    crashed = sum(result.error is not None for result in run.results)
    if run.num_missing or crashed:
        raise ComparisonError(
            f"{run.path} lacks {run.num_missing} episodes and {crashed} crashed; finish it with resume={run.path}"
        )
    return plan


def _keep(into: dict[str, Run], suite: str, run: Run, what: str) -> None:
    if suite in into:
        raise ComparisonError(f"{into[suite].path} and {run.path} are both of {what} on {suite}; give one of them")
    into[suite] = run


def _arm(threshold: float, own: Mapping[str, Run], references: Mapping[str, Run], delta: float) -> Arm:
    pairs = []
    for suite, run in own.items():
        first, second = Candidate("A", [references[suite]]), Candidate("B", [run])
        check_comparable(first, second)
        shared = shared_episodes(first, second)
        if len(shared) != len(run.results) or len(shared) != len(references[suite].results):
            raise ComparisonError(
                f"{run.path} and {references[suite].path} are not of the same episodes; run both with the same tasks "
                "and num_trials"
            )
        pairs += shared
    failures = induced_failures(count_pairs(pairs))
    results = [second for _, _, second in pairs]
    return Arm(
        threshold=threshold,
        coverage=summarize_work(results)["early_exit_share"] or 0.0,
        num_failures=failures["count"],
        num_episodes=len(pairs),
        bound=upper_bound(failures["count"], len(pairs), 1 - delta),
    )
