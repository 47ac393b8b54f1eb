"""The jobs of a sweep: all of them checked before the first one starts, and started where they are not done.

What surprises first: the same command goes on with a sweep that was broken off or had failures. A job that job.json
calls done is not started again. One that failed or was killed is, alone, in its own folder, with resume=FOLDER where
its run had begun. sweep.json in the sweep's folder has the command, and the lock there keeps a second process out.

A job is known by its content: what was typed for it and the configuration composed of that. Where a folder holds
another one, the sweep is refused; nothing is replaced.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NotRequired, TypedDict

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import filter_overrides
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from rsd.commands.dry_run import is_dry_run
from rsd.commands.requirements import check_chunk
from rsd.commands.settings import check_settings
from rsd.differences import told
from rsd.errors import SettingError
from rsd.files import write_atomically
from rsd.locks import TakenError, alone_in, hold
from rsd.record import read, write
from rsd.runs import CONFIG_FILE, MULTIRUN_FILE, OVERRIDES_FILE, changed_since, config_options, read_yaml

JOB_FILE = "job.json"
SWEEP_FILE = "sweep.json"
DONE = "done"


class Ended(TypedDict):
    """job.json."""

    status: str
    error: str | None
    result: NotRequired[float | None]


class Sweep(TypedDict):
    """sweep.json: the command, and whether nothing of it is left to do."""

    command: list[str]
    finished: bool


@dataclass(frozen=True, eq=False)
class Job:
    """A job: its number, what is typed for it, the configuration composed of that, and its folder in the sweep's."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    subdir: str

    @property
    def typed(self) -> list[str]:
        """The overrides without Hydra's own."""
        return list(filter_overrides(self.overrides))

    def __str__(self) -> str:
        return f"job {self.number} ({shlex.join(self.typed)})"


def check_jobs(loader: ConfigLoader, config: DictConfig, overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
    """The jobs, each composed and its settings looked at: a choice that does not exist costs no other job.

    Args:
        config: The multirun's.
        overrides: What is typed for each.
        first: Number of the first.

    Raises:
        HydraException: a job cannot be composed.
        SettingError: a setting is none, or two jobs have one folder.
    """
    jobs: list[Job] = []
    owners: dict[str, int] = {}
    for number, typed in enumerate(overrides, start=first):
        composed = loader.load_sweep_config(config, list(typed))
        with open_dict(composed):
            composed.hydra.job.num = composed.hydra.job.id = number
        subdir = str(composed.hydra.sweep.subdir)
        with open_dict(composed):
            del composed["hydra"]
        job = Job(number, tuple(typed), composed, subdir)
        try:
            check_chunk(composed)
            check_settings(composed)
        except SettingError as error:
            raise SettingError(f"{job}: {error}") from error
        if (other := owners.setdefault(subdir, number)) != number:
            raise SettingError(
                f"jobs {other} and {number} would write to one folder, {subdir}; leave out hydra.sweep.subdir, or "
                "let it name what differs: 'hydra.sweep.subdir=${hydra.job.num}'"
            )
        jobs.append(job)
    return jobs


def open_sweep(config: DictConfig, arguments: Sequence[str], check: Callable[[Path], None]) -> Path:
    """The sweep's folder, held by this process: that of the same command where something is left to do, or a new one.

    Args:
        config: The multirun's; its hydra.sweep.dir is the folder afterwards.
        check: Raises where what the folder holds does not fit; nothing was written then.

    Raises:
        SettingError: the same sweep is at work.
    """
    command = [Path(sys.argv[0]).name, *config_options(), *config.hydra.overrides.hydra, *arguments]
    is_typed = any(one.startswith("hydra.sweep.dir=") for one in config.hydra.overrides.hydra)
    wanted = Path(config.hydra.sweep.dir)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(wanted.parent):  # of two that start at once the second finds what the first has written
        folder = wanted if is_typed else _unfinished(wanted.parent, command) or wanted
        if folder != wanted:
            if wanted.is_dir():  # made by asking for its name
                wanted.rmdir()
            print(f"goes on with {folder}; a new sweep needs hydra.sweep.dir=DIR", flush=True)
        if not is_typed:
            OmegaConf.update(config, "hydra.sweep.dir", str(folder))
            place = "hydra.sweep.dir='" + str(folder).replace("'", "\\'") + "'"
            config.hydra.overrides.hydra.append(place)  # for the jobs, which are composed anew, perhaps elsewhere
        folder.mkdir(parents=True, exist_ok=True)
        try:
            hold(folder)
        except TakenError:
            raise SettingError(
                f"the same sweep is at work in {folder}; wait for its end or stop it, or give this one a folder of "
                "its own: hydra.sweep.dir=DIR"
            ) from None
        check(folder)
        write(folder / SWEEP_FILE, Sweep(command=command, finished=False))
    write_atomically(folder / MULTIRUN_FILE, OmegaConf.to_yaml(config))
    return folder


def _unfinished(parent: Path, command: list[str]) -> Path | None:
    """The last folder in which something of the same command is left to do."""
    for path in sorted(parent.glob(f"*/{SWEEP_FILE}"), reverse=True):
        sweep: Sweep = read(path, Sweep, error=SettingError, remedy=f"remove {path.parent}")
        if sweep["command"] == command and not sweep["finished"]:
            return path.parent
    return None


def end_dry_run(launcher: Launcher, jobs: Sequence[Job], num_jobs: int, config: DictConfig) -> None:
    """With --dry-run print what would be sent elsewhere, and end the command; nothing is left behind.

    Args:
        jobs: Composed and looked at.
        num_jobs: How many there would be; more than `jobs` in a search, for whose draws they stand.
    """
    if is_dry_run():
        launcher.show(jobs, num_jobs)  # type: ignore[attr-defined]
        wanted = Path(config.hydra.sweep.dir)
        if wanted.is_dir() and not any(wanted.iterdir()):  # made by asking for its name
            wanted.rmdir()
        sys.exit(0)


def finish_sweep(folder: Path) -> None:
    """Note that the next start of the same command is to be a sweep of its own."""
    path = folder / SWEEP_FILE
    if path.is_file():  # other sweepers write none
        sweep: Sweep = read(path, Sweep, error=SettingError, remedy=f"remove {folder}")
        write(path, Sweep(command=sweep["command"], finished=True))


def check_folders(jobs: Sequence[Job], folder: Path) -> None:
    """See that the jobs' folders in the sweep's are empty, or hold those very jobs.

    Raises:
        SettingError: another one lies there.
        RunError: a file of it is damaged.
    """
    for job in jobs:
        _check_folder(job, folder)


def _check_folder(job: Job, folder: Path) -> None:
    own = folder / job.subdir
    typed = next((one for one in (own / OVERRIDES_FILE, own / ".hydra" / "overrides.yaml") if one.is_file()), None)
    if typed is None:
        return
    remedy = f"give the sweep a new folder, hydra.sweep.dir=DIR, or remove {own}"
    if (stored := read_yaml(typed, list[str])) != job.typed and not _is_resumed(stored, job):
        raise SettingError(f"{own} holds another job, {shlex.join(stored)}, than {shlex.join(job.typed)}; {remedy}")
    if not (own / CONFIG_FILE).is_file():
        return
    if different := changed_since(own, job.config):
        raise SettingError(f"{own} was run with another configuration: {told(different)}; {remedy}")


def _is_resumed(stored: list[str], job: Job) -> bool:
    """Whether what is stored is Hydra's copy of a start that went on."""
    return [one for one in stored if not one.startswith("resume=")] == job.typed


def ended(job: Job, folder: Path) -> Ended | None:
    """How a job ended; None where it has not."""
    path = folder / job.subdir / JOB_FILE
    if not path.is_file():
        return None
    record: Ended = read(path, Ended, error=SettingError, remedy=f"remove {path.parent}")
    return record


def is_done(job: Job, folder: Path) -> bool:
    record = ended(job, folder)
    return record is not None and record["status"] == DONE


def launch_missing(launcher: Launcher, jobs: Sequence[Job], folder: Path) -> None:
    """Start the jobs that are not done; `is_done` tells afterwards which of them are.

    A launcher numbers what it is given from a first job on, so neighbours start together.
    """
    missing = [job for job in jobs if not is_done(job, folder)]
    if done := [str(job.number) for job in jobs if job not in missing]:
        print(f"done already: job {', '.join(done)}", flush=True)
    for _, group in groupby(enumerate(missing), key=lambda pair: pair[1].number - pair[0]):
        neighbours = [job for _, job in group]
        typed = [[*job.overrides, *_resume(folder / job.subdir)] for job in neighbours]
        try:
            launcher.launch(typed, initial_job_idx=neighbours[0].number)
        except SystemExit:  # Ctrl-C, which the job has told of
            print("the same command goes on with the whole sweep", file=sys.stderr)
            raise
        except Exception as error:  # submitit, which may not be installed, has no one class for a job that was killed
            if not type(error).__module__.startswith("submitit"):
                raise
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)  # a job was killed; the others are told of


def _resume(own: Path) -> list[str]:
    """What a job that had begun is given in addition."""
    return ["resume='" + str(own).replace("'", "\\'") + "'"] if (own / CONFIG_FILE).is_file() else []


def failed_line(failed: Sequence[Job], jobs: Sequence[Job], folder: Path) -> str:
    """Which of the jobs failed, each with what was typed for it alone and why, a line each."""
    shared = set.intersection(*(set(job.typed) for job in jobs)) if len(jobs) > 1 else set()
    lines = [f"error: {len(failed)} of {len(jobs)} jobs failed; the same command runs them again, and no other:"]
    for job in failed:
        end = ended(job, folder)
        why = (end and end["error"]) or f"it never ended; see {folder / job.subdir}"
        own = shlex.join(one for one in job.typed if one not in shared)
        lines.append(f"  job {job.number} ({own}): {why}")
    return "\n".join(lines)
