"""A policy in the expert's place: episodes that hold the states which the policy visits itself.

Target head and draft learn to say what the base model says (phase.module.labels=base), and for that no expert is
needed: any state will do, and those that matter are the ones where the expert never was. What surprises first: the base
model must not be trained on such episodes; their actions are its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rsd.envs.demonstrations import LiberoExpert
from rsd.types import Observation, Policy

if TYPE_CHECKING:
    from rsd.envs.libero import LiberoEnv


class PolicyDemonstrator(LiberoExpert):
    """Executes a policy's chunks open loop; every step may be disturbed.

    Args:
        make_policy: Makes the policy, in the worker.
    """

    def __init__(self, env: LiberoEnv, *, make_policy: Callable[[], Policy]) -> None:
        super().__init__(env)
        self._chunks = ChunkQueue(make_policy())

    def begin(self) -> None:
        super().begin()
        self._chunks.clear()

    def act(self, observation: Observation | None) -> tuple[np.ndarray, bool]:
        return self._chunks.next(observation), True


class ChunkQueue:
    """The policy's actions one by one, each [A], within [-1, 1]."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._queue: deque[np.ndarray] = deque()

    def clear(self) -> None:
        """A new episode begins."""
        self._queue.clear()

    def next(self, observation: Observation | None) -> np.ndarray:
        """The next action; asks the policy for a chunk when none is left.

        Raises:
            ValueError: there is nothing to see.
        """
        if not self._queue:
            if observation is None:
                raise ValueError("a policy needs pictures, and dry_run=true renders none; leave dry_run out")
            (prediction,) = self._policy.predict([observation], [0])
            self._queue.extend(np.clip(prediction.actions[: self._policy.num_open_loop_steps], -1.0, 1.0))
        return self._queue.popleft()
