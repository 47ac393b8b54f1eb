"""What a decoding is told of the episode so far: a number a row, made of the memory that travels with the requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.types import Memory


@dataclass(frozen=True)
class Past:
    """Of each observation's episode.

    Attributes:
        begun: Whether there was a chunk before this one, [B], bool.
        unverified: Chunks in a row, up to the last one, that the base model was not asked about to its end, [B], int64.
    """

    begun: Tensor
    unverified: Tensor

    @classmethod
    def remembered(cls, memory: Sequence[Memory | None], device: torch.device | str = "cpu") -> Past:
        """From the memory of each request; None stands for an episode that begins."""
        unverified = [0 if one is None else one.num_unverified for one in memory]
        begun = torch.tensor([one is not None for one in memory], device=device)
        return cls(begun, torch.tensor(unverified, device=device))

    @classmethod
    def none(cls, batch: int, device: torch.device | str = "cpu") -> Past:
        """Of episodes that all begin."""
        return cls.remembered([None] * batch, device)

    def of(self, rows: Tensor) -> Past:
        """Of some rows, [n] int64."""
        return Past(self.begun[rows], self.unverified[rows])
