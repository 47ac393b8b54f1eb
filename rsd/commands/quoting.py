"""Values that Hydra's grammar stumbles over: folders with =, a comma or letters outside ASCII, in quotes for it."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rsd.runs import PLACES

FOLDERS = (*PLACES, "resume", "hydra.run.dir", "hydra.sweep.dir")  # their values are paths, whatever they look like


def quoted(argument: str, is_sweep: bool = False) -> str:
    """The argument, its value in quotes where Hydra cannot read it without; one that quotes cannot repair as it is.

    Args:
        is_sweep: Whether commas stand between the values of a multirun; else they are part of a path.
    """
    key, equals, value = argument.partition("=")
    is_path = not is_sweep and (_is_folder(key.lstrip("+")) or ("," in value and "/" in value))
    if argument.startswith("-") or not equals or not value or _is_readable(argument, is_path):
        return argument
    in_quotes = f"{key}=" + "'" + value.replace("'", "\\'") + "'"
    is_text = not value.startswith(("[", "{", "'", '"')) and ("," not in value or is_path)
    return in_quotes if is_text and _is_readable(in_quotes, is_path) else argument


def _is_folder(key: str) -> bool:
    below = any(key.startswith(f"{one}.") for one in FOLDERS if one != "policy")  # whose own are settings, numbers too
    return key in FOLDERS or below


def _is_readable(argument: str, is_path: bool) -> bool:
    """Whether Hydra takes the argument; of a path, as one text (or null), not as a number or several values."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return not is_path or (not override.is_sweep_override() and not isinstance(override.value(), int | float))
