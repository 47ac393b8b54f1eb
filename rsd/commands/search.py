"""Values drawn by Optuna, towards one objective or a Pareto front: hydra/sweeper=optuna.

What surprises first: hydra-optuna-sweeper needs an optuna below 3 and keeps no study that could go on, so this is a
sweeper of our own. A trial is told to the study only when its job is done. One that failed or was killed stays as it
was drawn, and the same command runs its job again, alone.

A search space is a dict of Hydra's own sweeps, in hydra.sweeper.params or typed: "range(1,9)", "interval(0.1,1)",
"tag(log,interval(1e-4,1e-2))", "choice(a,b)". The sweep's folder has optuna.db, and pareto.csv with the best trials.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from rsd.commands.entry_point import JobError
from rsd.commands.jobs import Job, checked_jobs, failed_line, finish_sweep, launch_missing, open_sweep
from rsd.errors import SettingError
from rsd.files import write_atomically
from rsd.record import read_json, write

STUDY_FILE = "optuna.db"
SPACE_FILE = "search.json"  # what decides the trials; the study of another space would not fit
PARETO_FILE = "pareto.csv"
SAMPLERS = ("tpe", "nsga2", "random")
DIRECTIONS = ("minimize", "maximize")


class Search(Sweeper):
    """n_trials jobs, n_jobs at a time; see conf/hydra/sweeper/optuna.yaml."""

    def __init__(
        self,
        *,
        n_trials: int,
        n_jobs: int,
        seed: int,
        sampler: str,
        directions: list[str],
        params: Mapping[str, Any] | None,
    ) -> None:
        counts = {"n_trials": n_trials, "n_jobs": n_jobs}
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise SettingError(f"hydra.sweeper.{name} is {value!r}, expected a whole number, 1 or more")
        if sampler not in SAMPLERS:
            raise SettingError(f"hydra.sweeper.sampler is {sampler!r}, expected one of {list(SAMPLERS)}")
        self.directions = [directions] if isinstance(directions, str) else list(directions)
        if not self.directions or not set(self.directions) <= set(DIRECTIONS):
            raise SettingError(f"hydra.sweeper.directions is {self.directions}, expected a list of {list(DIRECTIONS)}")
        self.n_trials, self.n_jobs, self.seed, self.sampler = n_trials, n_jobs, seed, sampler
        self.params = OmegaConf.to_container(params) if OmegaConf.is_config(params) else dict(params or {})

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        space, fixed = self._space(arguments)
        folder = open_sweep(self.config, arguments)
        keep_space(folder, self.settings(space))
        study = self._study(folder)
        jobs = self._jobs(study, space, fixed, folder, drawn=len(study.trials))
        failed: list[Job] = []
        waiting = [job for job in jobs if not study.trials[job.number].state.is_finished()]
        while True:  # those of an earlier start first
            failed += launch_missing(self.launcher, waiting)
            for job in waiting:
                if job not in failed:
                    self._tell(study, job)
            if len(jobs) >= self.n_trials:
                break
            waiting = self._jobs(study, space, fixed, folder, new=min(self.n_jobs, self.n_trials - len(jobs)))
            jobs += waiting
        write_pareto(study, folder)
        if failed:
            raise JobError(failed_line(failed, len(jobs)))
        finish_sweep(folder)
        return [(trial.params, trial.values) for trial in study.best_trials]

    def settings(self, space: Mapping[str, Any]) -> dict[str, Any]:
        """What the trials follow from."""
        own = {"seed": self.seed, "sampler": self.sampler, "directions": self.directions}
        return own | {"space": {key: str(one) for key, one in space.items()}}

    def _space(self, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Key to distribution, and the arguments that are the same for all trials."""
        typed = [f"{key}={value}" for key, value in self.params.items()] + arguments
        space: dict[str, Any] = {}
        fixed: dict[str, str] = {}
        for one in OverridesParser.create(self.loader).parse_overrides(typed):
            key = one.get_key_element()
            space.pop(key, None), fixed.pop(key, None)
            if one.is_sweep_override():
                space[key] = distribution(one)
            else:
                fixed[key] = one.input_line or f"{key}={one.get_value_element_as_str()}"
        if not space:
            raise SettingError(
                'hydra/sweeper=optuna has nothing to search; give it a space: "phase.max_steps=range(100,500)", or an '
                "experiment with one (experiment=search_tokenizer)"
            )
        return space, list(fixed.values())

    def _study(self, folder: Path) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        make = {
            "tpe": optuna.samplers.TPESampler,
            "nsga2": optuna.samplers.NSGAIISampler,
            "random": optuna.samplers.RandomSampler,
        }[self.sampler]
        storage = f"sqlite:///{(folder / STUDY_FILE).resolve()}"
        started = (folder / STUDY_FILE).is_file()
        seed = self.seed
        if started:  # a sampler that began anew would draw what it has drawn
            seed += len(optuna.load_study(study_name="sweep", storage=storage).trials)
        return optuna.create_study(
            storage=storage,
            study_name="sweep",
            directions=self.directions,
            sampler=make(seed=seed),
            load_if_exists=True,
        )

    def _jobs(
        self, study: Any, space: Mapping[str, Any], fixed: list[str], folder: Path, *, drawn: int = 0, new: int = 0
    ) -> list[Job]:
        """The jobs of trials that are drawn already, or of new ones."""
        trials = study.trials[:drawn] if not new else [study.ask(dict(space)) for _ in range(new)]
        jobs = []
        for trial in trials:
            values = [f"{key}={in_hydra(trial.params[key])}" for key in space]
            jobs += checked_jobs(self.loader, self.config, [[*fixed, *values]], trial.number, folder)
        return jobs

    def _tell(self, study: Any, job: Job) -> None:
        result = (job.ended() or {}).get("result")
        values = result if isinstance(result, list) else [result]
        if len(values) != len(self.directions) or None in values:
            raise SettingError(
                f"job {job.number} returned {result}, and hydra.sweeper.directions asks for {len(self.directions)} "
                "figures; name as many metrics of metrics.json: +objective=[NAME,…]"
            )
        study.tell(job.number, values)


def distribution(one: Override) -> Any:
    """Optuna's, of a sweep in Hydra's words.

    Raises:
        SettingError: it is none that can be searched.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = one.value()
    log = "log" in getattr(sweep, "tags", ())
    try:
        if isinstance(sweep, ChoiceSweep):
            return CategoricalDistribution([_plain(value) for value in sweep.list])
        if isinstance(sweep, RangeSweep) and isinstance(sweep.start, int) and isinstance(sweep.step, int):
            high = max(range(sweep.start, int(sweep.stop or 0), sweep.step), default=sweep.start - 1)
            return IntDistribution(sweep.start, high, log=log, step=sweep.step)
        if isinstance(sweep, IntervalSweep) and sweep.start is not None and sweep.end is not None:
            return FloatDistribution(float(sweep.start), float(sweep.end), log=log)
    except ValueError as error:
        raise SettingError(f"{one.input_line} cannot be searched: {error}") from error
    raise SettingError(
        f'{one.input_line} cannot be searched; give "choice(a,b)", "range(1,9)" of whole numbers, or "interval(0.1,1)"'
    )


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def in_hydra(value: Any) -> str:
    """A drawn value as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def keep_space(folder: Path, settings: dict[str, Any]) -> None:
    """Write what decides the trials at a first start, and hold later ones to it.

    Raises:
        SettingError: the folder has the study of another space.
    """
    stored = read_json(folder / SPACE_FILE)
    if stored is None:
        write(folder / SPACE_FILE, settings)
        return
    if different := [name for name, value in settings.items() if stored.get(name) != value]:
        raise SettingError(
            f"{folder} has a study of other settings: {', '.join(different)}; give the old ones, or another folder: "
            "hydra.sweep.dir=DIR"
        )


def write_pareto(study: Any, folder: Path) -> None:
    """pareto.csv: the trials that no other one beats in every objective, the best first in the first of them."""
    best = [] if not any(trial.values for trial in study.trials) else study.best_trials
    best = sorted(best, key=lambda trial: trial.values)
    keys = sorted({key for trial in best for key in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *keys, *(f"objective_{index}" for index in range(1, 1 + len(study.directions)))])
    writer.writerows([trial.number, *(trial.params[key] for key in keys), *trial.values] for trial in best)
    write_atomically(folder / PARETO_FILE, text.getvalue())
    print(
        f"best trials: {', '.join(str(trial.number) for trial in best) or 'none'} ({folder / PARETO_FILE})", flush=True
    )
