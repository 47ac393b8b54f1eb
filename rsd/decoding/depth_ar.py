"""One pass of the target a stage, each knowing all stages before it: the lossless reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.decoding.decoding import TARGET
from rsd.decoding.past import Past
from rsd.decoding.sampling import FOR_TARGET, Noise, distribution, draw
from rsd.settings import NotNegative, checked
from rsd.stages import StageLogits
from rsd.types import Code
from rsd.work import Work


@checked
@dataclass(frozen=True, kw_only=True)
class DepthAR:
    """Q passes.

    Attributes:
        temperature: 0 is greedy.
    """

    temperature: NotNegative = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({TARGET})

    @property
    def num_draft_stages(self) -> int:
        return 0

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        batch, num_stages = len(noise), levels.shape[2]
        indices = torch.zeros(batch, *levels.shape[:2], 0, dtype=torch.long, device=levels.device)
        work = Work.none(batch, num_stages, levels.device)
        for stage in range(num_stages):
            probs = distribution(target(indices, stage, stage + 1), self.temperature)[..., 0, :]  # [B, T, D, L]
            tokens = draw(probs, noise.for_stage(levels, self.temperature, stage, stage, FOR_TARGET))  # [B, T, D]
            indices = torch.cat([indices, tokens[..., None]], dim=-1)  # [B, T, D, stage + 1]
            work.target_passes += 1
        return Code(indices, torch.full((batch,), num_stages, device=levels.device), work)
