"""Runs inside of a scheduler's jobs: how one ends when it is told to, and goes on when the job is started again.

A job leaves its id in requeue.json of the run folder. A job that finds its own id there goes on with that run, as with
resume=DIR, however its former start ended; any other job finds a folder that holds a run. What surprises first: a job
is not requeued for ever. One that did not finish a single step or episode in two starts, one after the other, ends with
an error that says so.

Schedulers are SLURM, and the jobs of submitit_local, which restarts those that exit with its own code, five times.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypedDict

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from rsd import requeue
from rsd.errors import RSDError
from rsd.processes import is_first_process
from rsd.record import read, write
from rsd.runs import CONFIG_FILE, RunError, resume_command
from rsd.settings import Natural

REQUEUE_FILE = "requeue.json"
MAX_IDLE = 2  # starts without progress
LOCAL_EXIT_CODE = 144  # of a job that submitit's local executor is to start again
MAY_BE_REQUEUED = "RUNNING"  # a job that was cancelled, or has reached its limit, is in another state
SCONTROL_S = 60.0


class NoProgressError(RSDError, RuntimeError):
    """A job was started again and again, and did nothing."""


class Requeue(TypedDict):
    """requeue.json: which job is at work here, and its starts without progress since it last made some."""

    job: str
    idle: Natural


@dataclass
class _Limit:
    """The time limit of this process's job, in minutes, where its launcher has told."""

    minutes: float | None = None


LIMIT = _Limit()


def job_id() -> str | None:
    """This process's job, "12_3" for a task of an array; None where no scheduler has started it."""
    if (local := os.environ.get("SUBMITIT_LOCAL_JOB_ID")) is not None:
        return f"local {local}"
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return os.environ.get("SLURM_JOB_ID") if array is None or task is None else f"{array}_{task}"


def is_own_run(run_dir: Path) -> bool:
    """Whether this very job began the run in a folder, or went on with it, in an earlier start.

    Raises:
        RunError: requeue.json is damaged.
    """
    record = _read(run_dir)
    return record is not None and record["job"] == job_id() and (run_dir / CONFIG_FILE).is_file()


def note_job(run_dir: Path) -> None:
    """Write down that this job is at work in a run folder; nothing without a scheduler."""
    if (job := job_id()) is not None and not is_own_run(run_dir):
        write(run_dir / REQUEUE_FILE, Requeue(job=job, idle=0))


def interrupted(run_dir: Path, *, what: str, done: int, before: int) -> NoReturn:
    """End a run that got Ctrl-C or a scheduler's signal, once its state is on disk.

    Exits with 130 after Ctrl-C and with `requeue.EXIT_CODE` after a signal; the job is requeued where it was to end for
    want of time or to make room, not where it was cancelled.

    Args:
        what: "step" or "episode".
        done: How many of them are done.
        before: How many were when this start began.

    Raises:
        NoProgressError: the job made no progress in MAX_IDLE starts, and would make none in the next.
    """
    if not is_first_process():  # which tells, and asks to be started again; it may be the only one that got the signal
        sys.exit(130)
    command = resume_command(run_dir)
    if (number := requeue.asked()) is None:
        print(f"interrupted; continue with: {command}", file=sys.stderr)
        sys.exit(130)
    new = done - before
    told = f"{number.name}: stopped, {new} {what}{'' if new == 1 else 's'} done in this start"
    print(f"{told}; continue with: {command}", file=sys.stderr, flush=True)
    job = job_id()
    if job is None or not (run_dir / CONFIG_FILE).is_file():
        sys.exit(requeue.EXIT_CODE)
    record = _read(run_dir)
    known = record["idle"] if record is not None and record["job"] == job else 0
    idle = 0 if done > before or requeue.moved() else known + 1
    write(run_dir / REQUEUE_FILE, Requeue(job=job, idle=idle))
    if idle:
        limit = "" if LIMIT.minutes is None else f" of {LIMIT.minutes:g} min"
        why = f"the time limit{limit} is shorter than the start and one {what}"
        line = f"no {what} was done before {number.name} came: {why}"
        if idle >= MAX_IDLE:
            raise NoProgressError(
                f"{line}, {idle} times now, so job {job} is not requeued; give it more time, "
                "hydra.launcher.timeout_min=… (sbatch --time), and the same command goes on"
            )
        print(f"{line}; if the next start does none either, it is the last", file=sys.stderr, flush=True)
    sys.exit(_again(job, number.name))


def _again(job: str, signal_name: str) -> int:
    """Have the job started again where that is meant; returns the exit code."""
    is_local = "SUBMITIT_LOCAL_JOB_ID" in os.environ
    if is_local:
        return requeue.EXIT_CODE if signal_name == "SIGTERM" else LOCAL_EXIT_CODE
    if not _finds_its_folder():
        print("not requeued: it would begin anew; give it a folder of its own, hydra.run.dir=DIR", file=sys.stderr)
        return requeue.EXIT_CODE
    state = _asked_slurm("squeue", "--noheader", "--jobs", job, "--format", "%T")
    if state == MAY_BE_REQUEUED and _asked_slurm("scontrol", "requeue", job) is not None:
        print(f"requeued: job {job}", file=sys.stderr, flush=True)
    return requeue.EXIT_CODE


def _finds_its_folder() -> bool:
    """Whether the next start of the same command goes on in the same folder: a sweep's job, or one that is typed."""
    hydra_cfg = HydraConfig.get()
    typed = any(one.startswith("hydra.run.dir=") for one in hydra_cfg.overrides.hydra)
    return typed or hydra_cfg.mode == RunMode.MULTIRUN


def _asked_slurm(*command: str) -> str | None:
    """What one of SLURM's commands says; None where it cannot be run or fails, which is told."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"not requeued: {error}", file=sys.stderr)
        return None
    if done.returncode:
        print(f"not requeued: {command[0]}: {' '.join(done.stderr.split())}", file=sys.stderr)
        return None
    return done.stdout.strip()


def _read(run_dir: Path) -> Requeue | None:
    path = run_dir / REQUEUE_FILE
    if not path.is_file():
        return None
    record: Requeue = read(path, Requeue, error=RunError, remedy="remove it")
    return record
