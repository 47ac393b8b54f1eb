"""What a command requires of its configuration, beside what each setting is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from rsd.errors import SettingError
from rsd.settings import Made, Text, require


def check_chunk(cfg: DictConfig) -> None:
    """See that a configuration's `chunk`, where it has one, is a number of control steps.

    Raises:
        SettingError: it is not a whole number, or below 1.
    """
    chunk = cfg.get("chunk", 1)
    if type(chunk) is not int or chunk < 1:
        raise SettingError(f"chunk is {chunk!r}, expected a whole number of control steps, 1 or more: chunk=8")


def require_simulator(cfg: DictConfig) -> None:
    """See that the env of a command that simulates is a simulator's.

    Raises:
        SettingError: it is recorded frames.
    """
    if "replay" in cfg.env:
        raise SettingError(
            "env=replay is recorded frames and no simulator, which this command needs; choose a suite: "
            "env=libero_spatial (python eval.py env=replay takes a policy through recorded frames)"
        )


def require_parts(phase: DictConfig) -> None:
    """See that a phase has what it trains and what on, once its own check has passed: null stands there otherwise.

    Raises:
        SettingError: it has not, or what it reads is no path.
    """
    for name in ("module", "datamodule"):
        require(f"phase.{name}", phase[name], Made)
    require("phase.reads", phase.reads, Mapping[str, Any])
    for part, path in phase.reads.items():
        require(f"phase.reads.{part}", path, Text | None)
