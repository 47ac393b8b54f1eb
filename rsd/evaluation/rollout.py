"""One episode: an environment, a policy, and the action queue between them.

The queue holds the *first* num_open_loop_steps actions of a chunk. (The reference loop extends a bounded queue by the
whole chunk and so executes the last ones when fewer than a chunk are wanted; that quirk is not repeated here.)
Only pictures that the policy will see are rendered: the one after the last queued action.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rsd.evaluation.trace import chunk_record
from rsd.types import Env, EpisodeResult, Observation, Policy


class Episode:
    """A running episode; its counters stay readable when a step raises.

    Attributes:
        num_steps, success: So far.
        stats: Sums of the chunks' stats, and "num_chunks".
        latency_ms: Part name to one value a chunk.
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
        self.stats: dict[str, Any] = {"num_chunks": 0}
        self.latency_ms: dict[str, list[float]] = {}
        self.time_s = dict.fromkeys(("reset", "physics", "rendering", "policy"), 0.0)
        self.frames: list[np.ndarray] = []
        self.chunks: list[dict[str, Any]] = []
        self._clip_actions = clip_actions
        self._record = record
        self._record_every_step = record and record_every_step

    def run(self, *, init_state_id: int, seed: int) -> None:
        """Reset, then act until success or the task's step limit.

        Raises:
            ValueError: the policy returned a chunk of a wrong shape, too short, not finite, or out of range.
        """
        with self._timed("reset"):
            observation = self.env.reset(init_state_id)
        self._book_rendering("reset", self.env.reset_rendering_s)
        self._keep_frame(observation)
        max_steps = self.env.task.max_steps
        queue: deque[np.ndarray] = deque()
        while self.num_steps < max_steps and not self.success:
            if not queue:
                queue.extend(self._plan(observation, chunk_seed(seed, self.stats["num_chunks"])))
            last = self.num_steps + 1 == max_steps
            observe = self._record_every_step or (self._record if last else len(queue) == 1)
            with self._timed("physics"):
                step = self.env.step(queue.popleft(), observe=observe)
            self._book_rendering("physics", step.rendering_s)
            observation, self.success = step.observation, step.success
            self.num_steps += 1
            if self._record:
                self.chunks[-1]["num_executed"] += 1
            if observe:
                self._keep_frame(observation)

    def _plan(self, observation: Observation, seed: int) -> np.ndarray:
        """The actions to execute next, [num_open_loop_steps, A]."""
        with self._timed("policy"):
            (prediction,) = self.policy.predict([observation], [seed])
        count = self.policy.num_open_loop_steps
        actions = check_actions(prediction.actions, count, limits=self.env.task.limits, clip=self._clip_actions)
        self.stats = add_stats(self.stats, {"num_chunks": 1, **prediction.stats})
        for part, value in prediction.latency_ms.items():
            self.latency_ms.setdefault(part, []).append(round(value, 4))
        if self._record:
            self.chunks.append(chunk_record(prediction, step=self.num_steps, frame=len(self.frames) - 1))
        return actions[:count]

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
            stats=self.stats,
            latency_ms=self.latency_ms,
            wall_s=round(wall_s, 3),
            video=video,
            protocol=task.protocol,
            versions=task.versions,
            time_s={kind: round(seconds, 3) for kind, seconds in self.time_s.items()},
            trace=trace,
        )

    def _keep_frame(self, observation: Observation) -> None:
        if self._record:
            self.frames.append(np.concatenate(list(observation.images.values()), axis=1))  # [H, views*W, 3]


def chunk_seed(episode_seed: int, number: int) -> int:
    """Seed of an episode's chunk `number`: 0..2**63-1, a function of the two alone."""
    return int(np.random.SeedSequence((episode_seed, number)).generate_state(1, np.uint64)[0] >> 1)


def check_actions(
    actions: np.ndarray, num_open_loop_steps: int, *, limits: tuple[float, float], clip: bool
) -> np.ndarray:
    """Hold a chunk to the Policy protocol: [T, A] with T >= num_open_loop_steps, finite, within the limits.

    Args:
        limits: Smallest and largest value of an entry; see `Task`.
        clip: Whether actions outside of them are clipped.

    Raises:
        ValueError: it is not.
    """
    if actions.ndim != 2:
        raise ValueError(f"the policy returned actions of shape {actions.shape}; expected [T, A]")
    if len(actions) < num_open_loop_steps:
        raise ValueError(
            f"the policy returned {len(actions)} actions, fewer than num_open_loop_steps={num_open_loop_steps}; "
            "set num_open_loop_steps to the chunk length or less"
        )
    if not np.isfinite(actions).all():
        step, dim = np.argwhere(~np.isfinite(actions))[0]
        raise ValueError(
            f"the policy returned {actions[step, dim]} at step {step}, dim {dim} of its chunk; expected finite actions"
        )
    low, high = limits
    beyond = np.maximum(actions - high, low - actions)  # [T, A]
    if not clip and (beyond > 0).any():
        step, dim = np.unravel_index(beyond.argmax(), actions.shape)
        raise ValueError(
            f"the policy returned {actions[step, dim]:.4g} at step {step}, dim {dim} of its chunk; expected actions "
            f"in [{low:g}, {high:g}]; choose a protocol that clips them, or correct the policy's statistics "
            "(unnorm_key)"
        )
    return np.clip(actions, low, high)


def add_stats(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Sum of two sets of counters; numbers add, lists add entry by entry, a name on one side only is kept.

    Raises:
        ValueError: a list has another length on the other side.
    """
    total = dict(left)
    for name, value in right.items():
        if name not in total:
            total[name] = value
        elif isinstance(value, list):
            if len(total[name]) != len(value):
                raise ValueError(f"counter {name!r} has {len(value)} entries, expected {len(total[name])} as before")
            total[name] = [a + b for a, b in zip(total[name], value, strict=True)]
        else:
            total[name] = total[name] + value
    return total
