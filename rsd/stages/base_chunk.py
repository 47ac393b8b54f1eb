"""The base model's own chunk as the target: what its continuous head says, in the tokenizer's code, without training.

A trained head is one more approximation between the base model and the tokens; this is none. Whatever the stages before
it are, a stage's most probable level is the greedy digit of what they leave over of the chunk. So exact decodings
return the base model's code, and a draft is held to what the base model itself would do.

What surprises first: stages that were not given are the chunk's own greedy ones, so nothing is unknown and `parallel`
returns what `depth_ar` returns; and a pass is arithmetic on one chunk, so passes saved save next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.stages.logits import require_finite
from rsd.tokenizer import ActionTokenizer
from rsd.types import Pass, Request

ROLE = "target"


def executed(chunk: Tensor, grippers: Sequence[int], between: bool) -> Tensor:
    """What the robot would execute of a continuous head's chunk [B, T, A]: clipped, grippers open or closed.

    Args:
        grippers: Their dims.
        between: Whether they stand anywhere between, too.
    """
    dims = list(grippers)
    opening = chunk[..., dims]  # [B, T, G]
    result = chunk.clamp(-1, 1)
    result[..., dims] = opening.clamp(0, 1) if between else (opening > 0.5).to(chunk)
    return result


@dataclass(frozen=True)
class BaseChunk:
    """Binder of the base model's chunk; the tokenizer is on its device."""

    tokenizer: ActionTokenizer

    def bind(self, looked: Pass, requests: Sequence[Request]) -> BoundChunk:
        return BoundChunk(self.tokenizer, looked)


class BoundChunk:
    """StageLogits of the chunk that a pass ends in, for the observations of that pass."""

    def __init__(self, tokenizer: ActionTokenizer, looked: Pass) -> None:
        self._tokenizer, self._looked = tokenizer, looked
        self._logits: ChunkLogits | None = None

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        with self._looked.clock.part(ROLE):
            logits = self._made()(known, start, stop)
            levels = self._tokenizer.quantizer.levels[..., start:stop, None]  # [T, D, q, 1]
            missing = torch.arange(logits.shape[-1], device=logits.device) >= levels  # [T, D, q, L]
            return require_finite(logits, f"what the tokenizer makes of stages {start}..{stop - 1}", missing)

    def error_bound(self, off: Tensor) -> Tensor:
        """See `Numbers.error_bound`."""
        with self._looked.clock.part(ROLE):
            return self._made().error_bound(off)

    def of(self, rows: Tensor) -> BoundChunk:
        some = BoundChunk(self._tokenizer, self._looked.of(rows))
        some._logits = None if self._logits is None else self._logits.of(rows)
        return some

    def _made(self) -> ChunkLogits:
        if self._logits is None:
            chunk = require_finite(self._looked.chunk(), "the base model's chunk")
            self._logits = ChunkLogits(self._tokenizer, chunk)
        return self._logits


class ChunkLogits:
    """Logits of each stage given the stages before it, for chunks that are known as numbers.

    A level's logit is minus the square of its distance, in levels, to what the known stages leave over: at temperature
    1 the samples scatter by 0.7 levels (a choice, not a measurement: an L1 head does not say how sure it is).

    Args:
        tokenizer: On the chunk's device.
        chunk: A continuous head's output, model space, [B, T, A], float32.
    """

    def __init__(self, tokenizer: ActionTokenizer, chunk: Tensor) -> None:
        tokenizer.check_actions(chunk)
        self._tokenizer, self._chunk = tokenizer, chunk
        self._latents = tokenizer.to_latents(executed(chunk, tokenizer.grippers, tokenizer.between))  # [B, T, D]

    def of(self, rows: Tensor) -> ChunkLogits:
        return ChunkLogits(self._tokenizer, self._chunk[rows])

    def error_bound(self, off: Tensor) -> Tensor:
        """See `Numbers.error_bound`."""
        within = (self._latents.abs() <= self._tokenizer.quantizer.captured(0)).flatten(1).all(dim=1)  # [B]
        bound = self._tokenizer.hand_over_bound(off).amax(dim=1)  # [B, A]
        return torch.where(within[:, None], bound, torch.inf)

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        """[B, T, D, stop - start, L], float32; known is [B, T, D, n], int64."""
        quantizer = self._tokenizer.quantizer
        code = quantizer.encode(self._latents, known)  # [B, T, D, Q]  the known stages, and how they go on
        levels, steps = quantizer.levels, quantizer.steps()  # [T, D, Q] each
        numbers = torch.arange(self._tokenizer.code_shape.num_levels, device=code.device)  # [L]
        logits = []
        for stage in range(start, stop):
            residual = self._latents - quantizer.decode(code[..., :stage])  # [B, T, D]
            place = residual / steps[..., stage] + (levels[..., stage] - 1) / 2  # [B, T, D]  in levels
            distance = place[..., None] - numbers  # [B, T, D, L]
            logits.append((-(distance**2)).masked_fill(numbers >= levels[..., stage, None], -torch.inf))
        return torch.stack(logits, dim=3)
