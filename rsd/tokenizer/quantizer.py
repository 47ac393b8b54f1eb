"""Scalar quantiser, and residual stages of it: coarse-to-fine integers from which a latent can be rebuilt.

Residual FSQ (arXiv 2508.15860) with one correction that everything else rests on: the scale of a stage is a constant of
the model, never a statistic of the input, so that the integers alone decode. With a *fixed* grid and an odd number of
levels all stages after the first would round to zero; here each stage has its own step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsd.errors import SettingError

ROUNDING = 1e-5  # of steps in float32, relative


def quantize(values: Tensor, steps: Tensor, levels: Tensor) -> Tensor:
    """Nearest level of a uniform grid centred on zero.

    Args:
        values: [..., D], float.
        steps: Distance of neighbouring levels, > 0, broadcastable to values.
        levels: Number of levels, int64 ≥ 1, broadcastable to values; 1 always gives index 0.

    Returns:
        Indices, int64, in 0..levels-1; values outside the grid saturate.
    """
    centre = (levels - 1) / 2
    return torch.round(values / steps + centre).long().clamp_min(0).minimum(levels - 1)


def dequantize(indices: Tensor, steps: Tensor, levels: Tensor) -> Tensor:
    """Level values of indices; inverse of `quantize` on the grid. Same shapes."""
    return (indices - (levels - 1) / 2) * steps


class ResidualQuantizer(nn.Module):
    """Q residual stages: each quantises what the stages before it left over.

    Args:
        levels: Number of levels of every entry, [T, D, Q], int64; 1 means that the entry has no token at that stage.
        steps: Initial step of every stage, broadcastable to [T, D, Q], float > 0.
        learned: Whether the steps are trained (as their logarithms) or stay constants.
    """

    levels: Tensor
    log_steps: Tensor  # natural logarithms; a parameter where they are learned

    def __init__(self, levels: Tensor, steps: Tensor, learned: bool = False) -> None:
        super().__init__()
        self.register_buffer("levels", levels.long(), persistent=False)
        log_steps = steps.to(torch.float32).log()
        if learned:
            self.log_steps = nn.Parameter(log_steps)
        else:
            self.register_buffer("log_steps", log_steps)

    @property
    def num_stages(self) -> int:
        return self.levels.shape[-1]

    def steps(self) -> Tensor:
        """Step of every entry and stage, [T, D, Q], float32."""
        return self.log_steps.exp().expand(self.levels.shape)

    def values(self, indices: Tensor) -> Tensor:
        """What each stage contributes, [B, T, D, q], for the indices [B, T, D, q] of the first q stages."""
        depth = indices.shape[-1]
        steps, centres = self.steps()[..., :depth].contiguous(), ((self.levels[..., :depth] - 1) / 2).contiguous()
        return (indices.to(centres.dtype) - centres) * steps

    @torch.no_grad()
    def encode(self, latents: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Greedy digits of latents [B, T, D], stage by stage, continuing after `prefix` [B, T, D, q] if given.

        The same as `quantize` and `dequantize` in turn, on floats in place of integers and in memory of its own.

        Returns:
            [B, T, D, Q], int64; the first q stages are the prefix itself, whatever it is.
        """
        steps, tops = self._by_stage(self.steps()), self._by_stage(self.levels - 1)  # [Q, T, D] each
        tops = tops.to(steps.dtype)
        known = 0 if prefix is None else prefix.shape[-1]
        residual = latents if prefix is None else latents - self.decode(prefix)
        digits = latents.new_empty(self.num_stages - known, *latents.shape, dtype=torch.result_type(latents, steps))
        for digit, step, top in zip(digits, steps[known:], tops[known:], strict=True):
            torch.div(residual, step, out=digit)
            torch.minimum(digit.add_(top / 2).round_().clamp_min_(0), top, out=digit)
            residual = residual - (digit.to(step.dtype) - top / 2).mul_(step)
        found = digits.movedim(0, -1).to(torch.int64, memory_format=torch.contiguous_format)  # [B, T, D, Q - q]
        found.clamp_min_(0)  # what is no number has the first level
        return found if prefix is None else torch.cat([prefix, found], dim=-1)

    def decode(self, indices: Tensor) -> Tensor:
        """Latents [B, T, D] of the first q stages, [B, T, D, q]; q = 0 gives zeros."""
        return self.values(indices).sum(dim=-1)

    @staticmethod
    def _by_stage(constants: Tensor) -> Tensor:
        """[T, D, Q] → [Q, T, D], each stage in one piece of memory: several times faster than with gaps of Q."""
        return constants.movedim(-1, 0).contiguous()

    def reach(self, depth: int) -> Tensor:
        """Farthest that stages after `depth` can move a latent entry, whatever their indices: [T, D]."""
        half_width = (self.levels[..., depth:] - 1) / 2
        return (half_width * self.steps()[..., depth:]).sum(dim=-1)

    def captured(self, depth: int) -> Tensor:
        """Largest error after `depth` stages that greedy refinement still brings to within s_Q / 2: [T, D].

        The carry-tolerant hand-over: a first digit that is off is made up for by the later ones, as long as what is
        left lies within the grid of the next stage that has a token, (L / 2) s. Entries without a later token keep
        what they have, so for them it is s_Q / 2 itself: a gripper's one bit has to be exact.

        Raises:
            SettingError: a stage's step is more than L steps of the next, and refinement leaves gaps.
        """
        steps, levels = self.steps(), self.levels
        captured = steps[..., -1] / 2
        for stage in reversed(range(depth, self.num_stages)):
            has_token, leaves = levels[..., stage] > 1, steps[..., stage] / 2
            if (has_token & (leaves > captured * (1 + ROUNDING))).any():
                raise SettingError(
                    f"stage {stage + 1} of the tokenizer leaves more than the later ones can refine; expected steps of "
                    "at most num_levels steps of the next stage (accept=exact asks for no such promise)"
                )
            captured = torch.where(has_token, levels[..., stage] * leaves, captured)
        return captured

    def refined(self, off: Tensor) -> Tensor:
        """Largest error after greedy refinement of what lies within the grid, `captured(0)`: [..., T, D].

        Args:
            off: How many levels each digit is away from the greedy one after the digits before it at most,
                [..., T, D, Q], int64. Zeros end within s_Q / 2.

        Raises:
            SettingError: as `captured`.
        """
        steps, levels = self.steps(), self.levels
        left = self.captured(0)
        for stage in range(self.num_stages):
            half = steps[..., stage] / 2
            greedy = torch.maximum(half, left - (levels[..., stage] - 1) * half)  # the last level takes what is beyond
            left = torch.where(levels[..., stage] > 1, greedy + off[..., stage] * steps[..., stage], left)
        return left
