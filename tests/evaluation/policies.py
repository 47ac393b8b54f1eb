"""Small real policies for PointMassEnv: one that looks and solves the task, and ones that go wrong in a given way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsd.types import Chunk, Observation, Request
from tests.fakes import GOAL_RADIUS_M, START_MAX_M, STEP_M

CHUNK_LENGTH = 8


class SeeingPolicy:
    """Finds the green goal in both pictures, and plans a straight line from the point's position in proprio.

    It reports the counters and latencies of a decoding with three stages, so that reports have something to show.
    """

    def __init__(self, *, num_open_loop_steps: int = CHUNK_LENGTH, delay_s: float = 0.0) -> None:
        self.num_open_loop_steps = num_open_loop_steps
        self.seen: list[Observation] = []
        self._delay_s = delay_s

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        time.sleep(self._delay_s)
        return [self._predict_one(request) for request in requests]

    def _predict_one(self, request: Request) -> Chunk:
        observation = request.observation
        self.seen.append(observation)
        position = observation.proprio[:3].copy()
        x, y = _green_center(observation.images["image"], hidden_at=position[[0, 1]])
        _, z = _green_center(observation.images["wrist_image"], hidden_at=position[[0, 2]])
        goal = np.array([x, y, z])
        random = np.random.default_rng(request.seed)
        actions = np.zeros((CHUNK_LENGTH, 7))
        for action in actions:
            offset = goal - position
            action[:3] = np.clip(offset / STEP_M, -1, 1)
            action[6] = 1 if np.linalg.norm(offset) <= GOAL_RADIUS_M / 2 else -1
            position += STEP_M * action[:3]
        accepted = int(random.integers(0, 3))
        counts = [0, 0, 0, 0]
        counts[accepted] = 1
        work = {
            "target_passes": 1,
            "draft_passes": 1,
            "proposed_stages": 2,
            "accepted_stages": accepted,
            "accept_counts": counts,
        }
        vision, llm = random.gamma(20, 0.2), random.gamma(20, 0.5)
        latency_ms = {"vision": vision, "llm": llm, "total": 1.01 * (vision + llm)}
        draft_actions = actions + random.normal(0, 0.05, actions.shape)
        return self._chunk(
            actions,
            work=work,
            latency_ms=latency_ms,
            depth=3,
            draft_actions=draft_actions if request.explain else None,
        )

    def _chunk(self, actions: np.ndarray, **said: Any) -> Chunk:
        return Chunk(actions, num_steps=self.num_open_loop_steps, **said)


class EarlyExitPolicy(SeeingPolicy):
    """Every second chunk of an episode ends at the draft, and the base model's own head makes the others."""

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        return [dataclasses.replace(one, work=self._work(), depth=None) for one in super().predict(requests)]

    def _work(self) -> dict[str, Any]:
        early = len(self.seen) % 2
        idle = dict.fromkeys(("target_passes", "proposed_stages", "accepted_stages"), 0) | {"accept_counts": [0] * 4}
        return {**idle, "draft_passes": 2, "early_exits": early, "base_layers": 3 if early else 6}


class RaisingPolicy(SeeingPolicy):
    """Its base model raises at the second chunk of every second episode."""

    def __init__(self) -> None:
        super().__init__()
        self._num_episodes = 0

    def _predict_one(self, request: Request) -> Chunk:
        beginning = bool((request.observation.proprio[:3] <= START_MAX_M).all())
        self._num_episodes += beginning
        if self._num_episodes % 2 == 0 and not beginning:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super()._predict_one(request)


class StillPolicy(SeeingPolicy):
    """Does not move: a policy that fails, with a continuous head (no counters)."""

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        return [self._chunk(np.zeros((CHUNK_LENGTH, 7)), latency_ms={"total": 1.0}) for _ in requests]


class BrokenPolicy(SeeingPolicy):
    """Returns the given array, whatever it sees."""

    def __init__(self, actions: np.ndarray) -> None:
        super().__init__()
        self._actions = actions

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        return [self._chunk(self._actions) for _ in requests]


class SilentLogger:
    """A logger that keeps what it is given."""

    def __init__(self, *, run_dir: object) -> None:
        self.metrics: dict = {}

    def log_hyperparams(self, config: dict) -> None: ...

    def log_metrics(self, metrics: dict) -> None:
        self.metrics |= metrics

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None: ...

    def log_files(self, files: Sequence[object]) -> None: ...

    def log_made(self, content: dict, files: Sequence[object]) -> None: ...

    def close(self) -> None: ...


def _green_center(picture: np.ndarray, hidden_at: np.ndarray) -> np.ndarray:
    """Centre of the goal's square, [2] in 0..1 as (column, row); `hidden_at` when the point covers all of it."""
    rows, columns = np.nonzero((picture[..., 1] > 150) & (picture[..., 0] < 100))
    return np.array([columns.mean(), rows.mean()]) / (len(picture) - 1) if len(rows) else hidden_at


class MarkedPolicy(SeeingPolicy):
    """Fails while a file is there."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = Path(mark)

    def predict(self, requests):
        if self._mark.exists():
            raise RuntimeError("no policy while the mark is there")
        return super().predict(requests)
