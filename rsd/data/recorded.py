"""A data set as replays read it: frames of both splits for a policy, actions and first pictures for a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsd.data.datasets import Demonstrations, FrameDataset
from rsd.data.layout import Layout
from rsd.data.libero_records import FILE_PATH
from rsd.settings import ChunkLength, Views, checked
from rsd.space import QUANTILES, Space, with_bounds


@dataclass(frozen=True)
class Recorded:
    """A data set as training reads it.

    Attributes:
        frames: "val" and "train" → the frames at which a chunk begins.
        space: What its numbers mean, by its own statistics.
        median: Of the training actions, standard, [A].
        file_paths: Where each episode comes from; empty where it does not say.
        units: Of each action dim, for people; empty where nobody has said.
        rate: Steps a second after down-sampling, Hz; None where nobody has said.
    """

    frames: dict[str, FrameDataset]
    space: Space
    median: np.ndarray
    file_paths: list[str]
    units: tuple[str, ...]
    rate: float | None

    @property
    def proprio_dim(self) -> int:
        """P."""
        return int(self.frames["train"].trajectories[0].proprio.shape[1])


@checked
def recorded_frames(
    *,
    dataset_dir: Path | str,
    chunk_length: ChunkLength,
    views: Sequence[str],
    proprio: bool = True,
    bounds: str = QUANTILES,
    layout: Layout | None = None,
) -> Recorded:
    """Read a data set once; see `rsd.data.datasets.Demonstrations`.

    Args:
        views: Pictures that the policy wants.
        proprio: False for a policy that is told none.
        bounds: See `rsd.data.datamodules.ChunkDataModule`.
    """
    demonstrations = Demonstrations(dataset_dir, views, layout, proprio=proprio)
    frames = {split: FrameDataset(demonstrations, chunk_length, split) for split in ("val", "train")}
    actions = [demonstrations.trajectories[index].actions for index in frames["train"].episodes]
    has_paths = FILE_PATH in demonstrations.rlds.features
    return Recorded(
        frames,
        Space.from_statistics(demonstrations.name, with_bounds(demonstrations.norm_stats, bounds)),
        np.median(np.concatenate(actions), axis=0),
        demonstrations.rlds.file_paths() if has_paths else [],
        tuple(demonstrations.layout.units or ()),
        None if (rate := demonstrations.layout.rate) is None else rate / demonstrations.layout.stride,
    )


@checked
def recorded_actions(*, dataset_dir: Path | str, views: Views, layout: Layout | None = None) -> Demonstrations:
    """Demonstrations to execute again, which need neither words nor states."""
    return Demonstrations(dataset_dir, views, layout, language=False, proprio=False)
