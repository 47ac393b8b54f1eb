"""What a multirun would send to a scheduler, and what it would take: --dry-run with hydra/launcher=submitit_….

Hours come from a finished run of the same kind, the one whose configuration differs in the fewest keys: an evaluation's
seconds an episode, a training's seconds an optimizer step, start and validation included. What surprises first: without
such a run the only figure is the time limit of one start, and the text says so; a job that is requeued takes more than
that. Disk is the size of that run's folder, by its episodes, without caches and checkpoints that it links to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from rsd.commands.jobs import Job
from rsd.commands.run_index import FINISHED, RunRow, read_runs, run_folders
from rsd.differences import Difference, differences
from rsd.errors import RSDError
from rsd.evaluation.plan import PLAN_FILE, read_plan_file
from rsd.evaluation.results import RESULTS_FILE, read_episodes
from rsd.runs import METRICS_FILE, PLACES, PROVENANCE_FILE, json_types, read_provenance

GIGA = 1e9
AMOUNT = ("tasks", "num_trials", "shard", "shards", "seed", "save_videos", "logger", "resume", "plan", *PLACES)
MAX_TOLD = 4  # keys in which the former run differs


@dataclass(frozen=True)
class Former:
    """A finished run: its seconds and bytes for one episode or step, and where it differs."""

    row: RunRow
    unit: str
    count: int
    seconds: float
    bytes: float
    different: tuple[Difference, ...]

    def __str__(self) -> str:
        keys = [one.key for one in self.different]
        more = f" and {len(keys) - MAX_TOLD} more" if len(keys) > MAX_TOLD else ""
        other = f", which differs in {', '.join(keys[:MAX_TOLD])}{more}" if keys else ""
        return f"{self.row.folder} ({self.count} {self.unit}s at {self.seconds:.3g} s{other})"


def forecast_lines(
    jobs: Sequence[Job], *, minutes: float, num_jobs: int, gpus: int, cpus: int | None, memory: float | None, runs: Path
) -> list[str]:
    """What the jobs take, a line each thing.

    Args:
        minutes: Time limit of one start.
        num_jobs: How many there are; more than `jobs` where a search draws them, which then stand for all.
        gpus, cpus, memory: What one job asks for; memory in GB.
        runs: Where former runs lie.
    """
    asked = [f"{gpus} GPU{'' if gpus == 1 else 's'}"]
    asked += [f"{cpus} CPUs"] if cpus else []
    asked += [f"{memory:g} GB of memory"] if memory else []
    lines = [f"{num_jobs} job{'' if num_jobs == 1 else 's'}, each {', '.join(asked)}, {minutes:g} min a start"]
    former = [former_run(job, runs) for job in jobs]
    found = [(job, one) for job, one in zip(jobs, former, strict=True) if one is not None]
    if len(found) < len(jobs):
        hours = num_jobs * minutes / 60
        lines.append(
            f"forecast: {hours:.3g} hours, {hours * gpus:.3g} GPU-hours if each job takes its time limit, once; disk "
            f"unknown. No finished run of this kind below {runs} tells more"
        )
        return lines
    share = num_jobs / len(jobs)
    seconds = [one.seconds * units(job) for job, one in found]
    hours = share * sum(seconds) / 3600
    disk = share * sum(one.bytes * (units(job) if one.unit == "episode" else 1) for job, one in found)
    starts = max(1, math.ceil(max(seconds) / (60 * minutes)))
    lines.append(f"forecast: {hours:.3g} hours in all, {hours * gpus:.3g} GPU-hours, {disk / GIGA:.3g} GB on disk")
    lines.append(f"longest job: {max(seconds) / 3600:.3g} hours, {starts} start{'' if starts == 1 else 's'}")
    lines += [f"from: {text}" for text in dict.fromkeys(str(one) for _, one in found)]
    slow = next((one for _, one in found if one.seconds > 60 * minutes), None)
    if slow is not None:
        lines.append(
            f"hydra.launcher.timeout_min is {minutes:g} min: the time limit is shorter than one {slow.unit} took "
            f"there, {slow.seconds / 60:.3g} min"
        )
    return lines


def units(job: Job) -> int:
    """Episodes, or optimizer steps, of a job."""
    config = plain(job)
    if "phase" in config:
        return int(config["trainer"]["max_steps"])
    tasks = config["tasks"] if config.get("tasks") is not None else range(config["env"]["num_tasks"])
    total = len(tasks) * int(config["num_trials"])
    shard, shards = config.get("shard", 0), config.get("shards", 1)
    return total * (shard + 1) // shards - total * shard // shards


def plain(job: Job) -> dict[str, Any]:
    """A job's configuration as it is stored of a run."""
    return cast("dict[str, Any]", json_types(OmegaConf.to_container(job.config, resolve=True)))


def former_run(job: Job, runs: Path) -> Former | None:
    """The finished run of the same kind that differs least, the later of two; None where there is none."""
    config = plain(job)
    kind = config["phase"]["name"] if "phase" in config else "eval"
    rows = [row for row in read_runs(run_folders(runs)) if row.kind == kind and row.status == FINISHED]
    found = [one for row in rows if (one := _measured(row, config)) is not None]
    return min(reversed(found), key=lambda one: len(one.different), default=None)


def _measured(row: RunRow, config: Mapping[str, Any]) -> Former | None:
    """What one unit of a run took; None where that cannot be told."""
    ignored = (*AMOUNT, "phase.max_steps", "trainer.max_steps", "quantizer.max_steps")
    different = tuple(differences(dict(row.config), dict(config), ignored))
    if row.kind == "eval":
        try:
            workers = read_plan_file(row.folder / PLAN_FILE).num_workers
            results = [one for one in read_episodes(row.folder / RESULTS_FILE) if one.error is None]
        except RSDError:  # a replay, or a run of an earlier version
            return None
        if not results:
            return None
        seconds = sum(one.wall_s for one in results) / workers
        return Former(row, "episode", len(results), seconds / len(results), row.size / len(results), different)
    starts = (read_provenance(row.folder / PROVENANCE_FILE) or {"starts": []})["starts"]
    steps = int(row.config["trainer"]["max_steps"])
    if len(starts) != 1 or steps < 1 or "time" not in starts[0]:
        return None  # nobody knows how long it lay still
    seconds = (row.folder / METRICS_FILE).stat().st_mtime - datetime.fromisoformat(starts[0]["time"]).timestamp()
    return Former(row, "step", steps, seconds / steps, row.size, different)
