"""Held-out frames spread over tasks and over parts of an episode, each with the frames that take its inputs' places.

What surprises first: with one task there is no other task's frame. Then `other` is from another episode, half an
episode away: at the same moment of the same task pictures are alike, and nobody could tell whether a policy looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsd.data.datasets import FrameDataset, split_episodes
from rsd.types import Frame


@dataclass(frozen=True)
class Moment:
    """A frame, and others of the same data set.

    Attributes:
        own: The frame itself.
        other: From a comparable moment of another task; with one task, from another moment of another episode.
        same: From a comparable moment of another episode of the same task; None where there is none.
        first: The first one of its episode.
        following: The next one of its episode; the frame itself where there is none.
    """

    own: Frame
    other: Frame
    same: Frame | None
    first: Frame
    following: Frame


class EpisodeIndex:
    """The frames of a data set by episode, step and task.

    Args:
        frames: Of all episodes.
    """

    def __init__(self, frames: FrameDataset) -> None:
        self.frames = frames
        of_episode = frames.episode.numpy()
        self.episodes = [int(one) for one in np.unique(of_episode)]
        self._start = {one: int(np.searchsorted(of_episode, one)) for one in self.episodes}
        self.starts = {one: int((of_episode == one).sum()) for one in self.episodes}  # chunks that begin in it
        self.task = {one: frames.trajectories[one].instructions[0] for one in self.episodes}
        self.tasks = sorted(set(self.task.values()))

    def frame(self, episode: int, step: int) -> Frame:
        """The frame at a step, decoded."""
        return self.frames[self._start[episode] + step]

    def at_part(self, episode: int, part: float) -> int:
        """The step at which this part of the episode, 0..1, is over."""
        return min(int(part * self.starts[episode]), self.starts[episode] - 1)

    def of_task(self, task: str, without: int | None = None) -> list[int]:
        """Episodes of a task, but for one."""
        return [one for one in self.episodes if self.task[one] == task and one != without]

    def of_split(self, split: str) -> list[int]:
        """Episodes of a split that have chunks.

        Raises:
            DataError: nothing can be held out.
        """
        wanted = set(split_episodes(len(self.frames.trajectories), split))
        return [one for one in self.episodes if one in wanted]


def choose_moments(places: EpisodeIndex, split: str, count: int, seed: int) -> list[Moment]:
    """As many moments, task by task in turn; each task's are spread evenly over its episodes and their parts.

    Args:
        split: "val": held-out episodes; "all": for a data set that the policy was not trained on.

    Raises:
        DataError: nothing can be held out, or a picture cannot be decoded.
    """
    random = np.random.default_rng(seed)
    held_out = places.of_split(split)
    episodes = {task: [one for one in places.of_task(task) if one in set(held_out)] for task in places.tasks}
    episodes = {task: [int(one) for one in random.permutation(own)] for task, own in episodes.items() if own}
    names, moments = list(episodes), []
    for index in range(count):
        task, number = names[index % len(names)], index // len(names)
        of_task = -(-(count - index % len(names)) // len(names))
        part = (number + random.uniform()) / of_task
        moments.append(_moment(places, episodes[task][number % len(episodes[task])], part, random))
    return moments


def _moment(places: EpisodeIndex, episode: int, part: float, random: np.random.Generator) -> Moment:
    """The moment at a part of an episode."""
    step = max(0, min(places.at_part(episode, part), places.starts[episode] - 2))  # so that one follows
    same = places.of_task(places.task[episode], without=episode)
    others = [one for one in places.episodes if places.task[one] != places.task[episode]]
    other_part = part if others else (part + 0.5) % 1
    other = int(random.choice(others or same or [episode]))
    alike = int(random.choice(same)) if same else None
    return Moment(
        own=places.frame(episode, step),
        other=places.frame(other, places.at_part(other, other_part)),
        same=None if alike is None else places.frame(alike, places.at_part(alike, part)),
        first=places.frame(episode, 0),
        following=places.frame(episode, min(step + 1, places.starts[episode] - 1)),
    )


def episodes_of(moments: Sequence[Moment]) -> np.ndarray:
    """The episode of each moment, [N]: what the bootstrap draws."""
    return np.array([one.own["episode"] for one in moments])
