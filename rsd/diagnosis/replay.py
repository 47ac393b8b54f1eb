"""Held-out episodes seen through the policy: a chunk every few steps, always on the demonstration's own pictures.

The robot of the recording moves on as it was recorded, so nothing here is closed loop: it says what the policy would
do at each moment if everything had gone right so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rsd.diagnosis.moments import EpisodeIndex
from rsd.types import Observation


@dataclass(frozen=True)
class Replay:
    """One episode.

    Attributes:
        episode: Which.
        steps: Where chunks were asked for: every `stride` steps, [n].
        stride: Steps that are executed of each.
        chunks: The policy's, model space, [n, T, A].
        demonstrated: The demonstration's chunks, standard, [n, T, A].
        proprio: What was felt there, standard, [n, P].
    """

    episode: int
    steps: np.ndarray
    stride: int
    chunks: np.ndarray
    demonstrated: np.ndarray
    proprio: np.ndarray

    def executed(self, chunks: np.ndarray) -> np.ndarray:
        """Of chunks [n, T, A] the steps that are executed, and the rest of the last one: [steps, A]."""
        return np.concatenate([*chunks[:-1, : self.stride], chunks[-1]])


def stride_of(chunk_length: int, num_open_loop_steps: int) -> int:
    """Steps between two chunks: those that the policy executes, where that leaves an overlap to compare; else half."""
    return num_open_loop_steps if num_open_loop_steps < chunk_length else max(1, chunk_length // 2)


def spread_out(places: EpisodeIndex, split: str, count: int) -> list[int]:
    """At most so many episodes of a split, taken evenly from the tasks in turn."""
    held_out = set(places.of_split(split))
    by_task = [[one for one in places.of_task(task) if one in held_out] for task in places.tasks]
    longest = max(map(len, by_task))
    return [own[turn] for turn in range(longest) for own in by_task if turn < len(own)][:count]


def replay(
    places: EpisodeIndex, episode: int, stride: int, answer: Callable[[Sequence[Observation]], np.ndarray]
) -> Replay:
    """See one episode through a policy.

    Args:
        answer: Observations → chunks, model space, [n, T, A].
    """
    steps = np.arange(0, places.starts[episode], stride)
    frames = [places.frame(episode, int(step)) for step in steps]
    return Replay(
        episode=episode,
        steps=steps,
        stride=stride,
        chunks=answer([frame["observation"] for frame in frames]),
        demonstrated=np.stack([frame["actions"].numpy() for frame in frames]),
        proprio=np.stack([frame["observation"].proprio for frame in frames]),
    )
