"""The base model's own chunk as the target: what its continuous head says, in the tokenizer's code, without training.

A trained head is one more approximation between the base model and the tokens; this is none. Whatever the stages before
it are, a stage's most probable level is the greedy digit of what they leave over of the chunk. So exact decodings
return the base model's code, and a draft is held to what the base model itself would do.

What surprises first: stages that were not given are the chunk's own greedy ones, so nothing is unknown and `parallel`
returns what `depth_ar` returns; and a pass is arithmetic on one chunk, so passes saved save next to nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd.tokenizer import ActionTokenizer


def executed(chunk: Tensor) -> Tensor:
    """What the robot would execute of a continuous head's chunk [B, T, A]: clipped, the gripper open or closed."""
    return torch.cat([chunk[..., :-1].clamp(-1, 1), (chunk[..., -1:] > 0.5).to(chunk)], dim=-1)


class BaseTarget:
    """Logits of each stage given the stages before it; see `rsd.decoding.StageLogits`.

    A level's logit is minus the square of its distance, in levels, to what the known stages leave over: at temperature
    1 the samples scatter by 0.7 levels (a choice, not a measurement: an L1 head does not say how sure it is).

    Args:
        tokenizer: On the chunk's device.
        chunk: A continuous head's output, normalised, [B, T, A], float32.
    """

    def __init__(self, tokenizer: ActionTokenizer, chunk: Tensor) -> None:
        tokenizer.check_actions(chunk)
        self._quantizer = tokenizer.quantizer
        self._latents = tokenizer.to_latents(executed(chunk))  # [B, T, D]
        self._num_levels = tokenizer.code_shape.num_levels

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        """[B, T, D, stop - start, L], float32; known is [B, T, D, n], int64."""
        code = self._quantizer.encode(self._latents, known)  # [B, T, D, Q]  the known stages, and how they go on
        levels, steps = self._quantizer.levels, self._quantizer.steps()  # [T, D, Q] each
        numbers = torch.arange(self._num_levels, device=code.device)  # [L]
        logits = []
        for stage in range(start, stop):
            residual = self._latents - self._quantizer.decode(code[..., :stage])  # [B, T, D]
            place = residual / steps[..., stage] + (levels[..., stage] - 1) / 2  # [B, T, D]  in levels
            distance = place[..., None] - numbers  # [B, T, D, L]
            logits.append((-(distance**2)).masked_fill(numbers >= levels[..., stage, None], -torch.inf))
        return torch.stack(logits, dim=3)
