"""One episode: an environment, and a policy behind an action queue.

Only pictures that the policy will see are rendered: the one before the step at which the next chunk is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from rsd.clock import Clock
from rsd.evaluation.seen import seen_first
from rsd.evaluation.trace import chunk_record, count_step
from rsd.queue import NO_DELAY, Queue
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
        chunk_steps, exit_steps: See EpisodeResult.

    Args:
        clip_actions: Actions outside the task's limits are clipped, as the protocol says; False makes them an error.
        clock: How late chunks are, and what is done meanwhile.
    """

    def __init__(
        self,
        env: Env,
        policy: Policy,
        *,
        record: bool = False,
        record_every_step: bool = False,
        clip_actions: bool = True,
        clock: Clock = NO_DELAY,
    ) -> None:
        self.env = env
        self.policy = policy
        self.num_steps = 0
        self.success = False
        self.queue = Queue(policy, seed=0)
        self.time_s = dict.fromkeys(("reset", "physics", "rendering", "policy"), 0.0)
        self.frames: list[np.ndarray] = []
        self.chunks: list[dict[str, Any]] = []
        self.chunk_steps: list[int] = []
        self.exit_steps: list[int] = []
        self.seen: dict[str, str] = {}
        self._executed: list[np.ndarray] = []  # actions, [A] each
        self._clip_actions = clip_actions
        self._clock = clock
        self._record = record
        self._record_every_step = record and record_every_step

    def run(self, *, init_state_id: int, seed: int) -> None:
        """Reset, then act until success or the task's step limit.

        Raises:
            ActionError: the policy returned a chunk of a wrong shape, too short, not finite, or out of range.
            DelayError: it returned a chunk of which nothing is left when it counts.
        """
        with self._timed("reset"), simulator_turn():
            first = self.env.reset(init_state_id)
        self._book_rendering("reset", self.env.reset_rendering_s)
        self.seen = seen_first(self.env, init_state_id, first)
        self._keep_frame(first)
        observation: Observation | None = first
        task = self.env.task
        self.queue = Queue(
            self.policy,
            seed=seed,
            clip=self._clip_actions,
            limits=task.limits,
            explain=self._record,
            clock=self._clock,
        )
        while self.num_steps < task.max_steps and not self.success:
            action = self._next_action(observation)
            self._executed.append(np.asarray(action))
            last = self.num_steps + 1 == task.max_steps
            observe = self._record_every_step or (self._record if last else self.queue.needs_observation)
            with self._timed("physics"), simulator_turn():
                step = self.env.step(action, observe=observe)
            self._book_rendering("physics", step.rendering_s)
            observation, self.success = step.observation, step.success
            self.num_steps += 1
            if self._record:
                count_step(self.chunks, self.queue.executed, self.queue.corrected)
            if observe:
                assert observation is not None  # it was asked for
                self._keep_frame(observation)

    def _next_action(self, observation: Observation | None) -> np.ndarray:
        """The next action, [A]; a recorded episode keeps each new chunk."""
        num_before = self.queue.num_chunks
        with self._timed("policy"):
            action = self.queue.next(observation)
        is_new = self.queue.num_chunks > num_before
        if is_new and self.queue.chunk is not None:
            self.chunk_steps.append(self.num_steps)
            if self.queue.chunk.work.get("early_exits"):
                self.exit_steps.append(self.num_steps)
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
            jerk=jerk(self._executed, task.action_names),
            chunk_steps=self.chunk_steps,
            exit_steps=self.exit_steps,
            num_still=self.queue.num_still,
            action_ages=self.queue.ages,
            seen=self.seen,
        )

    def _keep_frame(self, observation: Observation) -> None:
        if self._record:
            self.frames.append(np.concatenate(list(observation.images.values()), axis=1))  # [H, views*W, 3]


def jerk(actions: Sequence[np.ndarray], names: Sequence[str]) -> float | None:
    """Mean absolute second difference of executed motions; None of fewer than three.

    Actions are motions a step, velocities; so this is a third difference of the pose. It is that of what was
    commanded, whatever the robot's controller made of it.

    Args:
        actions: [A] each, in the order of execution.
        names: Of the action dims; that of the gripper is left out.
    """
    moving = [dim for dim, name in enumerate(names) if name != "gripper"]
    if len(actions) < 3 or not moving:
        return None
    return round(float(np.abs(np.diff(np.stack(actions)[:, moving], n=2, axis=0)).mean()), 6)
