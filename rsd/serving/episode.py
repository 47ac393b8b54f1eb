"""A client's episode: its action queue, and where its actions come from.

What surprises first: over REST an answer can be lost on its way, and is then asked for again. So steps have numbers,
and the last one is answered twice with the same action: a queue never moves on because of a network.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd.clock import Clock
from rsd.errors import RSDError
from rsd.queue import LIMITS, Queue
from rsd.serving.limits import Limits
from rsd.types import Observation, Policy, ReadsInstructions

MAX_SEEN = 8  # pictures whose time is kept: of the chunk that counts, and of the one that comes


class UnknownSessionError(RSDError, KeyError):
    """A session that is not, or no longer, open here."""

    def __str__(self) -> str:
        return str(self.args[0])


class StepError(RSDError, ValueError):
    """A step that is neither the next one of its session nor the last one again."""


class BusyError(RSDError, RuntimeError):
    """There is no room for more clients now."""


@dataclass(frozen=True)
class Acted:
    """An answer to one step.

    Attributes:
        step: Its number in the session, from 0.
        action: Robot commands, [A], float64.
        age: Control steps since the picture that it came of; None where the robot stands still.
        age_ms: Milliseconds since that picture came to this server.
        chunk, index: Number of its chunk, and of the action in it.
        needs_observation: Whether the next step has to bring pictures.
    """

    step: int
    action: np.ndarray
    age: int | None
    age_ms: float | None
    chunk: int | None
    index: int | None
    needs_observation: bool


class Episode:
    """One queue, asked step by step.

    Args:
        policy: What predicts.
        seed: The episode's.
        clock: How late chunks are.
        limits: Of what is executed, see `Queue`.
    """

    def __init__(self, policy: Policy, *, seed: int, clock: Clock, limits: tuple[float, float] = LIMITS) -> None:
        self._policy = policy
        self.queue = Queue(policy, seed=seed, clock=clock, limits=limits)
        self._seen: dict[int, float] = {}  # step → when its picture came
        self._step = 0
        self._last: Acted | None = None
        self._lock = threading.Lock()

    @property
    def needs_observation(self) -> bool:
        return self.queue.needs_observation

    def act(self, read: Callable[[], Observation]) -> np.ndarray:
        """The next action, [A], float64.

        Args:
            read: Decodes what is seen; called only when a chunk is asked for.

        Raises:
            InstructionError: the policy does not understand the instruction; said before anything is computed.
        """
        if not self.queue.needs_observation:
            return self.queue.next(None)
        observation = read()
        if isinstance(self._policy, ReadsInstructions):
            self._policy.check_instructions([observation.instruction])
        return self.queue.next(observation)

    def answer(self, step: int, read: Callable[[], Observation]) -> Acted:
        """What to do at a step; the last one is answered again as it was.

        Raises:
            StepError: it is another step's turn.
        """
        with self._lock:
            if self._last is not None and step == self._last.step:
                return self._last
            if step != self._step:
                again = "" if self._last is None else f", or {self._last.step} again"
                raise StepError(f"step is {step}, expected {self._step}{again}; a session's steps come in order")
            now = time.monotonic()
            sees = self.needs_observation
            action = self.act(read)
            if sees:
                self._seen[step] = now
                if len(self._seen) > MAX_SEEN:
                    del self._seen[min(self._seen)]
            done = self.queue.executed
            seen = None if done is None else self._seen.get(step - done.age)
            self._last = Acted(
                step=step,
                action=action,
                age=None if done is None else done.age,
                age_ms=None if seen is None else round(1000 * (time.monotonic() - seen), 3),
                chunk=None if done is None else done.number,
                index=None if done is None else done.index,
                needs_observation=self.needs_observation,
            )
            self._step += 1
            return self._last


class Episodes:
    """The open sessions of a server, each an episode; those without a request for a while end.

    Args:
        make: An episode of a seed.
        limits: How many, and how long.
    """

    def __init__(self, make: Callable[[int], Episode], limits: Limits) -> None:
        self._make, self._limits = make, limits
        self._open: dict[str, tuple[Episode, float]] = {}  # id → episode, when it was asked last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, seed: int) -> str:
        """Open one; its name, which nobody can guess.

        Raises:
            BusyError: there are as many as there may be.
        """
        with self._lock:
            self._drop_idle()
            if len(self._open) >= self._limits.sessions:
                raise BusyError(
                    f"{len(self._open)} sessions are open, as many as there may be (limits.sessions); end one with "
                    "DELETE /sessions/ID, or try again later"
                )
            name = secrets.token_urlsafe(16)
            self._open[name] = self._make(seed), time.monotonic()
            return name

    def find(self, name: str) -> Episode:
        """An open one.

        Raises:
            UnknownSessionError: it never was, or has ended.
        """
        with self._lock:
            self._drop_idle()
            if name not in self._open:
                raise UnknownSessionError(
                    f"session {name[:40]!r} is not open here: it ended, was idle for {self._limits.idle_s:g} s, or the "
                    "server was started again; begin one with POST /sessions"
                )
            episode = self._open[name][0]
            self._open[name] = episode, time.monotonic()
            return episode

    def end(self, name: str) -> dict[str, Any]:
        """Close one; what was done in it.

        Raises:
            UnknownSessionError: it never was, or has ended.
        """
        episode = self.find(name)
        with self._lock:
            self._open.pop(name, None)
        return {"num_chunks": episode.queue.num_chunks, "num_still": episode.queue.num_still}

    def _drop_idle(self) -> None:
        oldest = time.monotonic() - self._limits.idle_s
        for name in [name for name, (_, asked) in self._open.items() if asked < oldest]:
            del self._open[name]
