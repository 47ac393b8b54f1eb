"""One episode: an environment, a policy, and the action queue between them.

The queue holds the *first* num_open_loop_steps actions of a chunk. (The reference loop extends a bounded queue by the
whole chunk and so executes the last ones when fewer than a chunk are wanted; that quirk is not repeated here.)
Only pictures that the policy will see are rendered: the one after the last queued action.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from rsd.types import ChunkPrediction, Env, EpisodeResult, Observation, Policy


class Episode:
    """A running episode; its counters stay readable when a step raises.

    Attributes:
        num_steps, success: So far.
        stats: Sums of the chunks' stats, and "num_chunks".
        latency_ms: Part name to one value a chunk.
        frames: Pictures for a video, each [H, W, 3], uint8, views side by side; empty unless `record`.
    """

    def __init__(self, env: Env, policy: Policy, *, record: bool = False, record_every_step: bool = False) -> None:
        self.env = env
        self.policy = policy
        self.num_steps = 0
        self.success = False
        self.stats: dict[str, Any] = {"num_chunks": 0}
        self.latency_ms: dict[str, list[float]] = {}
        self.frames: list[np.ndarray] = []
        self._record = record
        self._record_every_step = record and record_every_step

    def run(self, *, init_state_id: int, seed: int) -> None:
        """Reset, then act until success or env.max_steps.

        Raises:
            ValueError: the policy returned a chunk of a wrong shape, too short, or not finite.
        """
        observation = self.env.reset(init_state_id)
        self.policy.reset(seed)
        self._keep_frame(observation)
        queue: deque[np.ndarray] = deque()
        while self.num_steps < self.env.max_steps and not self.success:
            if not queue:
                prediction = self.policy.predict([observation])[0]
                check_actions(prediction.actions, self.policy.num_open_loop_steps)
                self._account(prediction)
                queue.extend(prediction.actions[: self.policy.num_open_loop_steps])
            action = queue.popleft()
            last = self.num_steps + 1 == self.env.max_steps
            observe = self._record_every_step or (self._record if last else not queue)
            observation, self.success = self.env.step(action, observe=observe)
            self.num_steps += 1
            if observe:
                self._keep_frame(observation)

    def result(
        self, *, init_state_id: int, seed: int, wall_s: float, error: str | None, video: str | None
    ) -> EpisodeResult:
        """The episode as a line of results.jsonl."""
        return EpisodeResult(
            suite=self.env.suite,
            task_id=self.env.task_id,
            instruction=self.env.instruction,
            init_state_id=init_state_id,
            seed=seed,
            success=self.success and error is None,
            num_steps=self.num_steps,
            error=error,
            stats=self.stats,
            latency_ms=self.latency_ms,
            wall_s=round(wall_s, 3),
            video=video,
        )

    def _account(self, prediction: ChunkPrediction) -> None:
        self.stats = add_stats(self.stats, {"num_chunks": 1, **prediction.stats})
        for part, value in prediction.latency_ms.items():
            self.latency_ms.setdefault(part, []).append(round(value, 4))

    def _keep_frame(self, observation: Observation) -> None:
        if self._record:
            self.frames.append(np.concatenate(list(observation.images.values()), axis=1))  # [H, views*W, 3]


def check_actions(actions: np.ndarray, num_open_loop_steps: int) -> None:
    """Hold a chunk to the Policy protocol: [T, A] with T >= num_open_loop_steps, finite.

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
