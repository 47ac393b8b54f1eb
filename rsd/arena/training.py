"""Optimizer steps of contestants that are trained: random chunks of the split, one cycle of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

LEARNING_RATE = 5e-3  # its peak, and the batch: as conf/phase/rfsq.yaml has them
BATCH_SIZE = 256
WARM = 0.1  # share of the steps in which the learning rate rises

Loss = Callable[[Tensor, torch.Generator], Tensor]  # of chunks [B, T, A]


def train(parameters: Iterable[nn.Parameter], loss: Loss, chunks: Tensor, *, steps: int, seed: int) -> None:
    """Adam on batches of chunks [N, T, A], drawn with replacement from `seed` alone."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARM)
    for _ in range(steps):
        batch = chunks[torch.randint(len(chunks), (BATCH_SIZE,), generator=draw)]
        optimizer.zero_grad()
        loss(batch, draw).backward()
        optimizer.step()
        schedule.step()
