"""Frames together with what a base model does in them: pictures from the demonstrations, chunks from its cache.

For drafts with eyes of their own. What surprises first: of the cache only the chunks are read, so that no point of the
base model has to be there, and filling it costs its forward passes and 0.5 kB a frame.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rsd.data.cache import CacheError, CacheReader
from rsd.data.datasets import FrameDataset
from rsd.data.resident_frames import ResidentFrameDataModule
from rsd.data.shuffle import Fetch
from rsd.points import point_names
from rsd.settings import Point, checked
from rsd.space import Space


class DistilledFrameDataModule(ResidentFrameDataModule):
    """Batches of ResidentFrameDataModule with "base_actions", the base model's chunks, model space, [B, T, A].

    Args:
        cache: cache(points=points) opens the cache, usually `ensure_cache` with everything but the points.
        points: Points that the cache shall have; the batches hold none of them.
        common: See FrameDataModule.
    """

    @checked
    def __init__(self, *, cache: Callable[..., CacheReader], points: Sequence[Point] = (), **common: Any) -> None:
        super().__init__(**common)
        self._open_cache, self.points = cache, point_names(points)

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "cache"):
            self.cache = self._open_cache(points=self.points)
        super().setup(stage)
        self._chunks = {id(dataset): chunks_of_frames(self.cache, dataset) for dataset in (self.train, self.val)}

    @property
    def space(self) -> Space:
        """What the numbers of the base model mean: its bounds are not this module's to choose."""
        return Space.from_statistics(self.cache.content["unnorm_key"], self.cache.norm_stats)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the base model."""
        return self.cache.content["base"]

    def fetch(self, dataset: FrameDataset) -> Fetch:
        return functools.partial(with_chunks, fetch=super().fetch(dataset), chunks=self._chunks[id(dataset)])


def chunks_of_frames(cache: CacheReader, dataset: FrameDataset) -> Tensor:
    """The base model's chunk in each frame of a data set, [N, T, A], float32.

    Raises:
        CacheError: the cache lacks a frame.
    """
    step_range = int(max(cache.steps.max(), dataset.step.max())) + 1
    known = cache.episodes * step_range + cache.steps  # [M]
    order = known.argsort()
    wanted = dataset.episode * step_range + dataset.step  # [N]
    place = torch.searchsorted(known[order], wanted).clamp_max(len(known) - 1)
    rows = order[place]
    if missing := int((known[rows] != wanted).sum()):
        raise CacheError(f"{cache.directory} lacks {missing} of {len(wanted)} frames; fill it for this data set")
    return cache.read(rows, [])["base_actions"]


def with_chunks(rows: Sequence[int], fetch: Fetch, chunks: Tensor) -> dict[str, Any]:
    """A batch and the base model's chunks of its rows."""
    return {**fetch(rows), "base_actions": chunks[torch.as_tensor(rows)]}
