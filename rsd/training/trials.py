"""Trials of a training (conf/debug/): a part of the data, of which nothing is published.

What surprises first: Lightning's own `overfit_batches` wants its samplers replaced, and takes another batch an epoch
from a loader that has none; here the first batches are kept, in the memory of this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pytorch_lightning import LightningDataModule


class FirstBatches:
    """The first batches of a loader, the same ones in every epoch; fewer where an epoch has fewer."""

    def __init__(self, loader: Iterable[Any], count: int) -> None:
        self._batches = list(islice(loader, count))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def repeat_first(datamodule: LightningDataModule, count: int) -> None:
    """Let a data module give its first `count` training batches alone."""
    loader = datamodule.train_dataloader
    datamodule.train_dataloader = lambda: FirstBatches(loader(), count)  # type: ignore[method-assign]
