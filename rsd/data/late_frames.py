"""Frames together with what a base model said some steps before: what a chunk that comes late looks like.

What surprises first: nothing is executed late here. The chunk that a base model would have been asked for k steps ago
stands in the cache under the frame of k steps ago, whoever acted in between; so every frame is an example for every
delay. Episodes that a policy visits with disturbances (demonstrator=policy) hold what a correction has to be learned
from: where everything goes as planned, there is little to correct.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsd.data.datasets import FrameDataset
from rsd.data.distilled_frames import DistilledFrameDataModule
from rsd.data.shuffle import Fetch
from rsd.errors import SettingError
from rsd.settings import Count, checked


class LateFrameDataModule(DistilledFrameDataModule):
    """Batches of DistilledFrameDataModule with what was said before; see `rsd.training.given.LateBatch`.

    Args:
        max_delay: Most control steps that a chunk is late; something of it must be left.
        common: See DistilledFrameDataModule.

    Raises:
        SettingError: nothing of a chunk is left after so many steps.
    """

    @checked
    def __init__(self, *, max_delay: Count, **common: Any) -> None:
        super().__init__(**common)
        if max_delay >= self.chunk_length:
            raise SettingError(
                f"phase.datamodule.max_delay is {max_delay}, and a chunk has {self.chunk_length} actions; set "
                f"1..{self.chunk_length - 1}, or a longer chunk="
            )
        self.max_delay = max_delay

    def fetch(self, dataset: FrameDataset) -> Fetch:
        chunks = self._chunks[id(dataset)]
        return functools.partial(
            with_old_chunks, fetch=super().fetch(dataset), chunks=chunks, step=dataset.step, max_delay=self.max_delay
        )


def with_old_chunks(rows: Sequence[int], fetch: Fetch, chunks: Tensor, step: Tensor, max_delay: int) -> dict[str, Any]:
    """A batch, and the base model's chunks of the frames before.

    Args:
        chunks: Of all rows of the data set, an episode's in the order of its steps, [N, T, A].
        step: Of each row in its episode, [N].
    """
    index = torch.as_tensor(rows)
    num_old = step[index].clamp_max(max_delay)  # [B]
    before = torch.arange(1, max_delay + 1)  # [K]
    old = index[:, None] - torch.minimum(before, num_old[:, None])  # [B, K]  the first frame stands for those before it
    return {**fetch(rows), "old_actions": chunks[old], "num_old": num_old}
