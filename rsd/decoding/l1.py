"""The base model's own chunk, as it is: the baseline. A code of no stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.decoding.past import Past
from rsd.decoding.sampling import Noise
from rsd.stages import StageLogits
from rsd.types import Code
from rsd.work import Work


@dataclass(frozen=True)
class L1:
    """Asks nobody: depth 0 says that the base model's chunk is executed."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def num_draft_stages(self) -> int:
        return 0

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        batch = len(noise)
        indices = torch.zeros(batch, *levels.shape, dtype=torch.long, device=levels.device)
        depth = torch.zeros(batch, dtype=torch.long, device=levels.device)
        return Code(indices, depth, Work.none(batch, levels.shape[2], levels.device))
