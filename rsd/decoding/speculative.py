"""Draft the coarse stages, verify them in one pass of the target, correct the first wrong one, continue.

A corrected stage is final, since within a stage tokens are independent given the stages before it; only the stages
drafted after it are void. A pass over the drafted stages also yields the stage after them, so a draft that is always
right and covers the first Q - 1 stages needs a single pass, and no draft needs more than Q. With the exact rule the
result is what `DepthAR` gives: index for index at temperature 0, in distribution above.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.decoding.accept import Accept, Relaxed, exact
from rsd.decoding.decoding import DRAFT, TARGET, Decoding
from rsd.decoding.past import Past
from rsd.decoding.sampling import FOR_DECISION, FOR_DRAFT, FOR_REPLACEMENT, FOR_TARGET, Noise, distribution, draw
from rsd.errors import SettingError
from rsd.settings import NotNegative, checked
from rsd.stages import Numbers, StageLogits
from rsd.types import Code
from rsd.work import Work


@checked
@dataclass(frozen=True, kw_only=True)
class Speculative:
    """Propose, verify, correct.

    Attributes:
        num_draft_stages: The draft proposes up to this stage, 1..Q; None for Q.
        temperature: 0 is greedy.
        accept: Which proposed tokens are kept; a rule other than `exact` is greedy.
    """

    num_draft_stages: int | None
    temperature: NotNegative = 0.0
    accept: Accept = exact

    def __post_init__(self) -> None:
        if not callable(self.accept):
            raise SettingError(f"accept {self.accept!r}, expected a rule such as Levels or Certificate")
        if self.temperature > 0 and isinstance(self.accept, Relaxed):
            raise SettingError(
                f"temperature {self.temperature} with accept {type(self.accept).__name__}, expected 0: a relaxed rule "
                "is greedy; set decoding.decode.temperature=0 or accept=exact"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({TARGET, DRAFT})

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        """See `Decoding.run`.

        Raises:
            ValueError: num_draft_stages is not in 1..Q.
        """
        num_stages = levels.shape[2]
        stages = stages_asked(self.num_draft_stages, num_stages)
        running = _Running(self, levels, noise)
        proposal: Tensor | None = None
        while int(running.final.min()) < num_stages:
            draft_probs = running.propose(draft)
            if proposal is None:
                proposal = running.indices[..., :stages].clone()
            running.verify(target, draft_probs)
        depth = torch.full_like(running.final, num_stages)
        bound = None if self.accept is exact else self._bound(target, running.off)
        return Code(running.indices, depth, running.work, proposal, bound)

    def _bound(self, target: StageLogits, off: Tensor) -> Tensor:
        """Largest error against the target's chunk, [B, A]; infinite, [B, 1], where nobody certifies one."""
        if isinstance(self.accept, Relaxed) and isinstance(target, Numbers):
            return target.error_bound(off)
        return torch.full((len(off), 1), torch.inf, device=off.device)


def relaxed(decoding: Decoding | None) -> Relaxed | None:
    """The relaxed rule of a decoding, or of the one inside of it; None where every token is the target's."""
    while decoding is not None:
        if isinstance(rule := getattr(decoding, "accept", None), Relaxed):
            return rule
        decoding = getattr(decoding, "full", None)
    return None


def stages_asked(num_draft_stages: int | None, num_stages: int) -> int:
    """Stages that a draft is asked for, of a code of `num_stages`: all without a number.

    Raises:
        SettingError: the code has fewer.
    """
    if num_draft_stages is None:
        return num_stages
    if not 1 <= num_draft_stages <= num_stages:
        raise SettingError(f"num_draft_stages {num_draft_stages}, expected 1..{num_stages}, the stages of the code")
    return num_draft_stages


class _Running:
    """A batch in work: its samples have different numbers of decided stages and share every call.

    Attributes:
        indices: [B, T, D, Q], int64; decided, drafted or still zero.
        off: How many levels of the target's they are off for good, where a relaxed rule has kept them, [B, T, D, Q].
        final: Leading stages that are decided, [B], int64.
        number: Of the pass; the same for all samples that are still in work.
    """

    def __init__(self, options: Speculative, levels: Tensor, noise: Noise) -> None:
        self.options, self.levels, self.noise = options, levels, noise
        self.indices = torch.zeros(len(noise), *levels.shape, dtype=torch.long, device=levels.device)
        self.off = torch.zeros_like(self.indices)
        self.final = torch.zeros(len(noise), dtype=torch.long, device=levels.device)
        self.work = Work.none(len(noise), levels.shape[2], levels.device)
        self.number = 0
        self._tokens = (levels > 1).flatten(0, 1)  # [T*D, Q]  which entries exist
        self._stages = stages_asked(options.num_draft_stages, levels.shape[2])

    def propose(self, draft: StageLogits) -> dict[int, Tensor]:
        """Fill the stages up to num_draft_stages; the draft's distributions by stage, [B, T, D, L]."""
        stages, probs = self._stages, {}
        for stage in range(int(self.final.min()), stages):
            undecided = self.final <= stage  # [B]
            logits = draft(self.indices[..., :stage], stage, stage + 1)
            probs[stage] = distribution(logits, self.options.temperature)[..., 0, :]
            self._put(stage, draw(probs[stage], self._uniform(stage, FOR_DRAFT)), undecided)
            self.work.draft_passes += undecided
            self.work.proposed_tokens[:, stage] += undecided * self._tokens[:, stage].sum()
        self.work.proposed_stages += (stages - self.final).clamp_min(0)
        return probs

    def verify(self, target: StageLogits, draft_probs: dict[int, Tensor]) -> None:
        """One pass of the target over the drafted stages and the one after them: decides at least one stage."""
        num_stages, stages = self.levels.shape[2], self._stages
        unfinished = self.final < num_stages
        self.work.target_passes += unfinished
        start = int(self.final.min())
        stop = min(num_stages, max(stages, int(self.final[unfinished].max())) + 1)
        logits = target(self.indices[..., : stop - 1], start, stop)  # [B, T, D, stop - start, L]
        valid = unfinished  # samples for which the target has seen the true prefix so far
        for stage in range(start, stop):
            here = valid & (self.final == stage)  # [B]
            probs = distribution(logits[..., stage - start, :], self.options.temperature)  # [B, T, D, L]
            if stage < stages:
                repairable = self._repairable(stage + 1, logits, start)
                tokens, whole = self._check(stage, draft_probs[stage], probs, here, repairable)
                valid = valid & (whole | ~here)
            else:
                tokens = draw(probs, self._uniform(stage, FOR_TARGET))
                valid = valid & ~here  # nothing was proposed past this stage
            self._put(stage, tokens, here)
            self.final += here
        if start == 0:  # the first proposal; every sample has a final stage after it
            self.work.accept_counts.scatter_(1, self.work.accepted_stages[:, None], 1)
        self.number += 1

    def _repairable(self, stage: int, logits: Tensor, start: int) -> Tensor:
        """Whether this stage's digit, after what is proposed before it, is not saturated, [B, T, D]."""
        if stage - start >= logits.shape[3]:
            return torch.zeros_like(self.indices[..., 0], dtype=torch.bool)
        digit = logits[..., stage - start, :].argmax(dim=-1)
        return (digit > 0) & (digit < self.levels[..., stage] - 1)

    def _check(
        self, stage: int, draft_probs: Tensor, probs: Tensor, here: Tensor, repairable: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The stage's tokens after acceptance, [B, T, D], and whether the whole proposal was kept, [B]."""
        decision, replacement = self._uniform(stage, FOR_DECISION), self._uniform(stage, FOR_REPLACEMENT)
        chances = None if decision is None or replacement is None else (decision, replacement)
        tokens, kept = self.options.accept(
            self.indices[..., stage], draft_probs, probs, chances, self.levels[..., stage], repairable
        )
        if isinstance(self.options.accept, Relaxed):
            off = self.options.accept.off(tokens, probs.argmax(dim=-1))
            self.off[..., stage] = torch.where(here[:, None, None], off, self.off[..., stage])
        whole = kept.flatten(1).all(dim=1)
        self.work.accepted_tokens[:, stage] += here * (kept.flatten(1) & self._tokens[:, stage]).sum(dim=1)
        self.work.checked_tokens[:, stage] += here * self._tokens[:, stage].sum()
        self.work.accepted_stages += here & whole
        return tokens, whole

    def _put(self, stage: int, tokens: Tensor, rows: Tensor) -> None:
        """Write a stage's tokens [B, T, D] into these rows, [B] bool."""
        self.indices[..., stage] = torch.where(rows[:, None, None], tokens, self.indices[..., stage])

    def _uniform(self, stage: int, use: int) -> Tensor | None:
        return self.noise.for_stage(self.levels, self.options.temperature, self.number, stage, use)
