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


class HiddenStateDataset(Dataset):
    """The rows of a cache that belong to one split.

    Attributes:
        rows: [N], int64, in the cache.
    """

    def __init__(self, cache: CacheReader, layers: Sequence[int], split: str) -> None:
        """Choose rows and layers.

        Args:
            cache: The complete cache.
            layers: Layers whose states are wanted.
            split: "train", "val" or "all".

        Raises:
            CacheError: a layer is not in the cache, or the split has no frame.
        """
        absent = sorted(set(layers) - set(cache.layers))
        if absent:
            raise CacheError(f"layers {absent} are not in {cache.directory}, which has {cache.layers}; cache them too")
        self.cache = cache
        self.layers = list(layers)
        episodes = torch.tensor(split_episodes(cache.num_episodes, split))
        self.rows = torch.isin(cache.episodes, episodes).nonzero()[:, 0]
        if len(self.rows) == 0:
            raise CacheError(f"split {split!r} of {cache.directory} has no frame; collect longer or more episodes")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"hidden": {layer: [K or T, H]}, "actions": [T, A], "base_actions": [T, A]}, float32."""
        batch = self.batch([index])
        hidden = {layer: states[0] for layer, states in batch["hidden"].items()}
        return {"hidden": hidden, "actions": batch["actions"][0], "base_actions": batch["base_actions"][0]}

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Any]:
        """As the datamodule's batches."""
        batch = self.cache.read(self.rows[torch.as_tensor(indices)], self.layers)
        hidden = {layer: states.float() for layer, states in batch["hidden"].items()}
        return {"hidden": hidden, "actions": batch["actions"], "base_actions": batch["base_actions"]}


class HiddenStateDataModule(LightningDataModule):
    """Batches {"hidden": {layer: [B, K or T, H]}, "actions": [B, T, A] raw, "base_actions": [B, T, A] normalised}.

    All float32; K states a chunk at a decoder layer, T in the L1 head.

    Attributes:
        cache: The opened cache; after `setup`.
        train, val: Data sets of the two splits; after `setup`.
    """

    cache: CacheReader
    train: HiddenStateDataset
    val: HiddenStateDataset

    def __init__(
        self,
        *,
        cache: Callable[[], CacheReader],
        layers: Sequence[int],
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        memory_gb: float = 2.0,
    ) -> None:
        """Remember the settings; nothing is opened.

        Args:
            cache: Opens the cache, usually `ensure_cache` with everything but the call.
            layers: Layers whose states the batches hold.
            batch_size: Frames a batch, on each device.
            seed: Of the shuffling; the order is a function of (seed, epoch).
            num_workers: Processes that fetch; 0 is fastest for a cache in memory.
            memory_gb: A cache of at most this size, in 10^9 bytes, is copied into memory.
        """
        super().__init__()
        self._open_cache = cache
        self.layers = list(layers)
        self.batch_size, self.seed, self.num_workers, self.memory_gb = batch_size, seed, num_workers, memory_gb

    def prepare_data(self) -> None:
        """Make the cache in one process before several open it."""
        if self.trainer.world_size > 1:
            self._open_cache()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "cache"):
            return
        cache = self._open_cache()
        self.train = HiddenStateDataset(cache, self.layers, "train")
        self.val = HiddenStateDataset(cache, self.layers, "val")
        if cache.num_bytes <= self.memory_gb * GIGABYTE:
            cache.load_into_memory()
        self.cache = cache

    @property
    def norm_stats(self) -> dict[str, Any]:
        """Statistics that the base model un-normalises its chunk with."""
        return self.cache.norm_stats

    @property
    def unnorm_key(self) -> str:
        """Name of these statistics."""
        return self.cache.content["unnorm_key"]

    def state_shape(self, layer: int) -> tuple[int, int]:
        """(states a chunk, H) of a layer."""
        return self.cache.state_shape(layer)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the base model."""
        return self.cache.content["backbone"]

    def content_id(self) -> str:
        """What identifies the data set."""
        return self.cache.content["data"]["content_id"]

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
