"""Where two nested configurations differ, key by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "(absent)"
MAX_SHOWN = 200  # letters of a key or a value in a message
MAX_TOLD = 20  # differences in a message


@dataclass(frozen=True)
class Difference:
    """A dotted key and its value on either side; ABSENT where a side lacks the key."""

    key: str
    left: Any
    right: Any

    def __str__(self) -> str:
        """ "oft.lr: 0.1 → 0.2"."""
        return f"{_short(self.key)}: {_short(self.left)} → {_short(self.right)}"

    def named(self, left: str, right: str) -> str:
        """ "oft.lr: cache 0.1, configuration 0.2", for sides of which neither came first."""
        return f"{self.key}: {left} {self.left!r}, {right} {self.right!r}"


def differences(left: Any, right: Any, ignore: Sequence[str] = (), key: str = "") -> list[Difference]:
    """All places where two values made of dicts differ; keys under `ignore` are left out. Lists are compared whole.

    Args:
        ignore: Dotted keys.
        key: Where `left` and `right` stand.
    """
    if key in ignore:
        return []
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            one
            for name in sorted(left.keys() | right.keys(), key=str)
            for one in differences(
                left.get(name, ABSENT), right.get(name, ABSENT), ignore, f"{key}.{name}" if key else str(name)
            )
        ]
    return [] if left == right else [Difference(key, left, right)]


def told(different: Sequence[Difference]) -> str:
    """Differences in one line, of which a foreign file may have thousands."""
    more = [f"and {len(different) - MAX_TOLD} more"] if len(different) > MAX_TOLD else []
    return "; ".join([*map(str, different[:MAX_TOLD]), *more])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
