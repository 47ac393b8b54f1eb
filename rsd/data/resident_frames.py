"""Frames whose pictures all lie in one tensor on the training device, decoded and resized once.

For small pictures and short trainings: 60,000 frames with two pictures of 128 px take 6 GB, and a batch is one gather.
What surprises first: only the pictures are on the device; whatever else a collated batch holds stays on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rsd.data.datamodules import FrameDataModule
from rsd.data.datasets import FrameDataset
from rsd.data.shuffle import Fetch, batch_loader
from rsd.processes import say
from rsd.progress import track

DECODE_BATCH = 64  # frames a message from a decoding process


def resident_batches(dataset: FrameDataset, fetch: Fetch, *, num_workers: int, device: torch.device) -> Fetch:
    """Collate every frame of a data set once; returns the function rows → batch.

    Args:
        dataset: The frames.
        fetch: Rows → a collated batch with "pictures" [B, ...], tensors, and lists.
        num_workers: Processes that decode; 0 decodes in this one.
        device: Where the pictures go.
    """
    whole: dict[str, Any] = {}
    done = 0
    with track("frames decoded", total=len(dataset), done=0, report=say) as advance:
        for part in batch_loader(list(range(len(dataset))), fetch, DECODE_BATCH, num_workers):
            count = len(part["pictures"])
            for name, value in part.items():
                if isinstance(value, list):
                    whole.setdefault(name, []).extend(value)
                    continue
                if name not in whole:
                    where = device if name == "pictures" else torch.device("cpu")
                    whole[name] = torch.empty((len(dataset), *value.shape[1:]), dtype=value.dtype, device=where)
                whole[name][done : done + count] = value
            done += count
            advance(count)
    return functools.partial(_rows_of, whole)


def _rows_of(whole: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    index = torch.as_tensor(rows)
    return {
        name: [value[row] for row in rows] if isinstance(value, list) else value[index.to(value.device)]
        for name, value in whole.items()
    }


class ResidentFrameDataModule(FrameDataModule):
    """FrameDataModule with the pictures on the trainer's device; `num_workers` processes decode them at the start."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if not hasattr(self, "_fetches"):
            if self.trainer is None:
                raise RuntimeError("ResidentFrameDataModule needs a trainer, on whose device its pictures will lie")
            device, workers = self.trainer.strategy.root_device, self.num_workers
            self._fetches: dict[int, Callable[[Sequence[int]], Any]] = {
                id(dataset): resident_batches(dataset, self.from_disk(dataset), num_workers=workers, device=device)
                for dataset in (self.train, self.val)
            }
            self.num_workers = 0  # batches are gathered from memory from here on

    def fetch(self, dataset: FrameDataset) -> Fetch:
        return self._fetches[id(dataset)]
