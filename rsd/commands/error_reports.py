"""One clear error instead of a traceback, around the main of every entry point.

This package's own errors, and what Hydra says about the configuration, end in one line and exit code 1; the traceback
goes to error.log in the run folder, of a multirun in the job's. Anything else is a defect of this program and keeps its
traceback.
"""

from __future__ import annotations

import functools
import logging
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rsd import requeue
from rsd.commands.alone import as_one_command
from rsd.commands.error_lines import (
    NoMemoryError,
    ProcessDiedError,
    as_expected,
    cause_of,
    in_one_line,
    is_expected,
    with_typed,
)
from rsd.commands.requeued import interrupted
from rsd.commands.requirements import check_chunk
from rsd.commands.run_folder import go_on_after_requeue, output_dir
from rsd.commands.settings import check_settings
from rsd.interrupts import tell
from rsd.locks import TakenError
from rsd.runs import CONFIG_FILE

ERROR_FILE = "error.log"


class JobError(CompactHydraException):
    """How a job of a multirun failed; of all errors, Hydra prints these without a traceback."""


def report_errors(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorator for a Hydra main, below `hydra.main`: print expected errors as one line and exit with 1.

    All settings are looked at before the main is called. In a multirun a JobError is raised instead of exiting: Hydra
    decides how it goes on, and the table has the job.
    """

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        tell(_how_to_go_on)
        logging.raiseExceptions = False  # a log for which there is no room prints no traceback of its own
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on intervals, workers, other products
        for chatter in ("absl", "OpenGL", "pytorch_lightning.utilities.rank_zero"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        try:
            with requeue.heeding() if "resume" in cfg else nullcontext():
                try:
                    check_chunk(cfg)
                    check_settings(cfg)
                    go_on_after_requeue(cfg)
                    with as_one_command():
                        return main(cfg)
                except KeyboardInterrupt:  # before the first step or episode, or after the last
                    if requeue.asked() is None:
                        print(f"\ninterrupted{_how_to_go_on()}", file=sys.stderr)
                        sys.exit(130)
                    interrupted(Path(output_dir()), what="step" if "phase" in cfg else "episode", done=0, before=0)
        except Exception as raised:  # noqa: BLE001  passed on, unless it speaks to the user
            error = as_expected(cause_of(raised))
            hydra_cfg = HydraConfig.get()
            if not is_expected(error):
                if hydra_cfg.mode == RunMode.MULTIRUN:
                    print(f"error: {type(error).__name__}: {error}{_keep_traceback(raised)}", file=sys.stderr)
                raise error  # noqa: B904  of an InstantiationException Hydra would show the message alone
            typed = OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)
            line = with_typed(in_one_line(error), cast("list[str]", typed))
            if isinstance(error, OSError | ProcessDiedError | NoMemoryError) and "resume=" not in line:
                line += _how_to_go_on()
            kept = "" if isinstance(error, TakenError) else _keep_traceback(raised)  # the folder is another process's
            print(f"error: {line}{kept}", file=sys.stderr)
            if hydra_cfg.mode == RunMode.MULTIRUN:
                raise JobError(f"{type(error).__name__}: {line}") from None
            sys.exit(1)

    return wrapped


def _how_to_go_on() -> str:
    """End of a line about a run that was broken off; empty where there is nothing to resume."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    return f"; continue with {shlex.quote(f'resume={run_dir}')}" if (run_dir / CONFIG_FILE).is_file() else ""


def _keep_traceback(raised: Exception) -> str:
    """Write the traceback to error.log and say where that is; nothing is said where it cannot be written."""
    log = Path(HydraConfig.get().runtime.output_dir) / ERROR_FILE
    try:
        log.write_text("".join(traceback.format_exception(raised)))
    except OSError:
        return ""  # the disk is full or the folder gone, which is what the line is about
    return f"\n(traceback in {log})"
