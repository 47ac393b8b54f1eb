"""What can be found out about a data set before a training: it is read, decoded and normalised as training does it.

Every question goes to the datamodules and data sets themselves, so that the answer is that of the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from rsd.data.datasets import FrameDataset
from rsd.types import Frame


def samples(datamodule: Any) -> Iterator[str]:
    """The first sample of the training split and the last held-out one, normalised, in words: shapes and ranges.

    Args:
        datamodule: Read; see its `read`.

    Raises:
        DataError: a picture cannot be decoded.
    """
    space = datamodule.space
    for split, dataset, row in (("train", datamodule.train, 0), ("val", datamodule.val, -1)):
        rows = datamodule.from_disk(dataset)([row % len(dataset)])
        sample: dict[str, Any] = {name: values[0] for name, values in rows.items()}
        sample["actions"] = space.to_model(sample["actions"])  # [T, A]
        if "proprio" in sample:
            sample["proprio"] = space.proprio_to_model(sample["proprio"])  # [P]
        yield f"{len(dataset)} in {split}, one of them {in_words(sample)}"


def in_words(sample: Mapping[str, Any]) -> str:
    """Names, shapes and ranges of arrays, and texts in quotes."""
    return ", ".join(
        f"{name} {list(value.shape)} {_number(value.min())}..{_number(value.max())}"
        if isinstance(value, Tensor | np.ndarray)
        else repr(value)
        for name, value in sample.items()
    )


def _number(value: Any) -> str:
    return f"{float(value):.3g}"


def pairs_of_tasks(frames: FrameDataset, count: int) -> list[tuple[Frame, Frame]]:
    """Held-out frames, evenly over tasks, each with one of the next task from about the same part of an episode.

    Args:
        frames: Of all episodes.
        count: How many.

    Returns:
        Pairs; none where the data set has a single task.

    Raises:
        DataError: nothing can be held out, or a picture cannot be decoded.
    """
    tasks = _tasks(frames)  # [N]
    names = sorted({*tasks})
    if len(names) < 2:
        return []
    held_out = FrameDataset(frames.demonstrations, frames.chunk_length, "val")
    own_tasks, own_parts, parts = _tasks(held_out), _parts(held_out), _parts(frames)
    rows = {name: np.flatnonzero(own_tasks == name) for name in sorted({*own_tasks})}
    chosen = [list(rows)[index * len(rows) // count] for index in range(count)]
    pairs = []
    for index, name in enumerate(chosen):
        same, place = chosen.count(name), index - chosen.index(name)
        own = rows[name][(2 * place + 1) * len(rows[name]) // (2 * same)]
        next_task = names[(names.index(name) + 1) % len(names)]
        others = np.flatnonzero(tasks == next_task)
        other = others[np.abs(parts[others] - own_parts[own]).argmin()]
        pairs.append((held_out[int(own)], frames[int(other)]))
    return pairs


def _tasks(frames: FrameDataset) -> np.ndarray:
    """The instruction of each frame, [N]."""
    places = zip(frames.episode.tolist(), frames.step.tolist(), strict=True)
    return np.array([frames.trajectories[episode].instructions[step] for episode, step in places], dtype=object)


def _parts(frames: FrameDataset) -> np.ndarray:
    """Part of its episode that is over at each frame, [N], in 0..1."""
    lengths = np.array([len(trajectory.actions) for trajectory in frames.trajectories])
    return frames.step.numpy() / lengths[frames.episode.numpy()]
