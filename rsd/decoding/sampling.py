"""Greedy and sampled decoding as one procedure: at temperature 0 every distribution is one-hot and needs no noise.

What surprises first: there is no generator that is drawn from one after the other. A random number is a function of its
sample's seed and of the place that it is for, so a sample gets the same ones alone, in any batch, and on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rsd.stages.logits import require_finite

GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; this and the next two are SplitMix64's constants
MIX_1, MIX_2 = -4658895280553007687, -7723592293110705685  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SEED_BITS = 63
FOR_DRAFT, FOR_DECISION, FOR_REPLACEMENT, FOR_TARGET = range(4)  # what a number is for; its place is (pass, stage, use)


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

    def __len__(self) -> int:
        return len(self.seeds)

    def of(self, rows: Tensor) -> Noise:
        """The numbers of some of the samples, [n] int64."""
        some = Noise([], self.seeds.device)
        some.seeds = self.seeds[rows.to(self.seeds.device)]
        return some

    def for_stage(self, levels: Tensor, temperature: float, *place: int) -> Tensor | None:
        """Numbers for the tokens of one stage of a code with these levels, [B, T, D]; None where greedy."""
        return None if temperature == 0 else self.uniform(levels.shape[:2], *place)

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
    """Probabilities [..., L] of logits [..., L]; temperature 0 gives the one-hot of the argmax.

    Raises:
        NotFiniteError: the logits, in parts of the temperature, are beyond all numbers.
    """
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return require_finite(torch.softmax(logits / temperature, dim=-1), f"a distribution at temperature {temperature}")


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
