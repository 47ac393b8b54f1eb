"""Acceptance rules: which of the draft's tokens are kept, and what takes the place of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rsd.decoding.sampling import draw
from rsd.settings import Count, checked

BIT = 2  # levels of an entry that has nothing between: a gripper


class Accept(Protocol):
    """A rule for the tokens of one stage."""

    def __call__(
        self,
        proposal: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        uniform: tuple[Tensor, Tensor] | None,
        levels: Tensor,
        repairable: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decide token by token.

        Args:
            proposal: Tokens drawn from draft_probs, [...], int64.
            draft_probs: q, the distribution that the proposal was drawn from, [..., L].
            target_probs: p, [..., L].
            uniform: Numbers in [0, 1) for the decision and for the replacement, [...] each; None when both
                distributions are one-hot and nothing is left to chance.
            levels: Of each entry at this stage, broadcastable to [...], int64.
            repairable: Whether the next stage has a token whose digit, as the target says it after the proposal, is
                not saturated, [...], bool.

        Returns:
            (tokens [...], int64; kept [...], bool).
        """


@runtime_checkable
class Relaxed(Accept, Protocol):
    """A rule that is greedy and keeps tokens which are not the target's, so that the result is only near the target."""

    def off(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """How many levels of the target's tokens those that were kept are off for good, [...], int64; for the bound."""


def exact(
    proposal: Tensor,
    draft_probs: Tensor,
    target_probs: Tensor,
    uniform: tuple[Tensor, Tensor] | None = None,
    levels: Tensor | None = None,
    repairable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Speculative sampling (arXiv 2211.17192, algorithm 1, for independent tokens); see `Accept`.

    A token x drawn from q is kept with probability min(1, p(x)/q(x)); a refused one is replaced by a draw from
    max(p - q, 0). Either way the result is distributed as p, whatever q is. With one-hot distributions this accepts
    exactly the equal tokens and replaces the others by the target's argmax.
    """
    p = target_probs.gather(-1, proposal[..., None])[..., 0]
    q = draft_probs.gather(-1, proposal[..., None])[..., 0]
    leftover = (target_probs - draft_probs).clamp_min(0)
    equal = leftover.sum(dim=-1) == 0  # p == q up to rounding: a refusal could only come from rounding
    decision, replacement = (0.5, None) if uniform is None else uniform
    kept = (decision * q < p) | equal
    leftover = torch.where(kept[..., None], target_probs, leftover)  # any valid row; its draw is not used
    return torch.where(kept, proposal, draw(leftover, replacement)), kept


@checked
@dataclass(frozen=True, kw_only=True)
class Levels:
    """Relaxed, greedy: a token is kept within some levels of the target's; a gripper's bit only where it is equal.

    Attributes:
        r: Largest distance, 1 or more; `exact` is 0.
    """

    r: Count

    def __call__(
        self,
        proposal: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        uniform: tuple[Tensor, Tensor] | None,
        levels: Tensor,
        repairable: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = target_probs.argmax(dim=-1)
        kept = (proposal - wanted).abs() <= self.r * (levels > BIT)
        return torch.where(kept, proposal, wanted), kept

    def off(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """See `Relaxed.off`."""
        return (tokens - wanted).abs()


@dataclass(frozen=True)
class Certificate:
    """Carry-tolerant, greedy: any token is kept that the next stage can make up for; a gripper's bit where it is equal.

    With greedy refinement by the base model's chunk (target=base) the latent error ends within half the last step, as
    if the target had chosen every digit (`ResidualQuantizer.captured`). The last stage has to be exact.
    """

    def __call__(
        self,
        proposal: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        uniform: tuple[Tensor, Tensor] | None,
        levels: Tensor,
        repairable: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = target_probs.argmax(dim=-1)
        kept = (proposal == wanted) | (repairable & (levels > BIT))
        return torch.where(kept, proposal, wanted), kept

    def off(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """See `Relaxed.off`: the next stage makes up for it."""
        return torch.zeros_like(tokens)
