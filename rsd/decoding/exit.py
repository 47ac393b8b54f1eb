"""What the draft says and nothing else: the base model runs to the draft's point, and no further.

A draft in tokens is asked for stages; those that nobody has said are taken at their expected value, the middle of their
range, which is what a tokenizer decodes a prefix to. A draft in numbers is asked for the chunk. What surprises first:
nobody verifies either. They count as draft passes, not as proposals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.decoding.decoding import DRAFT
from rsd.decoding.past import Past
from rsd.decoding.sampling import FOR_DRAFT, Noise, distribution, draw
from rsd.decoding.speculative import stages_asked
from rsd.settings import NotNegative, checked
from rsd.stages import InNumbers, StageLogits
from rsd.types import IN_NUMBERS, Code
from rsd.work import Work


@checked
@dataclass(frozen=True, kw_only=True)
class Exit:
    """Every chunk ends at the draft's point.

    Attributes:
        num_draft_stages: Stages that the draft is asked for, 1..Q; None for Q. A draft in numbers has none.
        temperature: 0 is greedy, as a draft in numbers always is.
    """

    num_draft_stages: int | None
    temperature: NotNegative = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({DRAFT})

    @property
    def asks_tokens(self) -> None:
        """See `asks_tokens`: nobody here."""

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        """See `Decoding.run`; raises ValueError when num_draft_stages is not in 1..Q."""
        return self.propose(draft, levels, noise)[0]

    def propose(self, draft: StageLogits, levels: Tensor, noise: Noise) -> tuple[Code, Tensor | None]:
        """The code, and how sure the draft is of it: log-probability of each of its tokens, [B, T, D, m], float32.

        Log-probabilities are those of the draft itself, at temperature 1; entries without a token have 0. None of a
        draft in numbers, which does not say.
        """
        work = Work.none(len(noise), levels.shape[2], levels.device)
        work.early_exits += 1
        if isinstance(draft, InNumbers):
            chunk = draft.chunk()  # [B, T, A]
            work.draft_passes += 1
            indices = torch.zeros(len(noise), *levels.shape, dtype=torch.long, device=levels.device)
            depth = torch.full((len(noise),), IN_NUMBERS, device=levels.device)
            return Code(indices, depth, work, chunk=chunk.clone()), None
        stages = stages_asked(self.num_draft_stages, levels.shape[2])
        indices = torch.zeros(len(noise), *levels.shape, dtype=torch.long, device=levels.device)
        log_probs = []
        for stage in range(stages):
            logits = draft(indices[..., :stage], stage, stage + 1)[..., 0, :]  # [B, T, D, L]
            chance = noise.for_stage(levels, self.temperature, 0, stage, FOR_DRAFT)
            indices[..., stage] = draw(distribution(logits, self.temperature), chance)
            said = torch.log_softmax(logits.float(), dim=-1).gather(-1, indices[..., stage, None])[..., 0]
            log_probs.append(said.where(levels[..., stage] > 1, 0.0))  # [B, T, D]
        work.draft_passes += stages
        depth = torch.full((len(noise),), stages, device=levels.device)
        code = Code(indices, depth, work, proposal=indices[..., :stages].clone())
        return code, torch.stack(log_probs, dim=-1)
