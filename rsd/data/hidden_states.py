"""Cached hidden states as training data: the Lightning datamodule of phase=head and phase=draft.

The cache is opened, and made or completed where needed, in `setup`. Held-out episodes are the same ones as everywhere:
the split is by episode, with the rule of rsd/data/datasets.py. What surprises first: batches are float32, the cache is
bfloat16; a cache that fits is copied into memory, a larger one stays memory-mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rsd.data.cache import GIGABYTE, CacheError, CacheReader
from rsd.data.datasets import split_episodes
from rsd.data.shuffle import ShuffledLoader, batch_loader, ranks
from rsd.points import point_names
from rsd.settings import Count, LoaderProcesses, NotNegative, Points, Seed, checked
from rsd.space import Space
from rsd.types import HiddenStateBatch


class HiddenStateDataset(Dataset):
    """The rows of a cache that belong to one split.

    Attributes:
        rows: [N], int64, in the cache.
    """

    def __init__(self, cache: CacheReader, split: str) -> None:
        """Choose rows.

        Args:
            cache: The cache, opened at the points that are wanted.
            split: "train", "val" or "all".

        Raises:
            CacheError: the split has no frame.
        """
        self.cache = cache
        episodes = torch.tensor(split_episodes(cache.num_episodes, split))
        self.rows = torch.isin(cache.episodes, episodes).nonzero()[:, 0]
        if len(self.rows) == 0:
            raise CacheError(f"split {split!r} of {cache.directory} has no frame; collect longer or more episodes")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> HiddenStateBatch:
        """One row, without the batch axis."""
        batch = self.batch([index])
        hidden = {point: states[0] for point, states in batch["hidden"].items()}
        return {"hidden": hidden, "actions": batch["actions"][0], "base_actions": batch["base_actions"][0]}

    def batch(self, indices: Sequence[int] | Tensor) -> HiddenStateBatch:
        """Many rows at once."""
        batch = self.cache.read(self.rows[torch.as_tensor(indices)], self.cache.points)
        hidden = {point: states.float() for point, states in batch["hidden"].items()}
        return {"hidden": hidden, "actions": batch["actions"], "base_actions": batch["base_actions"]}


class HiddenStateDataModule(LightningDataModule):
    """Batches of a cache: see `rsd.types.HiddenStateBatch`.

    Attributes:
        cache: The opened cache; after `setup`.
        train, val: Data sets of the two splits; after `setup`.
    """

    cache: CacheReader
    train: HiddenStateDataset
    val: HiddenStateDataset

    @checked
    def __init__(
        self,
        *,
        cache: Callable[..., CacheReader],
        points: Points,
        batch_size: Count,
        seed: Seed,
        num_workers: LoaderProcesses = 0,
        memory_gb: NotNegative = 2.0,
    ) -> None:
        """Remember the settings; nothing is opened.

        Args:
            cache: cache(points=[names]) opens the cache, usually `ensure_cache` with everything but the points.
            points: Point or points whose states the batches hold, as `point_name` takes them. No other is asked for.
            batch_size: Frames a batch, on each device.
            seed: Of the shuffling; the order is a function of (seed, epoch).
            num_workers: Processes that fetch; 0 is fastest for a cache in memory.
            memory_gb: A cache of at most this size, in 10^9 bytes, is copied into memory.
        """
        super().__init__()
        self._open_cache = cache
        self._opened: CacheReader | None = None
        self.points = point_names(points)
        self.batch_size, self.seed, self.num_workers, self.memory_gb = batch_size, seed, num_workers, memory_gb

    def prepare_data(self) -> None:
        """Make the cache in one process before several open it; this one keeps it open."""
        if self.trainer is not None and self.trainer.world_size > 1:
            self._opened = self._open_cache(points=self.points)

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "cache"):
            return
        cache = self._open_cache(points=self.points) if self._opened is None else self._opened
        self.train = HiddenStateDataset(cache, "train")
        self.val = HiddenStateDataset(cache, "val")
        if cache.num_bytes <= self.memory_gb * GIGABYTE:
            cache.load_into_memory()
        self.cache = cache

    @property
    def space(self) -> Space:
        """What the numbers of the base model mean."""
        return Space.from_statistics(self.cache.content["unnorm_key"], self.cache.norm_stats)

    def state_shape(self, point: str) -> tuple[int, int]:
        """(states a chunk, H) at a point."""
        return self.cache.state_shape(point)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the base model."""
        return self.cache.content["base"]

    def content_id(self) -> str:
        """What identifies the data set."""
        return self.cache.content["data"]["content_id"]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training is held to."""
        return {"cache": self.cache.digest(), "directory": str(self.cache.directory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See that the cache is the one that the training began with.

        Raises:
            CacheError: it is another one; both are named.
        """
        digest = self.cache.digest()
        if state_dict["cache"] != digest:
            raise CacheError(
                f"cannot resume: the run has read the hidden states {state_dict['cache']} of "
                f"{state_dict['directory']}, and {self.cache.directory} holds {digest}: it was made anew; put the "
                "former one back, or start a new run without resume"
            )

    def train_dataloader(self) -> ShuffledLoader:
        return ShuffledLoader(
            len(self.train),
            self.train.batch,
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> DataLoader:
        rows = list(range(len(self.val)))
        return batch_loader(rows, self.val.batch, self.batch_size, self.num_workers)
