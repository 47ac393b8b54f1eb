"""Which episode to try next: bookkeeping of a collection, without processes or a simulator.

An episode is named by task, seed and placement number, and that name is stored with it. So what is finished is read
from the data set, and a repeated command goes on where it was killed. What surprises first: an attempt is handed out
only while its task still needs an episode, so the episodes in the end do not depend on the number of workers.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rsd.errors import RSDError

MAX_MISSES = 30  # placements of one task in a row without a success, before the collection gives up
NAME = re.compile(r"(?P<suite>\w+)/task_(?P<task_id>\d+)/seed_(?P<seed>\d+)/placement_(?P<placement>\d+)")


class CollectionError(RSDError, RuntimeError):
    """The collection cannot go on; what is written stays."""


@dataclass(frozen=True)
class Attempt:
    """One placement of one task.

    Attributes:
        suite, task_id: Which task.
        seed: The collection's seed.
        placement: Number of the placement, 0, 1, ...
    """

    suite: str
    task_id: int
    seed: int
    placement: int

    @property
    def name(self) -> str:
        """Stored as episode_metadata/file_path."""
        return f"{self.suite}/task_{self.task_id:02d}/seed_{self.seed}/placement_{self.placement:06d}"

    @property
    def placement_seed(self) -> int:
        """Seed of everything random in this attempt, 0..2**32-1; different for all attempts of a suite."""
        entropy = np.random.SeedSequence([self.seed, self.task_id, self.placement])
        return int(entropy.generate_state(1)[0])

    @classmethod
    def parse(cls, name: str) -> Attempt | None:
        """The attempt of that name; None for an episode from elsewhere."""
        match = NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["suite"], *(int(match[key]) for key in ("task_id", "seed", "placement")))


def share_out(num_episodes: int, stored: dict[int, int]) -> dict[int, int]:
    """Episodes still to make of each task: the missing ones go, one by one, to the task that has the fewest.

    Args:
        num_episodes: How many there shall be in the end, over all tasks of `stored`.
        stored: Task id to episodes that exist.
    """
    missing = max(0, num_episodes - sum(stored.values()))

    def up_to(level: int) -> int:
        return sum(max(0, level - count) for count in stored.values())

    level = bisect.bisect_right(range(missing + max(stored.values()) + 1), missing, key=up_to) - 1
    left = missing - up_to(level)
    shares = {}
    for task in sorted(stored):
        more = 1 if left > 0 and stored[task] <= level else 0
        shares[task] = max(0, level - stored[task]) + more
        left -= more
    return {task: shares[task] for task in stored}


class Schedule:
    """Hands out attempts and counts outcomes.

    Args:
        suite: Task suite.
        tasks: Task ids to collect.
        num_episodes: Episodes of these tasks that shall exist in the end.
        seed: Seed of the collection.
        stored: Names of the episodes that exist already; other suites' and foreign ones are not counted.
        counted: Outcomes that count as an episode: "success", and in a trial of the expert "failure" too.

    Attributes:
        outcomes: Task id to a Counter of the outcomes in this call.
        steps: Task id to a list of the steps of each successful episode in this call.
    """

    def __init__(
        self,
        *,
        suite: str,
        tasks: Sequence[int],
        num_episodes: int,
        seed: int,
        stored: Iterable[str] = (),
        counted: Sequence[str] = ("success",),
    ) -> None:
        self.suite, self.seed, self.counted = suite, seed, tuple(counted)
        existing = [attempt for attempt in map(Attempt.parse, stored) if attempt is not None and attempt.suite == suite]
        counts = Counter(attempt.task_id for attempt in existing)
        self.num_stored = sum(counts[task] for task in tasks)
        self.outcomes: dict[int, Counter[str]] = {task: Counter() for task in tasks}
        self.steps: dict[int, list[int]] = {task: [] for task in tasks}
        self._missing = share_out(num_episodes, {task: counts[task] for task in tasks})
        self._tried = {(attempt.task_id, attempt.placement) for attempt in existing if attempt.seed == seed}
        self._running: Counter[int] = Counter()
        self._misses: Counter[int] = Counter()

    @property
    def num_missing(self) -> int:
        """Episodes that are still to be made, the running ones included."""
        return sum(self._missing.values())

    def next_attempt(self, preferred_task: int | None = None) -> Attempt | None:
        """The next attempt to hand out, of `preferred_task` while that needs one; None when all are running or made."""
        open_tasks = [task for task, missing in self._missing.items() if missing > self._running[task]]
        if not open_tasks:
            return None
        task = preferred_task
        if task not in open_tasks:  # first one that nobody works on, else the one with the most to do
            task = min(open_tasks, key=lambda task: (self._running[task], -self._missing[task], task))
        self._running[task] += 1
        placement = next(number for number in range(2**31) if (task, number) not in self._tried)
        self._tried.add((task, placement))
        return Attempt(self.suite, task, self.seed, placement)

    def record(self, attempt: Attempt, outcome: str, num_steps: int) -> None:
        """Count the end of an attempt.

        Raises:
            CollectionError: the task has failed MAX_MISSES times in a row.
        """
        task = attempt.task_id
        self._running[task] -= 1
        self.outcomes[task][outcome] += 1
        if outcome == "success":
            self.steps[task].append(num_steps)
        if outcome in self.counted:
            self._missing[task] -= 1
            self._misses[task] = 0
            return
        self._misses[task] += 1
        if self._misses[task] >= MAX_MISSES:
            raise CollectionError(
                f"{self.suite} task {task}: {MAX_MISSES} placements in a row gave no demonstration "
                f"({dict(self.outcomes[task])}); the expert does not fit this task; choose others with tasks=[...]"
            )
