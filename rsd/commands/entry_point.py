"""How every entry point starts: the command line made ready before Hydra reads it, and what is wrong told in one line.

What is raised inside of the main is told by rsd/commands/error_reports.py.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsd.commands.command_line import check_options, check_sweep
from rsd.commands.dry_run import SAME_NAME, without_dry_run
from rsd.commands.error_lines import cause_of, in_one_line, is_expected
from rsd.commands.error_reports import JobError
from rsd.commands.quoting import quoted
from rsd.commands.requeued import is_own_run
from rsd.commands.run_folder import RUNS, check_command, typed_folder
from rsd.commands.stored import check_stored
from rsd.commands.usage import check_choices, experiment_of, is_pipeline, usage_page
from rsd.errors import RSDError
from rsd.interrupts import in_order
from rsd.locks import hold
from rsd.processes import is_first_process
from rsd.runs import check_unused, resume_arguments, resumed_folder, unused_folder


def run(main: Callable[[], Any], config: Path) -> None:
    """Call a Hydra main with the command line made ready: --help answered, resume=DIR expanded.

    Processes that train together with the first one are started with a command line that is ready.

    Args:
        main: What `hydra.main` has made.
        config: Its root configuration, which --help reads.
    """
    warnings.filterwarnings("ignore", SAME_NAME)
    OmegaConf.register_new_resolver("unused", unused_folder, replace=True)
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage_page(config))
        return
    if is_first_process():
        if (experiment := experiment_of(sys.argv[1:])) is not None and is_pipeline(config, experiment):
            _run_pipeline(config)
            return
        try:
            sys.argv[1:] = without_dry_run(sys.argv[1:])
            check_options(sys.argv[1:])
            if (stored := resumed_folder(sys.argv[1:])) is not None:
                check_stored(stored, config, sys.argv[1:])
            expanded = resume_arguments(sys.argv[1:])
            check_command(sys.argv[1:], config)
            if stored is not None:
                hold(stored)  # before Hydra writes there
            if stored is None and config.stem in RUNS:
                for folder in typed_folder(sys.argv[1:]):
                    if not is_own_run(folder):
                        check_unused(folder)
            if is_sweep := bool({"-m", "--multirun"} & set(expanded)):
                in_order()  # jobs to tell of
            sys.argv[1:] = [quoted(one, is_sweep) for one in expanded]
            check_sweep(sys.argv[1:])
            check_choices(config, sys.argv[1:])
        except (RSDError, HydraException, OmegaConfBaseException, OSError) as error:
            if not is_expected(error):
                raise
            sys.exit(f"error: {in_one_line(error)}")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes on what is raised outside of the job, its folder for example
    try:
        main()
    except JobError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  a defect, shown as Hydra would show it
        if is_expected(error):
            sys.exit(f"error: {in_one_line(cause_of(error))}")
        traceback.print_exc()
        sys.exit(1)


def _run_pipeline(config: Path) -> None:
    """Run the pipeline that an experiment is."""
    from rsd.commands.chain import run_pipeline  # needs torch, which --help does not wait for

    in_order()  # steps to end
    try:
        run_pipeline(config, [quoted(one) for one in sys.argv[1:]])
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # what a user can expect is of many classes; anything else is raised again
        if not is_expected(error):
            raise
        sys.exit(f"error: {in_one_line(cause_of(error))}")
