"""Skip calls of the base model: a draft that sees the new picture by itself proposes the next chunk.

A gate decides for each observation whether the base model is asked at all; after `max_unverified` - 1 chunks in a row
that it was not asked about, it is. With a draft that does not read the base model (draft=micro), a chunk that passes
the gate costs the base model nothing, not even the preparation of its pictures. What surprises first: `max_unverified`
counts the chunks from one asking to the next, so 1 is the full decoding, bit for bit, and nobody asks the draft. A
batch in which only some rows may skip keeps no proposal to look at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.decoding.decoding import DRAFT, Decoding
from rsd.decoding.early_exit import EarlyExit
from rsd.decoding.exit import Exit
from rsd.decoding.gates import Gate
from rsd.decoding.past import Past
from rsd.decoding.sampling import Noise
from rsd.errors import SettingError
from rsd.settings import Count, Depth, checked
from rsd.stages import StageLogits
from rsd.types import Code
from rsd.work import Work


@checked
@dataclass(frozen=True, kw_only=True)
class Temporal:
    """Ask the base model at least every `max_unverified` chunks, and whenever the draft is not sure.

    Attributes:
        gate: Which proposals are executed unseen by the base model.
        full: What decodes the others, and the first chunk of an episode. Not `Exit`; an `EarlyExit` verifies only the
            rows that its own gate does not decide.
        num_draft_stages: Stages that the draft is asked for, 1..Q; None for Q.
        max_unverified: n of at least 1; of any n chunks in a row, the base model has decided one.
    """

    gate: Gate
    full: Decoding
    num_draft_stages: Depth | None
    max_unverified: Count

    def __post_init__(self) -> None:
        _ = self._early  # checks the first three
        inside: Decoding | None = self.full
        while inside is not None:
            if isinstance(inside, Exit):
                raise SettingError(
                    "full ends in Exit, which never asks the base model, so that no chunk would be verified, whatever "
                    "max_unverified is; use decoding=exit draft=micro for the draft alone, or another full"
                )
            inside = getattr(inside, "full", None)

    @property
    def _early(self) -> EarlyExit:
        return EarlyExit(gate=self.gate, full=self.full, num_draft_stages=self.num_draft_stages)

    @property
    def needs(self) -> frozenset[str]:
        return self.full.needs | {DRAFT}

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        """See `Decoding.run`; raises ValueError when num_draft_stages is not in 1..Q."""
        batch = len(noise)
        past = Past.none(batch, levels.device) if past is None else past
        may_skip = past.begun & (past.unverified < self.max_unverified - 1)  # [B]
        if may_skip.all():
            return self._early.run(target, draft, levels, noise, past)
        if not may_skip.any():
            return self.full.run(target, draft, levels, noise, past)
        indices = torch.zeros(batch, *levels.shape, dtype=torch.long, device=levels.device)
        code = Code(indices, indices.new_zeros(batch), Work.none(batch, levels.shape[2], levels.device))
        for decoding, chosen in ((self._early, may_skip), (self.full, ~may_skip)):
            rows = chosen.nonzero()[:, 0]
            asked = target.of(rows), draft.of(rows), levels, noise.of(rows), past.of(rows)
            code.put(rows, decoding.run(*asked))
        return code
