"""The action queue: the only place where chunks become steps. Evaluation, servers and collection own one each.

It holds the *first* num_steps actions of a chunk. (The reference loop extends a bounded queue by the whole chunk and so
executes the last ones when fewer than a chunk are wanted; that quirk is not repeated here.) With a clock that has a
delay, a chunk is asked for with what is seen at one step and executed from a later one on; see `rsd.clock`. Which step
that is, is known as soon as a chunk was asked for: time alone says what is executed when, and when to look again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from rsd.clock import Clock
from rsd.errors import RSDError, SettingError
from rsd.types import Chunk, Memory, Observation, Policy, Request
from rsd.work import Counts, add_counts

DIGITS = 6  # of a bound
LIMITS = (-1.0, 1.0)  # of what robosuite and its like take
OPEN = -1.0  # command of a gripper that nothing was commanded yet; see `Chunk.actions`
NO_DELAY = Clock()


class ActionError(RSDError, ValueError):
    """A policy returned something that cannot be executed."""


@dataclass(frozen=True)
class Executed:
    """Where an executed action comes from.

    Attributes:
        number: Of its chunk in the episode, from 0.
        index: Of the action in its chunk.
        age: Control steps since the picture that the chunk came of.
    """

    number: int
    index: int
    age: int


@dataclass(frozen=True)
class _Answer:
    """A chunk, and when it counts.

    Attributes:
        number: In the episode, from 0.
        seen: Control step of its picture.
        begins: Control step of its first action that is executed.
        first: Index of that action.
        actions: What may be executed, from index 0 on, [n, A].
        memory: The chunk's.
        is_corrected: Whether the actions are those of a correction, from index `first` on.
    """

    number: int
    seen: int
    begins: int
    first: int
    actions: np.ndarray
    memory: Memory | None
    is_corrected: bool = False

    def index(self, step: int) -> int:
        """Of the action for a control step; len(actions) or more where there is none left."""
        return self.first + step - self.begins


class Queue:
    """One episode's actions, one by one.

    Args:
        policy: Asked for a chunk whenever it is time for the next.
        seed: Of everything random in this episode; an integer of 0 or more.
        clip: Actions outside of `limits` are clipped, as the protocol says; False makes them an error.
        limits: Lowest and highest action that is executed.
        explain: Ask the policy to say what its draft proposed.
        clock: How late chunks are, and what is done meanwhile.

    Attributes:
        num_chunks: Asked for so far.
        work: Sums of the chunks' counters, and "num_chunks".
        latency_ms: Part name to one value a chunk.
        model_ms: Sum of the chunks' shares of the policy's time.
        bounds: Chunk.bound of every chunk, rounded; None where it has none.
        chunk: The last one that was asked for; None before the first.
        executed: Where the last action came from; None where the robot stood still, and before the first.
        num_still: Steps that it stood still.
        ages: Executed actions by age, entry n: those of n control steps after their picture.

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
        clock: Clock = NO_DELAY,
    ) -> None:
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise SettingError(f"seed {seed!r}, expected an integer of 0 or more")
        self._policy, self._seed, self._clip, self._limits, self._explain = policy, seed, clip, limits, explain
        self._clock = clock
        self._step = 0  # the next control step
        self._asks_at = 0  # control step at which the next chunk is asked for
        self._coming: _Answer | None = None
        self._running: _Answer | None = None
        self._gripper = OPEN  # as last commanded
        self.num_chunks = 0
        self.work: Counts = {"num_chunks": 0}
        self.latency_ms: dict[str, list[float]] = {}
        self.model_ms = 0.0
        self.bounds: list[list[float] | None] = []
        self.chunk: Chunk | None = None
        self.executed: Executed | None = None
        self.num_still = 0
        self.ages: list[int] = []

    @property
    def needs_observation(self) -> bool:
        """Whether `next` will ask the policy, and needs something to see: known before the step that leads there."""
        return self._step == self._asks_at or self._corrects_now

    @property
    def _corrects_now(self) -> bool:
        """Whether a chunk comes of which something is over; what is left of it is then corrected."""
        coming = self._coming
        late = coming is not None and self._step == coming.begins and coming.first > 0
        return self._clock.corrects and late

    @property
    def is_empty(self) -> bool:
        """`needs_observation`, which without a delay is so when no action is left."""
        return self.needs_observation

    @property
    def corrected(self) -> np.ndarray | None:
        """Actions that are executed in the place of those of the chunk that counts, [n, A]; None where it is as it was
        predicted."""
        running = self._running
        return running.actions if running is not None and running.is_corrected else None

    def next(self, observation: Observation | None) -> np.ndarray:
        """The next action, [A], float64.

        Args:
            observation: What is seen now; may be None, and is not looked at, unless `needs_observation`.

        Raises:
            ActionError: there is nothing to see, or the policy returned a chunk of a wrong shape, too short, not
                finite, or out of range.
            DelayError: it returned a chunk of which nothing is left when it counts.
        """
        if self.needs_observation and observation is None:
            raise ActionError("the action queue is empty and there is no observation; render one for this step")
        if self._corrects_now and observation is not None:
            self._correct(observation)
        self._take_over()
        if self._step == self._asks_at and observation is not None:
            self._ask(observation)
            self._take_over()  # without a delay it is there at once
        action = self._act()
        self._gripper = float(action[-1])
        self._step += 1
        return action

    def _take_over(self) -> None:
        """Let the chunk that was asked for count, from its step on."""
        if self._coming is not None and self._step == self._coming.begins:
            self._running, self._coming = self._coming, None

    def _act(self) -> np.ndarray:
        """The action for this step, or standing still; booked."""
        running = self._running
        if running is None or (index := running.index(self._step)) >= len(running.actions):
            self.num_still += 1
            self.executed = None
            assert self._coming is not None  # nothing is left only while the next chunk is on its way
            still = np.zeros(self._coming.actions.shape[1])
            still[-1] = self._gripper
            return still
        age = self._step - running.seen
        self.executed = Executed(running.number, index, age)
        self.ages += [0] * (age + 1 - len(self.ages))
        self.ages[age] += 1
        return running.actions[index].copy()

    def request(self, observation: Observation) -> Request:
        """What `next` will ask the policy with this observation, where it asks for a chunk."""
        self._take_over()
        return Request(observation, chunk_seed(self._seed, self.num_chunks), self._memory(), self._explain)

    def _ask(self, observation: Observation) -> None:
        (chunk,) = self._policy.predict([self.request(observation)])
        self._plan(chunk)
        self.chunk = chunk
        self.num_chunks += 1
        self.work = add_counts(self.work, {"num_chunks": 1, **chunk.work})
        for part, value in chunk.latency_ms.items():
            self.latency_ms.setdefault(part, []).append(round(value, 4))
        self.model_ms += chunk.model_ms
        self.bounds.append(None if chunk.bound is None else [round(float(one), DIGITS) for one in chunk.bound])

    def _correct(self, observation: Observation) -> None:
        """Put what the policy makes of it now in the place of what is left of the chunk that comes.

        Its time belongs to the chunk, which is the last one that was asked for.
        """
        coming = self._coming
        assert coming is not None
        if coming.memory is None:
            raise ActionError("async=corrected needs a policy that remembers its last chunk; use async=naive")
        memory = dataclasses.replace(coming.memory, num_executed=coming.first)
        request = Request(observation, chunk_seed(self._seed, coming.number), memory, corrects=True)
        (answer,) = self._policy.predict([request])
        corrected = executed_actions(answer, clip=self._clip, limits=self._limits, whole=True)
        num_left = len(coming.actions) - coming.first
        if corrected.shape[1] != coming.actions.shape[1] or len(corrected) > num_left:
            raise ActionError(f"the policy corrected {num_left} actions to an array of shape {corrected.shape}")
        held = np.repeat(corrected[-1:], num_left - len(corrected), axis=0)  # of a decoding that holds its last action
        actions = np.concatenate([coming.actions[: coming.first], corrected, held])
        self._coming = dataclasses.replace(coming, actions=actions, is_corrected=True)
        self.work = add_counts(self.work, answer.work)
        for part, value in answer.latency_ms.items():
            if part == "total":
                self.latency_ms[part][-1] = round(self.latency_ms[part][-1] + value, 4)
            else:
                self.latency_ms.setdefault(part, []).append(round(value, 4))
        self.model_ms += answer.model_ms

    def _memory(self) -> Memory | None:
        """Of the last chunk, with how much of it is over."""
        running = self._running
        if running is None or running.memory is None:
            return None
        over = min(running.index(self._step), len(running.actions))
        return dataclasses.replace(running.memory, num_executed=over)

    def _plan(self, chunk: Chunk) -> None:
        """Say when the chunk counts, and when the next one is asked for."""
        delay, goes_on = self._clock.delay, self._clock.goes_on
        actions = executed_actions(chunk, clip=self._clip, limits=self._limits, whole=goes_on)  # [n, A]
        self._clock.check(len(chunk.actions))
        begins = self._step + delay
        first = delay if goes_on and self.num_chunks > 0 else 0
        num_left = min(chunk.num_steps, len(actions) - first)
        self._coming = _Answer(self.num_chunks, self._step, begins, first, actions, chunk.memory)
        self._asks_at = begins + (max(0, num_left - delay) if goes_on else num_left)


def chunk_seed(episode_seed: int, number: int) -> int:
    """Seed of an episode's chunk `number`: 0..2**63-1, a function of the two alone."""
    return int(np.random.SeedSequence((episode_seed, number)).generate_state(1, np.uint64)[0] >> 1)


def executed_actions(
    chunk: Chunk, *, clip: bool, limits: tuple[float, float] = LIMITS, whole: bool = False
) -> np.ndarray:
    """What is executed of a chunk, [num_steps, A].

    Args:
        whole: All of its actions, [T, A], which go on until the next chunk is there.

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
    return np.clip(actions, low, high)[: None if whole else count]
