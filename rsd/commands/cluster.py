"""Jobs of a multirun as jobs of SLURM, or as processes of submitit: hydra/launcher=submitit_slurm or submitit_local.

hydra-submitit-launcher runs the jobs; this decides how they are sent and waited for. What surprises first: what counts
is the end record of a job (job.json), which the job writes itself, wherever it runs. A job that was lost is one that
never ended, and the same command starts it again, alone. Jobs that an earlier start of the same command has sent, and
that still wait or run, are waited for and not sent twice.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from rsd.commands import requeued
from rsd.commands.dry_run import SAME_NAME, is_dry_run
from rsd.commands.jobs import Job
from rsd.commands.requested import check_parameters
from rsd.errors import RSDError, SettingError
from rsd.record import read, write

SENT_FILE = "submitted.json"
HERE = ("submitit_folder", "max_num_timeout")  # parameters that sbatch does not know
SHARED = (  # those that submitit knows of every scheduler
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"),
    "stderr_to_stdout",
)
QUEUED = {"PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUE_HOLD", "PREEMPTED"}


class ClusterError(RSDError, RuntimeError):
    """The scheduler does not take the jobs."""


@dataclass(frozen=True)
class Elsewhere:
    """A job in the process that a scheduler starts: it speaks of the command that was typed.

    Attributes:
        inside: hydra-submitit-launcher's launcher, which composes and runs a job.
        command: The command line of the process that has sent it.
        minutes: The time limit.
    """

    inside: Any
    command: tuple[str, ...]
    minutes: float

    def __call__(self, *job: Any) -> Any:
        """Called by submitit."""
        warnings.filterwarnings("ignore", SAME_NAME)
        sys.argv[:] = self.command
        sys.modules["__main__"].__spec__ = None  # processes that train along are started with that command, too
        requeued.LIMIT.minutes = self.minutes
        return self.inside(*job)

    def checkpoint(self, *job: Any) -> Any:
        """Called by submitit where the time is over before the run has begun: once more, the same."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *job)


class Submitit(Launcher):
    """Sends the jobs as one array, and waits for all of them; see conf/hydra/launcher/.

    Args:
        parameters: Of submitit and sbatch, by the names that hydra-submitit-launcher has for them.

    Raises:
        SettingError: one is none, or a job would be told to end before it could begin.
    """

    scheduler = ""  # "slurm" or "local"

    def __init__(self, **parameters: Any) -> None:
        self.parameters: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in parameters.items()
        }
        check_parameters(self.parameters, self.scheduler)
        others = self.parameters.get("additional_parameters") or {}
        self.parameters |= {"additional_parameters": _set(others)} if others else {}

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Called by Hydra."""
        own = "submitit_slurm" if self.scheduler == "slurm" else "submitit_local"
        try:
            from hydra_plugins.hydra_submitit_launcher import submitit_launcher
        except ImportError as error:
            raise SettingError(
                f"hydra/launcher={own} needs hydra-submitit-launcher ({error}); pip install 'rsd[slurm]'"
            ) from error
        if self.scheduler == "slurm" and not is_dry_run() and shutil.which("sbatch") is None:
            raise SettingError(
                "hydra/launcher=submitit_slurm needs SLURM's sbatch and srun, which are not on the PATH here; run it "
                "where jobs are submitted from, see what it would send with --dry-run, or take "
                "hydra/launcher=submitit_local"
            )
        self.config = config
        made = submitit_launcher.SlurmLauncher if self.scheduler == "slurm" else submitit_launcher.LocalLauncher
        self._inside: Any = made(**self.parameters)
        self._inside.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Called by the sweeper; returns what the jobs returned, as far as they did.

        Raises:
            ClusterError: the scheduler refuses them.
        """
        folder = Path(self.config.hydra.sweep.dir) / ".submitit"
        folder.mkdir(parents=True, exist_ok=True)
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        known = self._still_queued(folder)
        new = [(number, one) for number, one in zip(numbers, job_overrides, strict=True) if number not in known]
        jobs = {number: known[number] for number in numbers if number in known}
        for number, job in jobs.items():
            print(f"job {number} was sent before, as {job.job_id}, and is waited for", flush=True)
        if new:
            sent = self._send(folder, new)
            jobs |= {number: job for (number, _), job in zip(new, sent, strict=True)}
            _note(folder, {number: str(job.job_id) for number, job in jobs.items()})
            for (number, typed), job in zip(new, sent, strict=True):
                print(f"sent: job {number} ({' '.join(filter_overrides(typed))}) as {job.job_id}", flush=True)
            print(f"what they print: {folder}/*/*.out and *.err", flush=True)
        return self._wait(jobs)

    def _send(self, folder: Path, jobs: Sequence[tuple[int, Sequence[str]]]) -> list[Any]:
        executor = self.executor(folder)
        state = Singleton.get_state()
        given = [(list(typed), "hydra.sweep.dir", number, f"job_id_for_{number}", state) for number, typed in jobs]
        try:
            job = Elsewhere(self._inside, tuple(sys.argv), self.parameters["timeout_min"])
            sent: list[Any] = executor.map_array(job, *zip(*given, strict=True))
        except Exception as error:  # submitit, which is optional, has no one class for what sbatch says
            if not type(error).__module__.startswith("submitit"):
                raise
            said = re.findall(r"(?:sbatch: )?error: (.*)", str(error)) or [" ".join(str(error).split())]
            raise ClusterError(f"the jobs were not sent: {'; '.join(said)}; correct hydra.launcher.*") from error
        return sent

    def executor(self, folder: Path) -> Any:
        """submitit's, with the parameters."""
        import submitit

        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=self.scheduler)
        executor.update_parameters(**self.named())
        return executor

    def named(self) -> dict[str, Any]:
        """The parameters that are set, by submitit's names."""
        known = {name: one for name, one in self.parameters.items() if name not in HERE and one is not None}
        return {name if name in SHARED else f"{self.scheduler}_{name}": one for name, one in known.items()}

    def show(self, jobs: Sequence[Job], num_jobs: int) -> None:
        """Print what `launch` would send, and what it would take.

        Args:
            num_jobs: How many there would be; more than `jobs` in a search.
        """
        from rsd.commands.forecast import forecast_lines

        if self.scheduler == "slurm":
            print(self.script(Path(self.config.hydra.sweep.dir) / ".submitit", num_jobs))
        else:
            print(f"{num_jobs} processes of this machine at once, without a batch script")
        asked = self.parameters
        gpus = (asked.get("gpus_per_node") or 0) * asked["nodes"]
        for line in forecast_lines(
            jobs,
            minutes=asked["timeout_min"],
            num_jobs=num_jobs,
            gpus=gpus,
            cpus=asked.get("cpus_per_task"),
            memory=asked.get("mem_gb"),
            runs=Path(OmegaConf.select(self.config, "paths.runs") or "outputs/runs"),
        ):
            print(line)

    def script(self, folder: Path, num_jobs: int) -> str:
        """The text that sbatch gets, where there is no sbatch, too."""
        from submitit.slurm import slurm  # typed, but of no public function that writes it

        made: Any = slurm
        known = {"job_name" if name == "name" else name: one for name, one in self.parameters.items()}
        known = {name: one for name, one in known.items() if name not in HERE and one is not None}
        named = {made.SlurmExecutor._equivalence_dict().get(name, name): one for name, one in known.items()}
        if "mem" in named:
            named["mem"] = made._convert_mem(named["mem"])
        if num_jobs > 1:
            named["map_count"] = num_jobs
        command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder / "%j")])
        text: str = made._make_sbatch_string(command=command, folder=folder / "%j", **named)
        return text

    def _wait(self, jobs: dict[int, Any]) -> list[Any]:
        """Wait for every job, whatever becomes of another one."""
        returned = []
        try:
            for number, job in jobs.items():
                try:
                    returned += (own := job.results())
                    for one in own:
                        if one.status == JobStatus.FAILED:
                            print(f"job {number} failed: {one._return_value}", file=sys.stderr, flush=True)
                except Exception as error:  # submitit's, of a job that was lost; the sweep tells of it
                    if not type(error).__module__.startswith("submitit"):
                        raise
                    print(f"job {number}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            if self.scheduler == "slurm":
                ids = " ".join(sorted({str(job.job_id).partition("_")[0] for job in jobs.values()}))
                print(f"\nthe jobs go on: scancel {ids} ends them, and the same command waits for them again")
            raise
        return returned

    def _still_queued(self, folder: Path) -> dict[int, Any]:
        """Jobs that an earlier start has sent and that SLURM has not ended, by number."""
        path = folder / SENT_FILE
        if self.scheduler != "slurm" or not path.is_file():
            return {}
        import submitit

        record: dict[str, str] = read(path, dict[str, str], error=SettingError, remedy="remove it")
        queued = {number: job for number, job in record.items() if _state(job) in QUEUED}
        return {int(number): submitit.SlurmJob(folder=folder / "%j", job_id=job) for number, job in queued.items()}


class Slurm(Submitit):
    """hydra/launcher=submitit_slurm."""

    scheduler = "slurm"


class Local(Submitit):
    """hydra/launcher=submitit_local."""

    scheduler = "local"


def _set(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are switched on: sbatch has no word for false."""
    return {name: one for name, one in options.items() if one is not None and one is not False}


def _note(folder: Path, jobs: dict[int, str]) -> None:
    path = folder / SENT_FILE
    before: dict[str, str] = {}
    if path.is_file():
        before = read(path, dict[str, str], error=SettingError, remedy="remove it")
    write(path, {**before, **{str(number): job for number, job in jobs.items()}})


def _state(job: str) -> str:
    """A job's state in SLURM's queue; empty where it is no longer there."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
