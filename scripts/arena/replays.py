"""Held-out demonstrations executed in the simulator, and what the report says of them.

What surprises first: a demonstration may have several lines in replays.jsonl, one a job, each with other arms.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from rich.console import Console

from rsd.arena.replaying import RAW, commands_of, in_order, missing_arms
from rsd.comparison.arms import summarize_arms
from rsd.demos.rerun import Rerun, RerunResult, rerun
from rsd.evaluation.results import append_result
from scripts.arena.suites import Recorded
from scripts.replay_demos import VIEW, read_results

NUM_STILL = 10  # steps without motion behind the last action


def read_replays(out: Path, suite: str) -> list[RerunResult]:
    """What is on disk of a suite's replays.

    Raises:
        RerunError: a line is damaged.
    """
    return read_results(_file(out, suite))


def _file(out: Path, suite: str) -> Path:
    return out / suite / "replays.jsonl"


def jobs_of(
    suite: Recorded,
    contestants: Mapping[str, dict[str, Any]],
    asked: argparse.Namespace,
    have: set[tuple[int, str]],
) -> tuple[list[Rerun], dict[tuple[int, str], list[str]]]:
    """What is missing of the held-out demonstrations.

    Returns:
        The jobs; and (episode, arm) → all arms of the very same commands, of which that one is executed.
    """
    jobs: list[Rerun] = []
    alike: dict[tuple[int, str], list[str]] = {}
    for start in suite.starts[: asked.replays]:
        arms = commands_of(suite, start.episode, contestants, asked.out / suite.name, asked.replay_depths)
        missing, same = missing_arms(arms, {arm for episode, arm in have if episode == start.episode})
        alike |= {(start.episode, arm): names for arm, names in same.items()}
        picture = suite.demonstrations.picture(start.episode, 0, VIEW)
        jobs += [Rerun(start.episode, start.task_id, start.placement_seed, None, VIEW, picture, own) for own in missing]
    return jobs, alike


def replay(
    suite: Recorded, contestants: Mapping[str, dict[str, Any]], asked: argparse.Namespace, console: Console
) -> tuple[list[RerunResult], list[str]]:
    """Execute what is missing of the held-out demonstrations; every job is on disk before the next one.

    Returns:
        All that is on disk of them, and why others are not there, a line each.
    """
    results = read_replays(asked.out, suite.name)
    have = {(one.episode, arm) for one in results for arm in one.arms}
    jobs, alike = jobs_of(suite, contestants, asked, have)
    failures = [] if suite.starts else [suite.no_starts]
    if jobs:
        lines = rerun(
            jobs,
            instantiate(suite.cfg.env.make),
            num_still=NUM_STILL,
            num_workers=asked.workers,
            report=console.print,
            render_devices=asked.render_devices,
            patience_s=asked.patience,
            lost=lambda job, why: failures.append(f"episode {job.episode}, {', '.join(job.arms)}: {why}"),
        )
        with closing(lines):
            for number, (job, off, executed) in enumerate(lines, start=1):
                arms_done = {name: arm for one, arm in executed.items() for name in alike[job.episode, one]}
                result = RerunResult(job.episode, job.task_id, suite.name, "", None, round(off, 3), arms_done)
                append_result(_file(asked.out, suite.name), result)
                results.append(result)
                said = f"{suite.name}: {number} of {len(jobs)} jobs; episode {job.episode}, {len(arms_done)} arms"
                failed = [name for name, arm in arms_done.items() if not arm.success]
                said += f", not {', '.join(failed)}" if failed else ""
                said += "" if arms_done else f": begins otherwise than recorded ({off:.0f} levels)"
                console.print(said, markup=False)
    held = {one.episode for one in suite.starts[: asked.replays]}
    return [one for one in results if one.episode in held], failures


def summary_of(results: Mapping[str, Sequence[RerunResult]], contestants: Sequence[str]) -> list[Mapping[str, Any]]:
    """Arms over all replayed episodes of some suites: controls, then contestants in their order."""
    by_episode: dict[tuple[str, int], dict[str, bool]] = {}
    for suite, own in results.items():
        for one in own:
            arms = {name: arm.success for name, arm in one.arms.items()}
            by_episode.setdefault((suite, one.episode), {}).update(arms)
    return in_order(summarize_arms([own for own in by_episode.values() if own], RAW), contestants)


def with_replays(
    part: dict[str, Any], results: Sequence[RerunResult], contestants: Sequence[str], failures: Sequence[str]
) -> None:
    """Write into a suite's part of the report how its replays ended, and which could not be."""
    begun = {one.episode for one in results if one.arms}
    part["replays"] = summary_of({"": results}, contestants)
    part["num_other_starts"] = len({one.episode for one in results} - begun)
    part["replay_failures"] = [*failures]
