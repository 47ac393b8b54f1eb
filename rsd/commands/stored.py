"""What a stored run may say to the command that continues it: choices of groups and plain values, and nothing else.

A run folder is data, and may be a stranger's. Its overrides.yaml is read as a list of Hydra's overrides, of which
those are refused that would name code (`_target_` and the like), set up Hydra itself, leave conf/, ask the
environment, or change or delete what is checked before the start. Who trusts one of them types it again
beside resume=; it is then the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from rsd.record import shown
from rsd.runs import OVERRIDES_FILE, RunError, read_overrides

KEY = re.compile(r"[\w-]+([./][\w-]+)*(@[\w.-]+)?")
CHOICE = re.compile(r"[\w-]+(/[\w-]+)*")
REFERENCE = re.compile(r"\$\{[\w.]+\}")  # to another key; one with a colon asks a resolver
OWN = ("hydra", "resume")  # keys that only the command line may hold
CHECKS = ("check", "reads")  # keys of what is called before anything starts, and of what a resume is held to


def check_stored(run_dir: Path, config: Path, typed: Sequence[str]) -> None:
    """See that a run's overrides are group choices and plain values.

    Args:
        run_dir: The run's folder.
        config: The command's root configuration; the folders beside it are the groups.
        typed: The command line, whose own overrides are not looked at.

    Raises:
        RunError: one is something else; the message names it.
    """
    for text in read_overrides(run_dir):
        if text not in typed and (problem := _problem(text, config.parent)) is not None:
            raise RunError(
                f"cannot resume: {run_dir / OVERRIDES_FILE} holds {shown(text)}, {problem}; a stored run may hold "
                "choices of groups and plain values. If you trust it, type that override again beside resume="
            )


def _problem(text: str, conf: Path) -> str | None:
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError):
        return "which is no override"
    key = override.key_or_group
    names = re.split(r"[./@]", f"{key}@{override.package or ''}")
    if not KEY.fullmatch(key + (f"@{override.package}" if override.package else "")):
        return "whose key is none"
    if names[0] in OWN or "hydra" in names:
        return "a setting of Hydra or of the command line"
    if any(name.startswith("_") for name in names):
        return "which names what is to be called"
    if override.is_sweep_override():
        return "a sweep"
    values = [] if override.is_delete() else list(_leaves(override.value()))
    if any(isinstance(value, str) and "${" in REFERENCE.sub("", value) for value in values):
        return "which asks the environment or a resolver"
    if any(isinstance(value, _Key) and value.startswith("_") for value in values):
        return "which names what is to be called"
    if any(key in CHECKS for key in [*names, *(value for value in values if isinstance(value, _Key))]):
        return "which changes what is checked before the start"
    is_group = (conf / key).is_dir() or "/" in key
    if is_group and not all(value is None or CHOICE.fullmatch(str(value)) for value in values):
        return "whose choice lies elsewhere"
    return None


class _Key(str):
    """A key inside a value."""


def _leaves(value: Any) -> Iterator[Any]:
    """Values and keys in a value, as deep as it goes."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield _Key(name.text if isinstance(name, QuotedString) else str(name))
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    else:
        yield value.text if isinstance(value, QuotedString) else value
