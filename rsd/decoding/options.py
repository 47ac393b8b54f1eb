"""Checks of what a decoding is given: from a command line or from JSON a typo comes as a string."""

from __future__ import annotations

import math
from typing import TypeGuard

from rsd.errors import SettingError


def require_temperature(value: object) -> None:
    """Raise SettingError unless it is a finite number of at least 0."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise SettingError(f"temperature {value!r}, expected a finite number of at least 0; 0 is greedy")


def require_whole(name: str, value: object) -> None:
    """Raise SettingError unless it is an int."""
    if type(value) is not int:
        raise SettingError(f"{name} {value!r}, expected a whole number")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an int or float, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
