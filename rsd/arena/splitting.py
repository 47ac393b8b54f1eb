"""A suite's demonstrations, split: those that contestants are fitted on, and held-out ones to measure and to execute.

What surprises first: held out is every second demonstration of a task that was collected without disturbance, because
only there the recorded actions are those that were executed; the disturbed ones are fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rsd.space import Space

if TYPE_CHECKING:  # --help does not wait for torch
    from torch import Tensor


@dataclass
class Suite:
    """A suite's demonstrations, split.

    Attributes:
        space: By the statistics of what is fitted on.
        fit, held: Chunks [N, T, 7] in model space, float32.
        actions: Of all episodes, each [n, 7], standard.
        fit_episodes, held_episodes: Numbers in the data set.
        num_disturbed: Episodes to fit on that were disturbed while they were collected.
    """

    name: str
    space: Space
    fit: Tensor
    held: Tensor
    actions: list[np.ndarray]
    fit_episodes: list[int]
    held_episodes: list[int]
    num_disturbed: int


def in_turn(tasks: Mapping[int, Any]) -> list[int]:
    """Episodes in the order in which the tasks take turns, of episode → what tells its task."""
    seen: dict[Any, int] = {}
    rounds = {}
    for episode, task in tasks.items():
        rounds[episode] = seen[task] = seen.get(task, -1) + 1
    return sorted(tasks, key=rounds.__getitem__)


def split(tasks: Mapping[int, Any], disturbed: set[int], limit: int | None = None) -> tuple[list[int], list[int]]:
    """Episodes to fit on, and held-out ones: every second undisturbed one of a task.

    Where no task has two such demonstrations, every second one of all.

    Args:
        tasks: Episode → what tells its task.
        disturbed: Episodes whose labels are not what was executed; they are never held out.
        limit: Most episodes in all: undisturbed ones first, the tasks in turn.
    """
    calm = {episode: task for episode, task in tasks.items() if episode not in disturbed}
    chosen = {*[*in_turn(calm), *in_turn({one: tasks[one] for one in tasks if one in disturbed})][:limit]}
    seen: dict[Any, int] = {}
    held = []
    for episode in sorted(chosen & calm.keys()):
        seen[tasks[episode]] = seen.get(tasks[episode], 0) + 1
        if seen[tasks[episode]] % 2 == 0:
            held.append(episode)
    if not held:
        held = sorted(chosen & calm.keys())[1::2]
    return sorted(chosen - {*held}), held
