"""Greedy and sampled decoding as one procedure: at temperature 0 every distribution is one-hot and needs no noise.

With one-hot distributions speculative sampling accepts exactly the equal tokens and replaces the others by the target's
argmax, so the greedy guarantee needs no code of its own.

What surprises first: there is no generator that is drawn from one after the other. A random number is a function of its
sample's seed and of the place that it is for, so a sample gets the same ones alone, in any batch, and on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; this and the next two are SplitMix64's constants
MIX_1, MIX_2 = -4658895280553007687, -7723592293110705685  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SEED_BITS = 63


class Noise:
    """Uniform random numbers for a batch, one seed a sample (SplitMix64; Steele, Lea, Flood 2014).

    Args:
        seeds: One of 0..2**63-1 for each sample.
        device: Where the numbers are wanted.

    Raises:
        ValueError: a seed is out of range.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        wrong = [seed for seed in seeds if not 0 <= seed < 2**SEED_BITS]
        if wrong:
            raise ValueError(f"seeds {wrong} of the sampling, expected integers in 0..2**{SEED_BITS} - 1")
        self.seeds = torch.tensor(list(seeds), dtype=torch.int64, device=device)

    def uniform(self, shape: Sequence[int], *place: int) -> Tensor:
        """[B, *shape], float64, in [0, 1): a function of each sample's seed, `place` and the position in `shape`."""
        state = self.seeds
        for number in place:
            state = _mix(state + torch.tensor(number + 1, device=state.device) * GAMMA)  # [B]
        count = int(torch.Size(shape).numel())
        positions = torch.arange(1, count + 1, device=state.device) * GAMMA
        bits = _mix(_mix(state)[:, None] + positions)  # [B, count]
        return (_shifted(bits, 11).double() * 2.0**-53).reshape(len(state), *shape)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Logical shift to the right: torch's own one keeps the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * MIX_1
    bits = (bits ^ _shifted(bits, 27)) * MIX_2
    return bits ^ _shifted(bits, 31)


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities [..., L] of logits [..., L]; temperature 0 gives the one-hot of the argmax."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return torch.softmax(logits / temperature, dim=-1)


def draw(probabilities: Tensor, uniform: Tensor | None = None) -> Tensor:
    """One sample per row: [..., L] → [...], int64. Rows may be unnormalised, but not all zero.

    Args:
        uniform: Numbers in [0, 1), [...]; None takes the most probable entry.
    """
    if uniform is None:
        return probabilities.argmax(dim=-1)
    reached = probabilities.double().cumsum(dim=-1)  # [..., L]
    total = reached[..., -1:]
    wanted = torch.minimum(uniform[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return (reached <= wanted).sum(dim=-1)  # the first entry whose sum lies above; it has a probability above zero


def verify(
    proposal: Tensor, draft_probs: Tensor, target_probs: Tensor, uniform: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Speculative sampling, token by token (arXiv 2211.17192, algorithm 1, for independent tokens).

    A token x drawn from q is kept with probability min(1, p(x)/q(x)); a refused one is replaced by a draw from
    max(p - q, 0). Either way the result is distributed as p, whatever q is.

    Args:
        proposal: Tokens drawn from draft_probs, [...], int64.
        draft_probs: q, the distribution that the proposal was drawn from, [..., L].
        target_probs: p, [..., L].
        uniform: Numbers in [0, 1) for the decision and for the replacement, [...] each; None when both distributions
            are one-hot and nothing is left to chance.

    Returns:
        (tokens [...], int64; kept [...], bool).
    """
    p = target_probs.gather(-1, proposal[..., None])[..., 0]
    q = draft_probs.gather(-1, proposal[..., None])[..., 0]
    leftover = (target_probs - draft_probs).clamp_min(0)
    equal = leftover.sum(dim=-1) == 0  # p == q up to rounding: a refusal could only come from rounding
    decision, replacement = (0.5, None) if uniform is None else uniform
    kept = (decision * q < p) | equal
    leftover = torch.where(kept[..., None], target_probs, leftover)  # any valid row; its draw is not used
    return torch.where(kept, proposal, draw(leftover, replacement)), kept
