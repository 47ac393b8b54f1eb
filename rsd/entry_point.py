"""What every entry point does around its work: one clear error instead of a traceback, and results where others look.

Expected errors (a missing checkpoint, a full disk, a wrong value) end in one line and exit code 1; the traceback goes
to error.log in the run folder. Anything else is a defect of this program and keeps its traceback.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from rich.console import Console
from rich.table import Table

from rsd.files import write_atomically
from rsd.runs import CONFIG_FILE, METRICS_FILE, RunError, resume_arguments

ERROR_FILE = "error.log"
NUMBERED_GROUPS = ("chunk",)  # config groups whose choices are numbers


def is_first_process() -> bool:
    """Whether this is the process that the user started; its trainer starts others like it to train together."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_expected(error: BaseException) -> bool:
    """Whether an error speaks to the user: one of this package's, a wrong value, or the operating system's."""
    return type(error).__module__.startswith("rsd.") or isinstance(error, ValueError | OSError)


def cause_of(error: BaseException) -> BaseException:
    """What a class raised in its constructor, out of the errors that Hydra wraps around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def report_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a Hydra main, below `hydra.main`: print expected errors as one line and exit with 1.

    In a multirun the error is raised instead, so that the sweep's table shows the failed job.
    """

    @functools.wraps(main)
    def wrapped(cfg: Any) -> Any:
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on intervals, workers, other products
        for chatter in ("absl", "OpenGL", "pytorch_lightning.utilities.rank_zero"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        try:
            return main(cfg)
        except (ValueError, OSError, RuntimeError, LookupError, InstantiationException) as raised:
            error = cause_of(raised)
            if not is_expected(error):
                raise
            hydra_cfg = HydraConfig.get()
            if hydra_cfg.mode == RunMode.MULTIRUN:
                raise error from None
            log = Path(hydra_cfg.runtime.output_dir) / ERROR_FILE
            log.write_text("".join(traceback.format_exception(raised)))
            print(f"error: {error}\n(traceback in {log})", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            hint = f"; continue with resume={run_dir}" if (run_dir / CONFIG_FILE).is_file() else ""
            print(f"\ninterrupted{hint}", file=sys.stderr)
            sys.exit(130)

    return wrapped


def run(main: Callable[[], Any]) -> None:
    """Call a Hydra main with the command line made ready: resume=DIR expanded, chunk=8,16 taken as names.

    Processes that train together with the first one are started with a command line that is ready.
    """
    if is_first_process():
        try:
            sys.argv[1:] = name_choices(resume_arguments(sys.argv[1:]))
        except RunError as error:
            sys.exit(f"error: {error}")
    main()


def name_choices(arguments: Sequence[str]) -> list[str]:
    """Quote numbers that choose a file of a config group: Hydra would read chunk=8 as an integer and refuse it."""
    named = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in NUMBERED_GROUPS and equals:
            choices = [f"'{choice}'" if choice.strip().isdigit() else choice for choice in value.split(",")]
            argument = f"{key}={','.join(choices)}"
        named.append(argument)
    return named


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


def publish(folder: Path, name: Path) -> None:
    """Point `name` (a symbolic link) at a run's checkpoint folder, where the next phase looks for it.

    An earlier checkpoint stays in its own run folder.

    Raises:
        FileExistsError: `name` is a real folder, put there by hand; it is not replaced.
    """
    name = Path(name)
    if name.exists() and not name.is_symlink():
        raise FileExistsError(f"{name} is a folder of its own, not a link to a run; move it away to publish {folder}")
    name.parent.mkdir(parents=True, exist_ok=True)
    if name.is_symlink() and name.resolve() != folder.resolve():
        print(f"{name} pointed to {name.resolve()}; from now on it points to {folder}")
    link = name.with_name(name.name + ".new")
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(folder.resolve(), name.parent.resolve()), target_is_directory=True)
    os.replace(link, name)


def finish_run(run_dir: Path, title: str, metrics: dict[str, Any], shown: list[str]) -> None:
    """Write metrics.json (flat) and print those named in `shown`, a row each: one value, or one a stage."""
    flat = dict(flatten(metrics))
    write_atomically(run_dir / METRICS_FILE, json.dumps(flat, indent=1) + "\n")
    table = Table(box=None, pad_edge=False, show_header=False)
    for prefix in shown:
        values = [value for name, value in flat.items() if name == prefix or name.rpartition("/")[0] == prefix]
        table.add_row(prefix, *(f"{value:.3g}" for value in values))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(title, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"run folder: {run_dir}", soft_wrap=True, markup=False)
