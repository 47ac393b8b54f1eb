"""Act on time: the first steps of a chunk are the draft's while the target finishes, the later ones are the target's.

Step t of a chunk falls due t + 1 control steps after the picture, and the budget is what can be computed in one of
them. Steps that fall due before `full` is finished are executed as the draft says them, so what is executed never waits
for the target; all later steps are those of `full`, to the bit. A budget in passes counts passes of the target, where
finishing the base model is one if nothing else is; it says the same on every machine. A budget in milliseconds is held
against the clock of the call.

What surprises first: nothing is saved, everything is computed and counted; what is gained is that nobody waits. And a
simulator that stands still while the policy computes would hide the difference: which steps came too late is therefore
settled by the budget alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import Tensor

from rsd.decoding.decoding import DRAFT, Decoding
from rsd.decoding.exit import Exit
from rsd.decoding.horizon import FixedHorizon, Hold
from rsd.decoding.past import Past
from rsd.decoding.sampling import Noise
from rsd.errors import SettingError
from rsd.settings import Depth, Positive, checked
from rsd.stages import StageLogits
from rsd.types import Ahead, Code


@checked
@dataclass(frozen=True, kw_only=True)
class Anytime:
    """The draft until the full decoding is there.

    Attributes:
        full: What decodes the later steps.
        num_draft_stages: Stages that the draft is asked for, 1..Q; None for Q.
        budget_passes: Passes of the target that fit into a control step, above 0: 0.5 for one in two steps.
        budget_ms: Instead of it, milliseconds of a control step. Exactly one of the two is given.
    """

    full: Decoding
    num_draft_stages: Depth | None
    budget_passes: Positive | None = None
    budget_ms: Positive | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.full, "run"):
            raise SettingError(f"full {self.full!r}, expected a decoding")
        if (self.budget_passes is None) == (self.budget_ms is None):
            raise SettingError(
                f"budget_passes {self.budget_passes} and budget_ms {self.budget_ms}, expected exactly one of them and "
                "null for the other"
            )

    @property
    def needs(self) -> frozenset[str]:
        return self.full.needs | {DRAFT}

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        """See `Decoding.run`; raises ValueError when num_draft_stages is not in 1..Q."""
        return self.rest(self.first(draft, levels, noise), target, draft, levels, noise, past)

    def first(self, draft: StageLogits, levels: Tensor, noise: Noise) -> Ahead:
        """What can be executed before the target is asked anything."""
        code = Exit(num_draft_stages=self.num_draft_stages).propose(draft, levels, noise)[0]
        budget = self.budget_passes or self.budget_ms
        assert budget is not None  # one of them is given, and above 0
        return Ahead(code, budget, passes=None, ready_s=time.perf_counter())

    def rest(
        self, first: Ahead, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None
    ) -> Code:
        """The whole of it, after `first`."""
        code = self.full.run(target, draft, levels, noise, past)
        passes = code.work.target_passes.clamp_min(1).where(code.work.early_exits == 0, 0)  # [B]
        code.work.draft_passes += first.code.work.draft_passes
        code.proposal = first.code.proposal
        code.ahead = replace(first, passes=None if self.budget_passes is None else passes)
        return code


def check_anytime(decoding: Decoding, chunk_length: int, num_steps: int) -> None:
    """See that a budget leaves the target a step of the `num_steps` that are executed, before the first one.

    Raises:
        SettingError: it does not, or it stands inside of a decoding that would not know of it.
    """
    while isinstance(decoding, Hold | FixedHorizon):  # they leave a chunk as it is
        num_steps = min(decoding.steps(chunk_length), chunk_length)
        decoding = decoding.full
    if isinstance(decoding, Anytime):
        passes = decoding.budget_passes
        if passes is not None and passes * num_steps < 1:
            raise SettingError(
                f"budget_passes {passes:g}, passes of the target in a control step, expected at least 1/{num_steps}: "
                f"else none is done before the last of the {num_steps} executed steps of a chunk falls due"
            )
        decoding = decoding.full
    inside: Decoding | None = decoding
    while inside is not None:
        if isinstance(inside, Anytime):
            raise SettingError(
                "Anytime inside of another decoding than Hold and FixedHorizon, which would not know whose the first "
                "steps are; put the other one into it (decoding=anytime decoding@decoding.full=…)"
            )
        inside = getattr(inside, "full", None)
