"""Values that Hydra's grammar stumbles over: folders with =, a comma or letters outside ASCII, in quotes for it."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def quoted(argument: str, is_sweep: bool = False) -> str:
    """The argument, its value in quotes where Hydra can read it only so; one that is wrong anyway as it is.

    Args:
        is_sweep: Whether commas stand between the values of a multirun; else they are part of a path.
    """
    key, equals, value = argument.partition("=")
    is_path = not is_sweep and "," in value and "/" in value
    if argument.startswith("-") or not equals or (_is_readable(argument) and not is_path):
        return argument
    in_quotes = f"{key}=" + "'" + value.replace("'", "\\'") + "'"
    is_text = not value.startswith(("[", "{", "'", '"')) and ("," not in value or is_path)
    return in_quotes if is_text and _is_readable(in_quotes) else argument


def _is_readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True
