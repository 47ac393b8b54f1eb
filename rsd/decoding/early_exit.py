"""Let the draft decide where it is sure, and the full decoding elsewhere, row by row.

With the gate open this is `Exit`; with the gate shut it is the full decoding, bit for bit, and a draft pass more. A
second gate asks whether a draft at an earlier point says the same: with a tolerance, and beside the first or instead of
it. What surprises first: "full" may be `L1`, and then rows that go on execute the base model's own chunk, not tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.decoding.decoding import DRAFT, EARLIER, Decoding, asks_tokens
from rsd.decoding.exit import Exit
from rsd.decoding.gates import Gate
from rsd.decoding.past import Past
from rsd.decoding.sampling import Noise
from rsd.errors import SettingError
from rsd.settings import NotNegative, checked
from rsd.stages import StageLogits, Twofold
from rsd.types import Code


@checked
@dataclass(frozen=True, kw_only=True)
class EarlyExit:
    """A gate between the draft and the rest.

    Attributes:
        gate: Which rows the draft decides; None leaves it to the tolerance.
        full: What decodes the others.
        num_draft_stages: Stages that the draft is asked for, 1..Q, None for Q; `full` may ask it for more. A draft in
            numbers has none, and no likelihood: it takes a tolerance, and no gate.
        tolerance: Rows that the draft decides are those, of what the gate lets through, whose chunk is at most so far
            from that of the draft at an earlier point (`Twofold.distance`); None asks that draft nothing.
    """

    gate: Gate | None
    full: Decoding
    num_draft_stages: int | None
    tolerance: NotNegative | None = None

    def __post_init__(self) -> None:
        if self.gate is None and self.tolerance is None:
            raise SettingError("gate and tolerance are null, and nothing decides; expected one of them, or both")
        if self.gate is not None and not callable(self.gate):
            raise SettingError(f"gate {self.gate!r}, expected a rule such as MeanLogProb")
        if not hasattr(self.full, "run"):
            raise SettingError(f"full {self.full!r}, expected a decoding")

    @property
    def needs(self) -> frozenset[str]:
        return self.full.needs | ({DRAFT} if self.tolerance is None else {DRAFT, EARLIER})

    @property
    def asks_tokens(self) -> str | None:
        """See `asks_tokens`."""
        return asks_tokens(self.full) if self.gate is None else f"the gate {type(self.gate).__name__}"

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        """See `Decoding.run`; raises ValueError when num_draft_stages is not in 1..Q."""
        exits = Exit(num_draft_stages=self.num_draft_stages)
        if self.tolerance is None:
            code, log_probs = exits.propose(draft, levels, noise)
            decided = torch.ones_like(code.depth, dtype=torch.bool)  # [B]
        elif isinstance(draft, Twofold):
            before = exits.run(target, draft.earlier, levels, noise)  # first: the base model comes by there first
            code, log_probs = exits.propose(draft, levels, noise)
            code.work.draft_passes += before.work.draft_passes
            decided = draft.distance(before, code) <= self.tolerance  # [B]
        else:
            raise LookupError(f"the decoding asks for a draft that has an {EARLIER} one, and the policy has none")
        if self.gate is not None:
            if log_probs is None:
                raise LookupError(f"{self.asks_tokens} asks how likely tokens are, and the draft says numbers")
            decided = decided & self.gate(log_probs, levels)
        code.work.early_exits = decided.long()
        going_on = (~decided).nonzero()[:, 0]  # [n]
        if len(going_on) == 0:
            return code
        later = None if past is None else past.of(going_on)
        rest = self.full.run(target.of(going_on), draft.of(going_on), levels, noise.of(going_on), later)
        code.put(going_on, rest)
        return code
