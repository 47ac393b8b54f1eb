"""Values that Hydra's grammar stumbles over: folders with = or with letters outside ASCII, put in quotes for it."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def quoted(argument: str) -> str:
    """The argument, its value in quotes where Hydra can read it only so; one that is wrong anyway as it is."""
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals or _is_readable(argument):
        return argument
    in_quotes = f"{key}=" + "'" + value.replace("'", "\\'") + "'"
    is_text = not value.startswith(("[", "{", "'", '"')) and "," not in value
    return in_quotes if is_text and _is_readable(in_quotes) else argument


def _is_readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True
