"""A policy in the expert's place: episodes that hold the states which the policy visits itself.

Target head and draft learn to say what the base model says (phase.module.labels=base), and for that no expert is
needed: any state will do, and those that matter are the ones where the expert never was. What surprises first: the base
model must not be trained on such episodes; their actions are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rsd.clock import Clock
from rsd.demos.demonstrations import LiberoExpert
from rsd.errors import SettingError
from rsd.queue import NO_DELAY, Queue
from rsd.types import Observation, Policy

if TYPE_CHECKING:
    from rsd.envs.libero import LiberoEnv


class PolicyDemonstrator(LiberoExpert):
    """Executes a policy's chunks open loop; every step may be disturbed.

    Args:
        make_policy: Makes the policy, in the worker.
        clock: How late its chunks are, and what is done meanwhile; steps in which it stands still are no-ops, and are
            not recorded.
    """

    def __init__(self, env: LiberoEnv, *, make_policy: Callable[[], Policy], clock: Clock = NO_DELAY) -> None:
        super().__init__(env)
        self._policy, self._clock = make_policy(), clock
        self._queue = Queue(self._policy, seed=0, clock=clock)

    def begin(self) -> None:
        super().begin()
        self._queue = Queue(self._policy, seed=0, clock=self._clock)

    def act(self, observation: Observation | None) -> tuple[np.ndarray, bool]:
        if self._queue.needs_observation and observation is None:
            raise SettingError("a policy needs pictures, and dry_run=true renders none; leave dry_run out")
        action = self._queue.next(observation)
        return action, self._queue.executed is not None  # who stands still is not pushed
