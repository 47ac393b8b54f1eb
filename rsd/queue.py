"""The action queue: the only place where chunks become steps. Evaluation, servers and collection own one each.

It holds the *first* num_steps actions of a chunk. (The reference loop extends a bounded queue by the whole chunk and so
executes the last ones when fewer than a chunk are wanted; that quirk is not repeated here.)
"""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np

from rsd.errors import RSDError, SettingError
from rsd.types import Chunk, Memory, Observation, Policy, Request
from rsd.work import Counts, add_counts

DIGITS = 6  # of a bound
LIMITS = (-1.0, 1.0)  # of what robosuite and its like take


class ActionError(RSDError, ValueError):
    """A policy returned something that cannot be executed."""


class Queue:
    """One episode's actions, one by one.

    Args:
        policy: Asked for a chunk whenever none is left.
        seed: Of everything random in this episode; an integer of 0 or more.
        clip: Actions outside of `limits` are clipped, as the protocol says; False makes them an error.
        limits: Lowest and highest action that is executed.
        explain: Ask the policy to say what its draft proposed.

    Attributes:
        num_chunks: Asked for so far.
        work: Sums of the chunks' counters, and "num_chunks".
        latency_ms: Part name to one value a chunk.
        model_ms: Sum of the chunks' shares of the policy's time.
        bounds: Chunk.bound of every chunk, rounded; None where it has none.
        chunk: The last one; None before the first.

    Raises:
        SettingError: the seed is no such integer.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int,
        clip: bool = True,
        limits: tuple[float, float] = LIMITS,
        explain: bool = False,
    ) -> None:
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise SettingError(f"seed {seed!r}, expected an integer of 0 or more")
        self._policy, self._seed, self._clip, self._limits, self._explain = policy, seed, clip, limits, explain
        self._actions: deque[np.ndarray] = deque()
        self._memory: Memory | None = None
        self.num_chunks = 0
        self.work: Counts = {"num_chunks": 0}
        self.latency_ms: dict[str, list[float]] = {}
        self.model_ms = 0.0
        self.bounds: list[list[float] | None] = []
        self.chunk: Chunk | None = None

    @property
    def is_empty(self) -> bool:
        """Whether `next` will ask the policy, and needs something to see."""
        return not self._actions

    def next(self, observation: Observation | None) -> np.ndarray:
        """The next action, [A], float64.

        Args:
            observation: What is seen now; may be None, and is not looked at, unless the queue is empty.

        Raises:
            ActionError: there is nothing to see, or the policy returned a chunk of a wrong shape, too short, not
                finite, or out of range.
        """
        if not self._actions:
            if observation is None:
                raise ActionError("the action queue is empty and there is no observation; render one for this step")
            self._ask(observation)
        if self._memory is not None:
            self._memory = dataclasses.replace(self._memory, num_executed=self._memory.num_executed + 1)
        return self._actions.popleft()

    def _ask(self, observation: Observation) -> None:
        seed = chunk_seed(self._seed, self.num_chunks)
        (chunk,) = self._policy.predict([Request(observation, seed, self._memory, self._explain)])
        self._actions.extend(executed_actions(chunk, clip=self._clip, limits=self._limits))
        self.chunk, self._memory = chunk, chunk.memory
        self.num_chunks += 1
        self.work = add_counts(self.work, {"num_chunks": 1, **chunk.work})
        for part, value in chunk.latency_ms.items():
            self.latency_ms.setdefault(part, []).append(round(value, 4))
        self.model_ms += chunk.model_ms
        self.bounds.append(None if chunk.bound is None else [round(float(one), DIGITS) for one in chunk.bound])


def chunk_seed(episode_seed: int, number: int) -> int:
    """Seed of an episode's chunk `number`: 0..2**63-1, a function of the two alone."""
    return int(np.random.SeedSequence((episode_seed, number)).generate_state(1, np.uint64)[0] >> 1)


def executed_actions(chunk: Chunk, *, clip: bool, limits: tuple[float, float] = LIMITS) -> np.ndarray:
    """What is executed of a chunk, [num_steps, A].

    Raises:
        ActionError: it is not [T, A] with T >= num_steps, not finite, or, without clipping, out of `limits`.
    """
    actions, count, (low, high) = chunk.actions, chunk.num_steps, limits
    if actions.ndim != 2:
        raise ActionError(f"the policy returned actions of shape {actions.shape}; expected [T, A]")
    if not 1 <= count <= len(actions):
        raise ActionError(
            f"the policy returned {len(actions)} actions, fewer than num_open_loop_steps={count}; "
            "set num_open_loop_steps to the chunk length or less"
        )
    if not np.isfinite(actions).all():
        step, dim = np.argwhere(~np.isfinite(actions))[0]
        raise ActionError(
            f"the policy returned {actions[step, dim]} at step {step}, dim {dim} of its chunk; expected finite actions"
        )
    if not clip and (actions.min() < low or actions.max() > high):
        step, dim = np.unravel_index(np.abs(actions).argmax(), actions.shape)
        raise ActionError(
            f"the policy returned {actions[step, dim]:.4g} at step {step}, dim {dim} of its chunk; expected actions "
            f"in [{low:g}, {high:g}]; choose a protocol that clips them, or correct the statistics (unnorm_key)"
        )
    return np.clip(actions, low, high)[:count]
