"""What is seen of the command line before Hydra reads it: its own options, and no sweep over phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from rsd.errors import SettingError


def check_options(arguments: Sequence[str]) -> None:
    """See that the options, what begins with a dash, are Hydra's; it would answer with its usage.

    Raises:
        SettingError: one is not, or they do not go together.
    """

    def refuse(message: str) -> NoReturn:
        raise SettingError(f"{message}; settings are KEY=VALUE, and --help names them, --hydra-help Hydra's options")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(list(arguments))
    commands = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    typed = [name for name, value in (commands | {"--shell-completion": given.shell_completion}).items() if value]
    if len(typed) > 1:
        refuse(f"{' and '.join(typed)} do not go together")
    if given.resolve and not given.cfg:
        refuse("--resolve goes with --cfg alone")


def check_sweep(arguments: Sequence[str]) -> None:
    """See that no multirun sweeps the phase: what one phase makes is only published when all jobs have ended.

    Raises:
        SettingError: it does.
        HydraException: the phase cannot be read.
    """
    for argument in arguments:
        is_phase = argument.partition("=")[0].lstrip("+") == "phase"
        if is_phase and OverridesParser.create().parse_overrides([argument])[0].is_sweep_override():
            raise SettingError(f"{argument}: a sweep varies settings of one phase; run the phases one after another")
