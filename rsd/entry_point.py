"""What every entry point does around its work: one clear error instead of a traceback, and results where others look.

This package's own errors, and what Hydra says about the configuration, end in one line and exit code 1; the traceback
goes to error.log in the run folder. Anything else is a defect of this program and keeps its traceback.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from rsd.errors import RSDError, SettingError
from rsd.processes import is_first_process
from rsd.publishing import Offer, publish, write_offer
from rsd.runs import CONFIG_FILE, METRICS_FILE, open_run, resume_arguments, write_atomically
from rsd.usage import check_choices, usage_page

ERROR_FILE = "error.log"


def is_expected(error: BaseException) -> bool:
    """Whether an error speaks to the user: one of this package's, or Hydra's about the configuration."""
    return isinstance(error, RSDError | HydraException | OmegaConfBaseException)


def cause_of(error: BaseException) -> BaseException:
    """What a class raised in its constructor, out of the errors that Hydra wraps around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def in_one_line(error: BaseException) -> str:
    """The message; Hydra's, which go over several lines, in one."""
    return str(error) if isinstance(error, RSDError) else " ".join(str(error).split())


def report_errors(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorator for a Hydra main, below `hydra.main`: print expected errors as one line and exit with 1.

    In a multirun the error is raised instead, so that the sweep's table shows the failed job.
    """

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on intervals, workers, other products
        for chatter in ("absl", "OpenGL", "pytorch_lightning.utilities.rank_zero"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        try:
            check_chunk(cfg)
            return main(cfg)
        except (RSDError, HydraException, OmegaConfBaseException) as raised:
            error = cause_of(raised)
            if not is_expected(error):
                raise error  # noqa: B904  of an InstantiationException Hydra would show the message alone
            hydra_cfg = HydraConfig.get()
            if hydra_cfg.mode == RunMode.MULTIRUN:
                raise error from None
            log = Path(hydra_cfg.runtime.output_dir) / ERROR_FILE
            log.write_text("".join(traceback.format_exception(raised)))
            print(f"error: {in_one_line(error)}\n(traceback in {log})", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            hint = f"; continue with resume={run_dir}" if (run_dir / CONFIG_FILE).is_file() else ""
            print(f"\ninterrupted{hint}", file=sys.stderr)
            sys.exit(130)

    return wrapped


def check_chunk(cfg: DictConfig) -> None:
    """See that a configuration's `chunk`, where it has one, is a number of control steps.

    Raises:
        SettingError: it is not a whole number, or below 1.
    """
    chunk = cfg.get("chunk", 1)
    if type(chunk) is not int or chunk < 1:
        raise SettingError(f"chunk is {chunk!r}, expected a whole number of control steps, 1 or more: chunk=8")


def run(main: Callable[[], Any], config: Path) -> None:
    """Call a Hydra main with the command line made ready: --help answered, resume=DIR expanded.

    Processes that train together with the first one are started with a command line that is ready.

    Args:
        main: What `hydra.main` has made.
        config: Its root configuration, which --help reads.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage_page(config))
        return
    if is_first_process():
        try:
            sys.argv[1:] = resume_arguments(sys.argv[1:])
            check_choices(config, sys.argv[1:])
        except RSDError as error:
            sys.exit(f"error: {error}")
    main()


def begin_run(cfg: DictConfig) -> Path:
    """Open the run folder; processes that train along take the one that the first of them has opened.

    Raises:
        RunError: see `open_run`.
    """
    hydra_cfg = HydraConfig.get()
    return open_run(cfg, hydra_cfg) if is_first_process() else Path(hydra_cfg.runtime.output_dir)


def publish_run(checkpoint: Path, name: Path) -> Path:
    """Publish a run's checkpoint; a job of a multirun only offers it, and the sweep's end decides.

    Returns:
        Where the checkpoint can be found from now on: under its name, or in the run folder.

    Raises:
        PublishError: see `publish`.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        write_offer(checkpoint.parent, Offer(checkpoint, name))
        return checkpoint
    publish(checkpoint, name)
    return name


def flatten(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested metrics → ("name/1", number) pairs; list entries count from 1 as stages do, only numbers are kept."""
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{name}/")
        elif isinstance(value, list):
            yield from flatten({str(index): entry for index, entry in enumerate(value, start=1)}, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def shown_values(flat: dict[str, float], name: str) -> list[float]:
    """The values of one metric out of flat ones: one, or one a stage in the stages' order; none where it is missing."""
    return [value for key, value in flat.items() if key == name or key.rpartition("/")[0] == name]


def finish_run(run_dir: Path, title: str, metrics: dict[str, Any], shown: Sequence[str]) -> float | None:
    """Write metrics.json (flat) and print those named in `shown`, a row each: one value, or one a stage.

    Returns:
        What a sweeper optimises: the first of them that is there, of the last stage where it has one value a stage.
    """
    flat = dict(flatten(metrics))
    write_atomically(run_dir / METRICS_FILE, json.dumps(flat, indent=1) + "\n")
    rows = {name: shown_values(flat, name) for name in shown}
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.3g}" for value in values))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(title, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"run folder: {run_dir}", soft_wrap=True, markup=False)
    return next((values[-1] for values in rows.values() if values), None)
