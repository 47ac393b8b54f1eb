"""Greedy and sampled decoding as one procedure: at temperature 0 every distribution is one-hot.

With one-hot distributions speculative sampling accepts exactly the equal tokens and replaces the others by the target's
argmax, so the greedy guarantee needs no code of its own.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities [..., L] of logits [..., L]; temperature 0 gives the one-hot of the argmax."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return torch.softmax(logits / temperature, dim=-1)


def draw(probabilities: Tensor, generator: Generator | None = None) -> Tensor:
    """One sample per row: [..., L] → [...], int64. Rows may be unnormalised, but not all zero."""
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).reshape(probabilities.shape[:-1])


def verify(
    proposal: Tensor, draft_probs: Tensor, target_probs: Tensor, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Speculative sampling, token by token (arXiv 2211.17192, algorithm 1, for independent tokens).

    A token x drawn from q is kept with probability min(1, p(x)/q(x)); a refused one is replaced by a draw from
    max(p - q, 0). Either way the result is distributed as p, whatever q is.

    Args:
        proposal: Tokens drawn from draft_probs, [...], int64.
        draft_probs: q, the distribution that the proposal was drawn from, [..., L].
        target_probs: p, [..., L].

    Returns:
        (tokens [...], int64; kept [...], bool).
    """
    p = target_probs.gather(-1, proposal[..., None])[..., 0]
    q = draft_probs.gather(-1, proposal[..., None])[..., 0]
    uniform = torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype)
    leftover = (target_probs - draft_probs).clamp_min(0)
    equal = leftover.sum(dim=-1) == 0  # p == q up to rounding: a refusal could only come from rounding
    kept = (uniform * q < p) | equal
    leftover = torch.where(kept[..., None], target_probs, leftover)  # any valid row; its draw is not used
    return torch.where(kept, proposal, draw(leftover, generator)), kept
