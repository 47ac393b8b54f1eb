"""What a reader has to know before reading a success rate: the banners at the head of a report.

A run without a plan can only be held to what its episodes say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd.evaluation.plan import Plan, missing_places
from rsd.evaluation.sequential import anytime_interval
from rsd.protocols import CHANGED, broken_promises
from rsd.record import shown
from rsd.types import EpisodeResult

PACKAGES = {"mujoco": "MuJoCo"}  # how their makers write them


def caveats(
    results: Sequence[EpisodeResult],
    *,
    plan: Plan | None,
    stopped: dict[str, Any] | None,
) -> list[dict[str, str]]:
    """Banners, the gravest first.

    Args:
        results: All episodes of the run.
        plan: What was planned, or None when nobody knows.
        stopped: What sequential.until_decided has written, or None.

    Returns:
        {severity ("bad" or "warn"), title, text} each.
    """
    found = [
        *_crashes(results),
        *(_of_plan(plan) if plan is not None else []),
        *_mixtures(results),
        *_completeness(results, plan, stopped),
    ]
    return sorted(found, key=lambda caveat: caveat["severity"] != "bad")


def stamps(results: Sequence[EpisodeResult]) -> dict[str, list[str]]:
    """ "protocol" and the name of each version, to the values that the episodes have; more than one is a mixture."""
    values: dict[str, set[str]] = {}
    for result in results:
        for name, value in {"protocol": result.protocol, **result.versions}.items():
            if value:
                values.setdefault(name, set()).add(value)
    return {name: sorted(own) for name, own in values.items()}


def _crashes(results: Sequence[EpisodeResult]) -> list[dict[str, str]]:
    num_errors = sum(result.error is not None for result in results)
    if not num_errors:
        return []
    text = (
        "They say nothing about the policy and are left out of every success rate. Listed below; tracebacks in "
        "crashed_episodes.log."
    )
    return [_caveat("bad", f"{num_errors} of {len(results)} episodes crashed.", text)]


def _of_plan(plan: Plan) -> list[dict[str, str]]:
    found = _broken_promises(plan)
    for package, version in plan.allowed_versions.items():
        text = (
            "The simulator's version was accepted by name. Its scores are not comparable with those of the right one."
        )
        found.append(_caveat("bad", f"{PACKAGES.get(package, package)} {version} by override.", text))
    if plan.ablation is not None:
        text = (
            "Inputs were withheld from the policy or replaced. This is no result of the policy as it is meant to run."
        )
        found.append(_caveat("bad", f"Ablation: {plan.ablation}.", text))
    if (clock := plan.policy.clock) is not None:
        text = (
            "Actions came so many control steps after their picture. Not comparable with rates of a simulator that "
            "waits for its policy."
        )
        found.append(_caveat("warn", f"Delay: {clock['delay']} control steps, async={clock['async']}.", text))
    if plan.variant is not None:
        text = "Tasks of this suite were perturbed. Not comparable with rates on the original suite."
        found.append(_caveat("warn", f"Suite variant: {plan.variant}.", text))
    if (shard := plan.shard) is not None:
        title = f"A part: shard {shard.index} of {shard.of}, {len(plan.part)} of {len(plan.episodes)} planned episodes."
        text = "Its rates are of these episodes alone. One report of all shards: python scripts/merge_shards.py."
        found.append(_caveat("warn", title, text))
    return found


def _broken_promises(plan: Plan) -> list[dict[str, str]]:
    name = plan.protocol.name.partition(CHANGED)[0]
    suite = plan.suite if plan.variant is None else plan.suite.removesuffix(f"_{plan.variant}")
    values = plan.protocol.values | {"max_steps": max(task.max_steps for task in plan.tasks)}
    broken = broken_promises(name, suite, values)
    if not broken:
        return []
    listed = ", ".join(f"{key} {found} instead of {promised}" for key, (promised, found) in broken.items())
    text = "Episodes ran otherwise than the protocol says. Not comparable with rates under its name."
    return [_caveat("bad", f"Not {name}: {listed}.", text)]


def _mixtures(results: Sequence[EpisodeResult]) -> list[dict[str, str]]:
    mixed = {name: values for name, values in stamps(results).items() if len(values) > 1}
    listed = "; ".join(f"{name}: {', '.join(values)}" for name, values in mixed.items())
    text = f"Parts of the run were made under different conditions ({listed}), and the rates mix them."
    return [_caveat("bad", "Not one run.", text)] if mixed else []


def _completeness(
    results: Sequence[EpisodeResult], plan: Plan | None, stopped: dict[str, Any] | None
) -> list[dict[str, str]]:
    if plan is None:
        text = "It is not known how many episodes were planned, nor under which settings."
        return [_caveat("warn", "The folder has no plan.json.", text)]
    num_planned = len(plan.part)
    if stopped is None:
        missing = missing_places(plan.part, results)
        if not missing:
            return []
        title = f"Incomplete: {len(results)} of {num_planned} episodes."
        text = f"Missing: (task, init state) {shown(missing)}. Continue with python eval.py resume=RUN_DIR."
        return [_caveat("warn", title, text)]
    num_success, num_trials = stopped["num_success"], stopped["num_trials"]
    low, high = anytime_interval(num_success, num_trials)
    rate = "the threshold" if plan.stopping is None else f"{100 * plan.stopping.values['rate']:g} %"
    title = f"Stopped early: the success rate is {stopped['verdict']} {rate}."
    text = (
        f"Decided after {num_trials} of at most {num_planned} episodes, {num_success} of them solved; the interval "
        f"that holds whenever one stops is {100 * low:.1f} – {100 * high:.1f} %. Figures and intervals below are "
        f"of all {len(results)} episodes that had ended, of which the quick ones, successes, come too early."
    )
    return [_caveat("warn", title, text)]


def _caveat(severity: str, title: str, text: str) -> dict[str, str]:
    return {"severity": severity, "title": title, "text": text}
