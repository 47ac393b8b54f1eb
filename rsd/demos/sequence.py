"""Several goals, one after the other, each by its own skill.

What surprises first: nothing is ticked off. Whenever the hand is free, the first step whose goal does not hold now is
the next one, so that what a later step has undone is done again, and what holds from the start is never begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Goal = Sequence[str]  # a relation and its arguments, such as ["on", "akita_black_bowl_1", "plate_1"]


class Skill(Protocol):
    """Something that the expert can do in one scene, again and again."""

    def begin(self) -> None:
        """Look at the scene just after a reset, or after another skill."""

    def act(self) -> tuple[np.ndarray, bool]:
        """The right action now, [A], and whether a disturbance would be harmless."""

    @property
    def hand_is_free(self) -> bool:
        """Whether the last action was of a hand that is empty and away from things, so that it may do another."""


@dataclass(frozen=True)
class Step:
    """One of several things to do.

    Attributes:
        goal: What must hold.
        skill: Who sees to it.
        until: Another goal, for which this one is only a means: once that holds, this need not.
    """

    goal: Goal
    skill: Skill
    until: Goal | None = None


class InTurn:
    """Reaches all goals, each after those before it.

    Args:
        steps: What to do, in an order that works.
        holds: Whether a goal holds now.
    """

    _skill: Skill

    def __init__(self, steps: Sequence[Step], holds: Callable[[Goal], bool]) -> None:
        self._steps, self._holds = steps, holds

    def begin(self) -> None:
        self._skill = self._due() or self._steps[-1].skill
        self._skill.begin()

    def act(self) -> tuple[np.ndarray, bool]:
        action, harmless = self._skill.act()
        if self._skill.hand_is_free and (due := self._due()) not in (None, self._skill):
            self._skill = due
            due.begin()
            action, harmless = due.act()
        return action, harmless

    @property
    def hand_is_free(self) -> bool:
        return self._skill.hand_is_free

    def _due(self) -> Skill | None:
        """The first skill that is still needed; None when all goals hold."""
        for step in self._steps:
            if not self._holds(step.goal) and not (step.until and self._holds(step.until)):
                return step.skill
        return None
