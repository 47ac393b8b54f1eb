"""What a policy would have executed in recorded episodes, step by step: its own queue, with its delay and horizon.

A recorded episode goes on whatever is executed, so two policies are asked about the same observations, and how far
apart their actions are is an error that needs no simulator. What surprises first: it is no error of a chunk. An action
that comes of an older picture, or that stands in for a skipped call, is held against what the other policy executes in
that very step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsd.clock import Clock
from rsd.evaluation.replay import Frames
from rsd.queue import LIMITS, Queue
from rsd.types import Chunk, Observation, Policy, Request

OPEN_LOOP_FILE = "open_loop.npz"
MOST_EPISODES = 20
MM_PER_UNIT = 50.0  # LIBERO's controller: an action of 1 moves its goal by 5 cm …
DEGREES_PER_UNIT = float(np.rad2deg(0.5))  # … or turns it by 0.5 rad
FAR = 0.2  # of an action dim, robot units
WINDOW = 8  # steps of a drift: a chunk
MEASURES = {  # what an error is called: in words
    "translation_mm": "mean distance of commanded translations a step, mm",
    "rotation_deg": "mean distance of commanded rotations a step, degrees",
    "gripper": "share of steps with another gripper command",
    "far": f"share of steps with a motion off by more than {FAR} of its range somewhere",
    "drift_mm": f"mean distance of translations summed over {WINDOW} steps, mm",
}


class _Answered:
    """A policy whose next chunk is there already."""

    def __init__(self, policy: Policy) -> None:
        self.num_open_loop_steps = policy.num_open_loop_steps
        self.chunk: Chunk | None = None

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        assert self.chunk is not None and len(requests) == 1
        return [self.chunk]


def executed(
    policy: Policy,
    episodes: Sequence[Sequence[Observation]],
    *,
    clock: Clock,
    seed: int,
    max_batch: int,
    clip: bool = True,
    limits: tuple[float, float] = LIMITS,
) -> list[np.ndarray]:
    """What is executed in each step of each recorded episode, [steps, A]; NaN where the robot stands still.

    Args:
        policy: One that reads nothing of its last chunk, or decides alone how it goes on from it.
        episodes: Observations, one a control step.
        clock: How late chunks are.
        seed: Of everything random.
        max_batch: Observations in one call of the policy.
    """
    answers = [_Answered(policy) for _ in episodes]
    queues = [
        Queue(answer, seed=seed + number, clip=clip, limits=limits, clock=clock)
        for number, answer in enumerate(answers)
    ]
    actions: list[list[np.ndarray]] = [[] for _ in episodes]
    for step in range(max(map(len, episodes), default=0)):
        there = [number for number, one in enumerate(episodes) if step < len(one)]
        asking = [number for number in there if queues[number].needs_observation]
        for start in range(0, len(asking), max_batch):
            some = asking[start : start + max_batch]
            requests = [queues[number].request(episodes[number][step]) for number in some]
            for number, chunk in zip(some, policy.predict(requests), strict=True):
                answers[number].chunk = chunk
        for number in there:
            queue = queues[number]
            action = queue.next(episodes[number][step] if queue.needs_observation else None)
            actions[number].append(action if queue.executed is not None else np.full_like(action, np.nan))
    return [np.array(one) for one in actions]


def keep_executed(path: Path, actions: Mapping[int, np.ndarray]) -> None:
    """Write actions by the number of their episode."""
    with path.with_suffix(".part").open("wb") as file:
        arrays: dict[str, Any] = {str(number): one for number, one in actions.items()}
        np.savez_compressed(file, **arrays)
    path.with_suffix(".part").replace(path)


def read_executed(path: Path) -> dict[int, np.ndarray]:
    """What `keep_executed` has written."""
    with np.load(path, allow_pickle=False) as arrays:
        return {int(name): arrays[name] for name in arrays.files}


@dataclass(frozen=True)
class Observed(Sequence[Observation]):
    """Observations of a recorded episode, in the order of steps; each is read when somebody asks for it.

    Attributes:
        frames: Of a data set.
        rows: Of the episode.
    """

    frames: Frames
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: Any) -> Any:
        """One of them, or a slice."""
        if isinstance(step, slice):
            return Observed(self.frames, self.rows[step])
        return self.frames[self.rows[step]]["observation"]


def observed(frames: Frames, episode: int) -> Observed:
    """Of an episode, the observations at which a chunk begins."""
    return Observed(frames, [int(row) for row in (np.asarray(frames.episode) == episode).nonzero()[0]])


def apart(mine: np.ndarray, reference: np.ndarray) -> dict[str, tuple[float, float]]:
    """How far apart the executed actions of an episode are: each of MEASURES → its sum, and what it is divided by.

    Args:
        mine, reference: [steps, 7], LIBERO's actions; a step in which either robot stands still does not count.
    """
    moving = ~(np.isnan(mine).any(axis=1) | np.isnan(reference).any(axis=1))
    off = (mine - reference)[moving]  # [n, 7]
    count = float(len(off))
    runs = np.lib.stride_tricks.sliding_window_view(off[:, :3], WINDOW, axis=0).sum(axis=2) if count >= WINDOW else None
    drift = np.zeros((0, 3)) if runs is None else runs  # [windows, 3]
    other = (mine[moving, 6] > 0) != (reference[moving, 6] > 0)
    return {
        "translation_mm": (MM_PER_UNIT * float(np.linalg.norm(off[:, :3], axis=1).sum()), count),
        "rotation_deg": (DEGREES_PER_UNIT * float(np.linalg.norm(off[:, 3:6], axis=1).sum()), count),
        "gripper": (float(other.sum()), count),
        "far": (float((np.abs(off[:, :6]) > FAR).any(axis=1).sum()), count),
        "drift_mm": (MM_PER_UNIT * float(np.linalg.norm(drift, axis=1).sum()), float(len(drift))),
    }
