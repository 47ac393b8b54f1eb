"""One episode: an environment, and a policy behind an action queue.

Only pictures that the policy will see are rendered: the one after the last queued action.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rsd.evaluation.trace import chunk_record
from rsd.queue import Queue
from rsd.silence import simulator_turn
from rsd.types import Env, EpisodeResult, Observation, Policy


class Episode:
    """A running episode; its counters stay readable when a step raises.

    Attributes:
        num_steps, success: So far.
        queue: The episode's actions, with the account of its chunks; made when the episode begins.
        time_s: Seconds by kind of work; see EpisodeResult.
        frames: Pictures for a video, each [H, W, 3], uint8, views side by side; empty unless `record`.
        chunks: Their records for a trace; empty unless `record`.

    Args:
        clip_actions: Actions outside the task's limits are clipped, as the protocol says; False makes them an error.
    """

    def __init__(
        self,
        env: Env,
        policy: Policy,
        *,
        record: bool = False,
        record_every_step: bool = False,
        clip_actions: bool = True,
    ) -> None:
        self.env = env
        self.policy = policy
        self.num_steps = 0
        self.success = False
        self.queue = Queue(policy, seed=0)
        self.time_s = dict.fromkeys(("reset", "physics", "rendering", "policy"), 0.0)
        self.frames: list[np.ndarray] = []
        self.chunks: list[dict[str, Any]] = []
        self._clip_actions = clip_actions
        self._record = record
        self._record_every_step = record and record_every_step

    def run(self, *, init_state_id: int, seed: int) -> None:
        """Reset, then act until success or the task's step limit.

        Raises:
            ActionError: the policy returned a chunk of a wrong shape, too short, not finite, or out of range.
        """
        with self._timed("reset"), simulator_turn():
            first = self.env.reset(init_state_id)
        self._book_rendering("reset", self.env.reset_rendering_s)
        self._keep_frame(first)
        observation: Observation | None = first
        task = self.env.task
        self.queue = Queue(self.policy, seed=seed, clip=self._clip_actions, limits=task.limits, explain=self._record)
        while self.num_steps < task.max_steps and not self.success:
            action = self._next_action(observation)
            last = self.num_steps + 1 == task.max_steps
            observe = self._record_every_step or (self._record if last else self.queue.is_empty)
            with self._timed("physics"), simulator_turn():
                step = self.env.step(action, observe=observe)
            self._book_rendering("physics", step.rendering_s)
            observation, self.success = step.observation, step.success
            self.num_steps += 1
            if self._record:
                self.chunks[-1]["num_executed"] += 1
            if observe:
                assert observation is not None  # it was asked for
                self._keep_frame(observation)

    def _next_action(self, observation: Observation | None) -> np.ndarray:
        """The next action, [A]; a recorded episode keeps each new chunk."""
        is_new = self.queue.is_empty
        with self._timed("policy"):
            action = self.queue.next(observation)
        if self._record and is_new and self.queue.chunk is not None:
            self.chunks.append(chunk_record(self.queue.chunk, step=self.num_steps, frame=len(self.frames) - 1))
        return action

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        """Book the seconds of the body under `kind`."""
        start = time.perf_counter()
        yield
        self.time_s[kind] += time.perf_counter() - start

    def _book_rendering(self, kind: str, seconds: float) -> None:
        """What the environment calls rendering was booked under `kind`; book it as rendering."""
        self.time_s[kind] -= seconds
        self.time_s["rendering"] += seconds

    def result(
        self, *, init_state_id: int, seed: int, wall_s: float, error: str | None, video: str | None, trace: str | None
    ) -> EpisodeResult:
        """The episode as a line of results.jsonl."""
        task = self.env.task
        return EpisodeResult(
            suite=task.suite,
            task_id=task.task_id,
            instruction=task.instruction,
            init_state_id=init_state_id,
            seed=seed,
            success=self.success and error is None,
            num_steps=self.num_steps,
            error=error,
            stats=self.queue.work,
            latency_ms=self.queue.latency_ms,
            model_ms=round(self.queue.model_ms, 3),
            bounds=self.queue.bounds if any(bound is not None for bound in self.queue.bounds) else [],
            wall_s=round(wall_s, 3),
            video=video,
            protocol=task.protocol,
            versions=task.versions,
            time_s={kind: max(0.0, round(seconds, 3)) for kind, seconds in self.time_s.items()},
            trace=trace,
        )

    def _keep_frame(self, observation: Observation) -> None:
        if self._record:
            self.frames.append(np.concatenate(list(observation.images.values()), axis=1))  # [H, views*W, 3]
