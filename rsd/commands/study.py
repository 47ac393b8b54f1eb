"""The cells of a factorial study as the jobs of a multirun: hydra/sweeper=study, see conf/experiment/study.yaml.

Each cell is a run of eval.py in its own folder; the same command goes on with a study that was broken off, as with
every sweep (rsd/commands/jobs.py). At the end, and where a job failed or Ctrl-C came, the table, the record and the
page of the study are written from what the cells have left; they can be made again at any time:

    python -m rsd.commands.study STUDY_DIR

What surprises first: what is typed is given to every job, and may not be what a factor changes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rsd.commands.jobs import check_folders, check_jobs, end_dry_run, launch_missing, open_sweep
from rsd.commands.sweep import end_sweep
from rsd.comparison.factorial import design, label
from rsd.comparison.study import (
    DESIGN_FILE,
    STUDY_CSV,
    STUDY_HTML,
    STUDY_JSON,
    CellRecord,
    Design,
    FactorRecord,
    read_design,
    write_study,
)
from rsd.differences import differences, told
from rsd.errors import RSDError, SettingError
from rsd.options import Options, old_folder, reported
from rsd.record import write

FRACTIONS = ("half", "full")
NUM_TRIALS = "num_trials"


class Study(Sweeper):
    """Cells and controls; see conf/hydra/sweeper/study.yaml."""

    def __init__(
        self,
        *,
        factors: Mapping[str, Any] | None,
        controls: Mapping[str, Any] | None,
        fraction: str,
        margin: float,
        control_trials: int | None,
    ) -> None:
        if fraction not in FRACTIONS:
            raise SettingError(f"hydra.sweeper.fraction is {fraction!r}, expected one of {', '.join(FRACTIONS)}")
        if not isinstance(margin, float) or not 0 < margin < 1:
            raise SettingError(
                f"hydra.sweeper.margin is {margin!r}, expected a share between 0 and 1: 0.02 is two points"
            )
        if control_trials is not None and (type(control_trials) is not int or control_trials < 1):
            raise SettingError(
                f"hydra.sweeper.control_trials is {control_trials!r}, expected a whole number, 1 or more, or null"
            )
        self.factors = {name: _levels(name, one) for name, one in _plain(factors).items()}
        named = {name: one for name, one in _plain(controls).items() if one is not None}  # null takes one away
        self.controls = {name: _overrides(f"controls.{name}", one) for name, one in named.items()}
        self.fraction, self.margin, self.control_trials = fraction, margin, control_trials
        self.signs = design(len(self.factors), half=fraction == "half")

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Called by Hydra, with what was typed."""
        assert self.config is not None and self.launcher is not None  # Hydra has called setup
        cells = self.cells()
        self._check_typed(arguments, cells)
        jobs = check_jobs(self.loader, self.config, [[*arguments, *cell["typed"]] for cell in cells], first=0)
        end_dry_run(self.launcher, jobs, len(jobs), self.config)
        cells = [cell | {"folder": job.subdir} for cell, job in zip(cells, jobs, strict=True)]
        factors = [FactorRecord(name=name, levels=list(levels)) for name, levels in self.factors.items()]
        record = Design(fraction=self.fraction, margin=self.margin, factors=factors, cells=cells)

        def check(there: Path) -> None:
            check_design(there, record)
            check_folders(jobs, there)

        folder = open_sweep(self.config, arguments, check)
        write(folder / DESIGN_FILE, record)
        try:
            launch_missing(self.launcher, jobs, folder)
        finally:
            show_study(folder)
        end_sweep(self.config, jobs)

    def cells(self) -> list[CellRecord]:
        """Cells in the order of the design, then the controls, without their folders."""
        found = []
        for signs in self.signs.tolist():
            chosen = [
                list(levels.values())[sign > 0] for levels, sign in zip(self.factors.values(), signs, strict=True)
            ]
            typed = [override for level in chosen for override in level]
            found.append(CellRecord(name=label(signs), folder="", signs=signs, typed=typed))
        fewer = [] if self.control_trials is None else [f"{NUM_TRIALS}={self.control_trials}"]
        return found + [
            CellRecord(name=name, folder="", signs=[], typed=[*own, *fewer]) for name, own in self.controls.items()
        ]

    def _check_typed(self, arguments: Sequence[str], cells: Sequence[CellRecord]) -> None:
        """See that what is typed is one value a key, and no factor's.

        Raises:
            SettingError: it is not so.
        """
        own = {_key(one) for cell in cells if cell["signs"] for one in cell["typed"]}
        for one in OverridesParser.create(self.loader).parse_overrides(list(arguments)):
            if one.is_sweep_override():
                raise SettingError(f"{one.input_line} is a sweep, and a study's jobs are its cells; give one value")
            if (key := _key(str(one.input_line))) in own:
                raise SettingError(
                    f"{one.input_line} is typed for every cell, and a factor of the study changes {key}; leave it out, "
                    "or change the factor's levels (hydra.sweeper.factors)"
                )


def check_design(folder: Path, record: Design) -> None:
    """See that a folder has no study, or one of the same design.

    Raises:
        SettingError: it has another one.
    """
    stored = read_design(folder)
    if stored is not None and (different := differences(dict(stored), dict(record))):
        raise SettingError(
            f"{folder} has a study of another design: {told(different)}; give the old one, or another folder: "
            "hydra.sweep.dir=DIR"
        )


def show_study(folder: Path) -> None:
    """Write what there is of a study and print its effects; why not, where that cannot be."""
    try:
        study = write_study(folder)
    except RSDError as error:
        print(f"error: no study yet: {error}", file=sys.stderr)
    else:
        print_study(study, folder)


def print_study(study: Mapping[str, Any], folder: Path) -> None:
    """What is missing, the effects, and where the files are."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for name in ("missing", "incomplete"):
        if study[name]:
            console.print(f"{name}: {', '.join(study[name])}", soft_wrap=True, markup=False)
    if study["effects"]:
        console.print(effects_table(study))
    files = ", ".join(str(folder / name) for name in (STUDY_HTML, STUDY_CSV, STUDY_JSON))
    console.print(f"Study: {files}", soft_wrap=True, markup=False)


def effects_table(study: Mapping[str, Any]) -> Table:
    """A row an effect, in points of success."""
    episodes = study["effects"][0]["num_episodes"]
    table = Table(title=f"effects on success, points, {episodes} episodes a cell", title_justify="left", box=None)
    for column in ("effect", "points", "95 % interval", "of all at once", "aliased with"):
        table.add_column(column, justify="left" if column in ("effect", "aliased with") else "right")
    for one in study["effects"]:
        bounds = [f"{100 * one[low]:+.1f} … {100 * one[high]:+.1f}" for low, high in _BOUNDS]
        table.add_row(one["name"], f"{100 * one['value']:+.1f}", *bounds, one["alias"] or "nothing")
    return table


_BOUNDS = (("low", "high"), ("all_low", "all_high"))


def _levels(name: str, given: Any) -> dict[str, list[str]]:
    """The two levels of a factor, each with what is typed for it."""
    if not isinstance(given, dict) or len(given) != 2:
        raise SettingError(
            f"hydra.sweeper.factors.{name} is {given!r}, expected two levels, the reference's first, each with the "
            "list of what is typed for it: {all: [], half: [decoding.decode.num_steps=8]}"
        )
    return {str(level): _overrides(f"factors.{name}.{level}", own) for level, own in given.items()}


def _overrides(name: str, given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(one, str) and "=" in one for one in given):
        raise SettingError(f"hydra.sweeper.{name} is {given!r}, expected a list of overrides, each KEY=VALUE")
    return given


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _plain(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A node of Hydra's as a dict; what stands there for the jobs stays as it is."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(dict(given or {})), resolve=False))


@reported
def main() -> None:
    """Command line: make the files of a study again."""
    parser = Options(description="Make study.json, study.csv and study.html of a factorial study again.")
    parser.add_argument("study_dir", type=old_folder, help="the study's folder, with one folder a cell")
    asked = parser.parse_args()
    print_study(write_study(asked.study_dir), asked.study_dir)


if __name__ == "__main__":
    main()
