"""Values drawn by Optuna, towards one objective or a Pareto front: hydra/sweeper=optuna.

What surprises first: the packaged hydra-optuna-sweeper needs an optuna below 3 and keeps no study that could go on, so
this is one of our own. A trial is told to the study only when its job is done. One that failed or was killed stays as
it was drawn, and the same command runs its job again, alone (rsd/commands/jobs.py). Every draw has a seed of its own,
so a search that was broken off draws what it would have drawn. What was drawn before is not run again: the trial gets
the objectives of the first.

A search space is a dict of Hydra's own sweeps, in hydra.sweeper.params or typed: "range(1,9)", "interval(0.1,1)",
"tag(log,interval(1e-4,1e-2))", "choice(a,b)". The sweep's folder has the study, optuna.db, and search.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from rsd.commands.jobs import Job, check_folders, check_jobs, end_dry_run, ended, is_done, launch_missing, open_sweep
from rsd.commands.objectives import DIRECTIONS, RESULT, SEARCH_FILE, SearchRecord, objective, read_search
from rsd.commands.sweep import end_sweep
from rsd.differences import differences, told
from rsd.errors import SettingError
from rsd.record import read_json, write
from rsd.runs import METRICS_FILE

STUDY_FILE = "optuna.db"
STUDY = "sweep"  # its name in that file
SAMPLERS = ("tpe", "nsga2", "random")


class Search(Sweeper):
    """n_trials jobs, n_jobs at a time; see conf/hydra/sweeper/optuna.yaml."""

    def __init__(
        self,
        *,
        n_trials: int,
        n_jobs: int,
        seed: int,
        sampler: str,
        objectives: Mapping[str, str] | None,
        params: Mapping[str, Any] | None,
    ) -> None:
        for name, value, least in (("n_trials", n_trials, 1), ("n_jobs", n_jobs, 1), ("seed", seed, 0)):
            if type(value) is not int or value < least:
                raise SettingError(f"hydra.sweeper.{name} is {value!r}, expected a whole number, {least} or more")
        if sampler not in SAMPLERS:
            raise SettingError(f"hydra.sweeper.sampler is {sampler!r}, expected one of {', '.join(SAMPLERS)}")
        self.objectives = _plain(objectives) or {RESULT: "minimize"}
        if not set(self.objectives.values()) <= set(DIRECTIONS):
            raise SettingError(
                f"hydra.sweeper.objectives is {self.objectives}, expected figures of metrics.json, each with one of "
                f"{', '.join(DIRECTIONS)}: hydra.sweeper.objectives.mse=minimize"
            )
        self.n_trials, self.n_jobs, self.seed, self.sampler = n_trials, n_jobs, seed, sampler
        self.params = _plain(params)

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Called by Hydra, with what was typed."""
        require_optuna()
        assert self.config is not None and self.launcher is not None  # Hydra has called setup
        space, fixed = self._space(arguments)
        corner_jobs = check_jobs(self.loader, self.config, [[*fixed, *one] for one in corners(space)], first=0)
        end_dry_run(self.launcher, corner_jobs, self.n_trials, self.config)
        record = self._record(space)
        folder = open_sweep(self.config, arguments, lambda there: check_search(there, record))
        write(folder / SEARCH_FILE, record)
        study = self._study(folder)
        runs: dict[str, Job] = {}  # the first job of those that are given the same
        waiting = [self._job(trial, space, fixed, folder) for trial in drawn(study, space)]
        num_drawn = 0
        while waiting or num_drawn < self.n_trials:  # those of an earlier start first
            num_drawn += len(waiting)
            firsts = [runs.setdefault(str(job.typed), job) for job in waiting]
            launch_missing(self.launcher, [job for job in waiting if job in firsts], folder)
            for job, first in zip(waiting, firsts, strict=True):
                if is_done(first, folder) and not study.trials[job.number].state.is_finished():
                    study.tell(job.number, self._objectives(first, folder))
            new = min(self.n_jobs, self.n_trials - num_drawn)
            waiting = [self._job(self._ask(study, space), space, fixed, folder) for _ in range(new)]
        end_sweep(self.config, list(runs.values()))

    def _space(self, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Key to distribution, and the overrides that are the same for all trials."""
        typed = [f"{key}={value}" for key, value in self.params.items()] + arguments
        space: dict[str, Any] = {}
        fixed: dict[str, str] = {}
        for one in OverridesParser.create(self.loader).parse_overrides(typed):
            key = one.get_key_element()
            space.pop(key, None), fixed.pop(key, None)  # the last one counts
            if one.is_sweep_override():
                space[key] = distribution(one)
            else:
                fixed[key] = cast(str, one.input_line)
        if not space:
            raise SettingError(
                'hydra/sweeper=optuna has nothing to search; give it a space, "phase.max_steps=range(100,500)", or an '
                "experiment that has one, experiment=search_tokenizer"
            )
        return space, list(fixed.values())

    def _record(self, space: Mapping[str, Any]) -> SearchRecord:
        own = {"objectives": self.objectives, "sampler": self.sampler, "seed": self.seed}
        return cast(SearchRecord, own | {"space": {key: str(one) for key, one in space.items()}})

    def _study(self, folder: Path) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = f"sqlite:///{(folder / STUDY_FILE).resolve()}"
        directions = list(self.objectives.values())
        return optuna.create_study(storage=storage, study_name=STUDY, directions=directions, load_if_exists=True)

    def _ask(self, study: Any, space: Mapping[str, Any]) -> Any:
        from optuna import samplers

        seed = self.seed + len(study.trials)
        if self.sampler == "tpe":
            study.sampler = samplers.TPESampler(seed=seed, constant_liar=True)  # away from what runs, or failed
        else:
            study.sampler = {"nsga2": samplers.NSGAIISampler, "random": samplers.RandomSampler}[self.sampler](seed=seed)
        return study.ask(dict(space))

    def _job(self, trial: Any, space: Mapping[str, Any], fixed: list[str], folder: Path) -> Job:
        assert self.config is not None
        values = [f"{key}={trial.params[key]}" for key in space]
        (job,) = check_jobs(self.loader, self.config, [[*fixed, *values]], first=trial.number)
        check_folders([job], folder)
        return job

    def _objectives(self, job: Job, folder: Path) -> list[float]:
        metrics: dict[str, Any] = read_json(folder / job.subdir / METRICS_FILE) or {}
        end = ended(job, folder)
        result = end.get("result") if end else None
        settings = dict(one.lstrip("+").partition("=")[::2] for one in job.typed)
        values = {name: objective(name, metrics, result, settings) for name in self.objectives}
        if missing := [name for name, value in values.items() if value is None]:
            known = sorted({name.rpartition("/")[0] if name.rpartition("/")[2].isdigit() else name for name in metrics})
            raise SettingError(
                f"{job} has no figure {', '.join(missing)}, which hydra.sweeper.objectives asks for; its metrics.json "
                f"has {', '.join(known)}"
            )
        return [value for value in values.values() if value is not None]


def require_optuna() -> None:
    """See that Optuna is there, which no other command needs.

    Raises:
        SettingError: it is not.
    """
    try:
        import optuna
    except ImportError as error:
        raise SettingError(
            "hydra/sweeper=optuna needs optuna 4 or later, which is not installed: pip install 'rsd[sweep]'"
        ) from error
    if int(optuna.__version__.partition(".")[0]) < 4:
        raise SettingError(
            f"hydra/sweeper=optuna needs optuna 4 or later, not {optuna.__version__}; pip install --upgrade optuna"
        )


def distribution(one: Override) -> Any:
    """Optuna's, of a sweep in Hydra's words.

    Raises:
        SettingError: it is none that can be searched.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = one.value()
    log = "log" in getattr(sweep, "tags", ())
    try:
        if isinstance(sweep, IntervalSweep):
            return FloatDistribution(float(cast(float, sweep.start)), float(cast(float, sweep.end)), log=log)
        if isinstance(sweep, RangeSweep) and {type(sweep.start), type(sweep.stop), type(sweep.step)} == {int}:
            values = range(cast(int, sweep.start), cast(int, sweep.stop), cast(int, sweep.step))
            return IntDistribution(min(values), max(values), log=log, step=abs(values.step))
        return CategoricalDistribution(list(one.sweep_string_iterator()))
    except ValueError as error:
        raise SettingError(f"{one.input_line} cannot be searched: {error}") from error


def corners(space: Mapping[str, Any]) -> list[list[str]]:
    """Overrides that show each choice, and both ends of each range, once: what may be wrong is seen before a job."""
    ends = {
        key: list(getattr(one, "choices", None) or dict.fromkeys((one.low, one.high))) for key, one in space.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    shown = [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]
    return [[f"{key}={value}" for key, value in one.items()] for one in shown]


def drawn(study: Any, space: Mapping[str, Any]) -> list[Any]:
    """The trials of earlier starts; one that a kill left half drawn is given up."""
    from optuna.trial import TrialState

    trials = [trial for trial in study.trials if trial.state != TrialState.FAIL]
    for trial in trials:
        if trial.params.keys() != space.keys():
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial in trials if trial.params.keys() == space.keys()]


def check_search(folder: Path, record: SearchRecord) -> None:
    """See that a folder has no study, or one of the same settings.

    Raises:
        SettingError: it has another one.
    """
    stored = read_search(folder)
    if stored is not None and (different := differences(dict(stored), dict(record))):
        raise SettingError(
            f"{folder} has a study of other settings: {told(different)}; give the old ones, or another folder: "
            "hydra.sweep.dir=DIR"
        )


def _plain(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A node of Hydra's as a dict."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(dict(given or {}))))
