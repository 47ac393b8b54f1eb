"""All stages from one pass of the target, none of them knowing another."""

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
class Parallel:
    """One pass.

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
        known = torch.zeros(batch, *levels.shape[:2], 0, dtype=torch.long, device=levels.device)
        probs = distribution(target(known, 0, num_stages), self.temperature)  # [B, T, D, Q, L]
        chances = [noise.for_stage(levels, self.temperature, 0, stage, FOR_TARGET) for stage in range(num_stages)]
        indices = torch.stack([draw(probs[..., q, :], chance) for q, chance in enumerate(chances)], dim=-1)
        work = Work.none(batch, num_stages, levels.device)
        work.target_passes += 1
        return Code(indices, torch.full((batch,), num_stages, device=levels.device), work)
