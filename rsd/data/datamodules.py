"""Lightning datamodules over RLDS: chunks for tokenizers, frames for behaviour cloning.

Training order is a function of (seed, epoch), and a run that stops in the middle of an epoch goes on exactly there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from rsd.data.datasets import ChunkDataset, Demonstrations, FrameDataset
from rsd.data.layout import Layout
from rsd.data.shuffle import EpochShuffle, Fetch, ShuffledLoader, batch_loader, ranks
from rsd.data.streaming import EpisodeWindows, Stream, StreamedDemonstrations
from rsd.errors import SettingError
from rsd.processes import say
from rsd.settings import ChunkLength, Count, LoaderProcesses, Seed, Views, checked
from rsd.space import BOUNDS, QUANTILES, Space, with_bounds
from rsd.types import Frame

Collate = Callable[[list[Frame]], Any]


Data = TypeVar("Data", ChunkDataset, FrameDataset)


class RLDSDataModule(LightningDataModule, Generic[Data]):
    """Loaders over the splits "train" and "val" of one data set.

    Attributes:
        train, val: The data sets, after `read` or `setup`.
    """

    train: Data
    val: Data

    @checked
    def __init__(
        self,
        *,
        root: str,
        name: str,
        version: str,
        batch_size: Count,
        num_workers: LoaderProcesses,
        seed: Seed,
        bounds: str = QUANTILES,
        layout: Layout | None = None,
        stream: Stream | None = None,
    ) -> None:
        super().__init__()
        if bounds not in BOUNDS:
            raise SettingError(f"data.bounds is {bounds!r}, expected one of {sorted(BOUNDS)}")
        self.dataset_dir = Path(root) / name / version
        self.batch_size, self.num_workers, self.seed, self.bounds = batch_size, num_workers, seed, bounds
        self.layout, self.stream = layout, stream

    @property
    def space(self) -> Space:
        """What the numbers of the data set mean, with the bounds to normalise with; after `setup`."""
        return Space.from_statistics(self.train.name, with_bounds(self.train.norm_stats, self.bounds))

    @property
    def spaces(self) -> list[Space]:
        """The spaces that a batch's "space" would number; here there is one, and batches have no such entry."""
        return [self.space]

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "train"):
            self.read()
            for note in self.train.notes(self.space):
                say(f"note: {note}")

    def read(self) -> None:
        """Read the data set, and make `train` and `val` of it; `setup` without its notes."""
        raise NotImplementedError

    def demonstrations(self, views: Sequence[str] = (), **needs: bool) -> Demonstrations:
        """The data set, read whole or opened to be streamed."""
        if self.stream is None or self.stream.buffer_mb is None:
            return Demonstrations(self.dataset_dir, views, self.layout, **needs)
        return StreamedDemonstrations(self.dataset_dir, views, self.layout, index_dir=self.stream.index_dir, **needs)

    def order(self) -> EpochShuffle:
        """Which row of `train` comes when; after `setup`."""
        read = self.train.demonstrations
        if not isinstance(read, StreamedDemonstrations) or self.stream is None or self.stream.buffer_mb is None:
            return EpochShuffle(len(self.train), self.seed)
        return EpisodeWindows(self.train.episode.numpy(), read.window(self.stream.buffer_mb), self.seed)

    def content_id(self) -> str:
        """What identifies the training split's items; after `setup`."""
        return self.train.content_id()

    def train_dataloader(self) -> ShuffledLoader:
        return ShuffledLoader(
            self.order(),
            self.fetch(self.train),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> DataLoader:
        rows = list(range(len(self.val)))
        return batch_loader(rows, self.fetch(self.val), self.batch_size, self.num_workers)

    def from_disk(self, dataset: Data) -> Fetch:
        """What makes a batch of rows of `train` or `val`."""
        raise NotImplementedError

    def fetch(self, dataset: Data) -> Fetch:
        """What the loaders use; `from_disk` unless a subclass keeps what it has read."""
        return self.from_disk(dataset)


class ChunkDataModule(RLDSDataModule[ChunkDataset]):
    """Batches of chunks: see `rsd.types.ChunkBatch`.

    Args:
        root: Folder of the data sets; this one lies in <root>/<name>/<version>.
        name: For example libero_spatial_no_noops.
        version: For example 1.0.0.
        chunk_length: T.
        batch_size: Chunks a batch, on each device.
        seed: Of the shuffling.
        num_workers: Processes that fetch; chunks lie in memory, so 0 is fastest.
        bounds: Which statistics normalise actions and proprio to [-1, 1]: "quantiles" or "extremes".
        layout: Where in the steps the things lie, and how they are recorded; found unless said.
        stream: How to read a data set that is too large for memory; None reads it whole.
    """

    @checked
    def __init__(self, *, chunk_length: ChunkLength, num_workers: LoaderProcesses = 0, **common: Any) -> None:
        super().__init__(num_workers=num_workers, **common)
        self.chunk_length = chunk_length

    def read(self) -> None:
        demonstrations = self.demonstrations(language=False, proprio=False)
        self.train = ChunkDataset(demonstrations, self.chunk_length, "train")
        self.val = ChunkDataset(demonstrations, self.chunk_length, "val")

    def from_disk(self, dataset: ChunkDataset) -> Fetch:
        return dataset.batch


def _collated(rows: Sequence[int], dataset: FrameDataset, collate: Collate) -> Any:
    return collate(dataset.batch(rows))


class FrameDataModule(RLDSDataModule[FrameDataset]):
    """Batches `collate([items])` of frames with pictures; see FrameDataset for an item.

    Args:
        root, name, version, chunk_length, batch_size, seed, bounds, layout, stream: As in ChunkDataModule.
        views: Pictures to decode, e.g. ("image", "wrist_image").
        proprio: Whether the model reads it; where not, the data set needs none.
        num_workers: Processes that read, decode and collate.
        collate: Items → batch; picklable when there are workers. It knows the model, this module does not.
    """

    @checked
    def __init__(
        self, *, chunk_length: ChunkLength, views: Views, collate: Collate, proprio: bool = True, **common: Any
    ) -> None:
        super().__init__(**common)
        self.chunk_length, self.views, self.collate = chunk_length, tuple(views), collate
        self.proprio = proprio

    def read(self) -> None:
        demonstrations = self.demonstrations(self.views, proprio=self.proprio)
        self.train = FrameDataset(demonstrations, self.chunk_length, "train")
        self.val = FrameDataset(demonstrations, self.chunk_length, "val")

    def from_disk(self, dataset: FrameDataset) -> Fetch:
        return functools.partial(_collated, dataset=dataset, collate=self.collate)
