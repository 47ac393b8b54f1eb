"""Trials of a training (conf/debug/): a part of the data, of which nothing is published.

What surprises first: Lightning's own `overfit_batches` wants its samplers replaced, and takes another batch an epoch
from a loader that has none; here the first batches are kept, in the memory of this process.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from pytorch_lightning import LightningDataModule


def repeat_first(datamodule: LightningDataModule, batches: int) -> None:
    """Let a data module give its first training batches alone, the same ones in every epoch.

    Args:
        batches: How many; all of an epoch where it has fewer.
    """
    loader = datamodule.train_dataloader

    def first() -> list[Any]:
        return list(islice(loader(), batches))

    datamodule.train_dataloader = first  # type: ignore[method-assign]
