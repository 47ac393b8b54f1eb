"""The jobs of a sweep: checked before the first one starts, and started where they are not done.

What surprises first: the same command goes on. A job is known by its number and what was typed for it; one that
job.json calls done is not started again, one that failed or was killed is, alone, and continues in its own folder
(rsd/commands/entry_point.py). sweep.json in the sweep's folder has the command, and the lock there keeps others out.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import filter_overrides
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from rsd.commands.settings import check_settings
from rsd.errors import SettingError
from rsd.locks import TakenError, hold
from rsd.record import read, write
from rsd.runs import MULTIRUN_FILE, OVERRIDES_FILE, read_yaml

JOB_FILE = "job.json"
SWEEP_FILE = "sweep.json"
DONE = "done"


class Sweep(TypedDict):
    """sweep.json."""

    script: str
    arguments: list[str]
    finished: bool


@dataclass(frozen=True)
class Job:
    """A job: its number, what was typed for it, and its folder."""

    number: int
    overrides: tuple[str, ...]
    folder: Path

    def ended(self) -> dict[str, Any] | None:
        """job.json of this very job; None where it never ended, or another one's overrides lie there.

        Raises:
            SettingError: another job lies in its folder.
        """
        own, path = self.folder / OVERRIDES_FILE, self.folder / JOB_FILE
        typed = own if own.is_file() else self.folder / ".hydra" / "overrides.yaml"
        if not typed.is_file():
            return None
        stored: list[str] = read_yaml(typed, list[str])
        if stored != list(filter_overrides(self.overrides)):
            raise SettingError(
                f"{self.folder} holds another job, {shlex.join(stored)}; give the sweep another folder: "
                "hydra.sweep.dir=DIR"
            )
        record: dict[str, Any] | None = read(path, dict[str, Any], error=SettingError, remedy=f"remove {self.folder}")
        return record


def open_sweep(config: DictConfig, arguments: Sequence[str]) -> Path:
    """The sweep's folder, held by this process: that of the same command where it was broken off, or a new one.

    Raises:
        SettingError: the same sweep is at work, or another one's folder was typed.
    """
    script, wanted = Path(sys.argv[0]).name, Path(config.hydra.sweep.dir)
    typed = any(one.startswith("hydra.sweep.dir=") for one in config.hydra.overrides.hydra)
    sweep: Sweep = {"script": script, "arguments": [*config.hydra.overrides.hydra, *arguments], "finished": False}
    folder = wanted if typed else _unfinished(wanted.parent, sweep) or wanted
    if folder != wanted:
        if wanted.is_dir() and not any(wanted.iterdir()):
            wanted.rmdir()
        print(f"goes on with the sweep in {folder}; for a new one give hydra.sweep.dir=DIR", flush=True)
        OmegaConf.update(config, "hydra.sweep.dir", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        hold(folder)
    except TakenError:
        raise SettingError(
            f"the same sweep is at work in {folder}; wait for its end or stop it, or give this one a folder of its "
            "own: hydra.sweep.dir=DIR"
        ) from None
    write(folder / SWEEP_FILE, dict(sweep))
    OmegaConf.save(config, folder / MULTIRUN_FILE)
    return folder


def _unfinished(parent: Path, sweep: Sweep) -> Path | None:
    """The last folder in which the same command was broken off."""
    for path in sorted(parent.glob(f"*/{SWEEP_FILE}"), reverse=True):
        stored: Sweep | None = read(path, Sweep, error=SettingError, remedy=f"remove {path.parent}")
        if stored is not None and dict(stored) | {"checksum": None} == dict(sweep) | {"checksum": None}:
            return path.parent
    return None


def finish_sweep(folder: Path) -> None:
    """Note that the next start of the same command is to be a sweep of its own."""
    path = folder / SWEEP_FILE
    stored: Sweep | None = read(path, Sweep, error=SettingError, remedy=f"remove {folder}")
    if stored is not None:
        write(path, {**stored, "finished": True})


def checked_jobs(
    loader: ConfigLoader, config: DictConfig, overrides: Sequence[Sequence[str]], first: int, folder: Path
) -> list[Job]:
    """The jobs, each composed and its settings looked at: a choice that does not exist costs no job.

    Raises:
        HydraException: a job cannot be composed.
        SettingError: a setting is none, or two jobs have one folder.
    """
    jobs: list[Job] = []
    owners: dict[str, int] = {}
    place = "hydra.sweep.dir='" + str(folder).replace("'", "\\'") + "'"
    for number, typed in enumerate(overrides, start=first):
        own = (*typed, place)
        composed = loader.load_sweep_config(config, list(own))
        with open_dict(composed):
            composed.hydra.job.num = number
        settings = composed.copy()
        with open_dict(settings):
            del settings["hydra"]
        check_settings(settings)
        subdir = str(composed.hydra.sweep.subdir)
        if (other := owners.setdefault(subdir, number)) != number:
            raise SettingError(
                f"jobs {other} and {number} would write to one folder, {folder / subdir}; leave out hydra.sweep.subdir, "
                "or let it name what differs: hydra.sweep.subdir='${hydra.job.num}'"
            )
        jobs.append(Job(number, own, folder / subdir))
    return jobs


def launch_missing(launcher: Launcher, jobs: Sequence[Job]) -> list[Job]:
    """Start the jobs that are not done; returns those that are not afterwards.

    A launcher numbers what it is given from a first job on, so neighbours start together.
    """
    done = [job for job in jobs if (job.ended() or {}).get("status") == DONE]
    if done:
        print(f"done already: {', '.join(f'job {job.number}' for job in done)}", flush=True)
    missing = [job for job in jobs if job not in done]
    for _, group in groupby(enumerate(missing), key=lambda pair: pair[1].number - pair[0]):
        neighbours = [job for _, job in group]
        try:
            launcher.launch([list(job.overrides) for job in neighbours], initial_job_idx=neighbours[0].number)
        except Exception as error:
            if not type(error).__module__.startswith("submitit"):
                raise
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)  # a job was killed; the others are told of
    return [job for job in missing if (job.ended() or {}).get("status") != DONE]


def failed_line(failed: Sequence[Job], num_jobs: int) -> str:
    """Which jobs failed, each with what was typed and why."""
    told = []
    for job in failed:
        why = (job.ended() or {}).get("error") or "it never ended"
        told.append(f"job {job.number} ({' '.join(filter_overrides(job.overrides))}): {why}")
    return f"{len(failed)} of {num_jobs} jobs failed, and the same command runs them again alone: {'; '.join(told)}"
