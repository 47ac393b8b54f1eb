"""Let the draft decide where it is sure, and the full decoding elsewhere, row by row.

With the gate open this is `Exit`; with the gate shut it is the full decoding, bit for bit, and a draft pass more. What
surprises first: "full" may be `L1`, and then rows that go on execute the base model's own chunk, not tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rsd.decoding.decoding import DRAFT, Decoding
from rsd.decoding.exit import Exit
from rsd.decoding.gates import Gate
from rsd.decoding.past import Past
from rsd.decoding.sampling import Noise
from rsd.errors import SettingError
from rsd.settings import checked
from rsd.stages import StageLogits
from rsd.types import Code


@checked
@dataclass(frozen=True, kw_only=True)
class EarlyExit:
    """A gate between the draft and the rest.

    Attributes:
        gate: Which rows the draft decides.
        full: What decodes the others.
        num_draft_stages: Stages that the draft is asked for, 1..Q, None for Q; `full` may ask it for more.
    """

    gate: Gate
    full: Decoding
    num_draft_stages: int | None

    def __post_init__(self) -> None:
        if not callable(self.gate):
            raise SettingError(f"gate {self.gate!r}, expected a rule such as MeanLogProb")
        if not hasattr(self.full, "run"):
            raise SettingError(f"full {self.full!r}, expected a decoding")

    @property
    def needs(self) -> frozenset[str]:
        return self.full.needs | {DRAFT}

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        """See `Decoding.run`; raises ValueError when num_draft_stages is not in 1..Q."""
        code, log_probs = Exit(num_draft_stages=self.num_draft_stages).propose(draft, levels, noise)
        decided = self.gate(log_probs, levels)  # [B]
        code.work.early_exits = decided.long()
        going_on = (~decided).nonzero()[:, 0]  # [n]
        if len(going_on) == 0:
            return code
        later = None if past is None else past.of(going_on)
        rest = self.full.run(target.of(going_on), draft.of(going_on), levels, noise.of(going_on), later)
        code.put(going_on, rest)
        return code
