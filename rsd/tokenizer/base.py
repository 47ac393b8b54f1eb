"""The contract of every action tokenizer: chunks ↔ integers, coarse to fine, decodable from any prefix of the stages.

A tokenizer is an analysis (actions → latents), residual stages (latents ↔ integers) and a synthesis (latents →
actions). Only the outer two differ between the families. Actions are normalised chunks: pose deltas in [-1, 1], gripper
1 open and 0 closed. Nothing about the single chunk enters except through its integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rsd.errors import SettingError
from rsd.tokenizer.quantizer import ResidualQuantizer
from rsd.types import CodeShape


def gripper_config(action_dim: int, grippers: Sequence[int] | None, between: bool = False) -> dict[str, Any]:
    """What a tokenizer's `config` says of its grippers: nothing where the last dim is the only one, open or closed.

    Raises:
        SettingError: one is no dim of the actions, or all are.
    """
    own = {} if grippers is None or tuple(grippers) == (action_dim - 1,) else {"grippers": list(grippers)}
    dims = own.get("grippers", [])
    if len({*dims} & {*range(action_dim)}) != len(dims) or len(dims) == action_dim:
        raise SettingError(f"grippers are dims {dims}, expected some of 0..{action_dim - 1}, each once, and not all")
    return own | ({"between": True} if between else {})


class ActionTokenizer(nn.Module):
    """Base of the tokenizers; a subclass sets `config`, `code_shape`, `quantizer` and defines the outer two maps.

    Attributes:
        config: Constructor arguments (JSON types), stored in checkpoints and compared when one is loaded.
        code_shape: Which integers exist.
        quantizer: The residual stages.
    """

    config: dict[str, Any]
    code_shape: CodeShape
    quantizer: ResidualQuantizer

    @property
    def grippers(self) -> tuple[int, ...]:
        """Dims that are 1 open, 0 closed; the last one unless the configuration says others."""
        own = self.config.get("grippers")
        return (self.code_shape.action_dim - 1,) if own is None else tuple(own)

    @property
    def between(self) -> bool:
        """Whether grippers stand anywhere between, too."""
        return bool(self.config.get("between", False))

    def to_latents(self, actions: Tensor) -> Tensor:
        """Analysis: [B, T, A] → [B, T, D]."""
        raise NotImplementedError

    def to_actions(self, latents: Tensor) -> Tensor:
        """Synthesis: [B, T, D] → [B, T, A]."""
        raise NotImplementedError

    def spread(self, moved: Tensor) -> Tensor:
        """Largest change of each action entry, [..., T, A], when a latent entry moves by at most this, [..., T, D]."""
        raise NotImplementedError

    def action_bound(self, depth: int) -> Tensor:
        """Largest change of each action entry that stages after `depth` can make, whatever their indices: [T, A].

        The change is between decode(indices[..., :depth]) and decode of any continuation of it: the tail bound.
        """
        return self.spread(self.quantizer.reach(depth))

    def hand_over_bound(self, off: Tensor | None = None) -> Tensor:
        """Largest error of each action entry against a chunk that the grid captures, refined greedily: [..., T, A].

        Whoever chose the first digits, what `quantizer.captured` allows ends within s_Q / 2 in each latent entry: the
        carry-tolerant hand-over.

        Args:
            off: As in `ResidualQuantizer.refined`; None for none.

        Raises:
            SettingError: the tokenizer's stages leave gaps.
        """
        off = torch.zeros_like(self.quantizer.levels) if off is None else off
        return self.spread(self.quantizer.refined(off))

    def fit(self, chunks: Tensor) -> None:
        """Set the constants that are computed from data rather than trained; chunks [N, T, A] of the training split."""

    def check_actions(self, actions: Tensor) -> None:
        """Raise ValueError unless actions are finite and [B, T, A]."""
        expected = (self.code_shape.chunk_length, self.code_shape.action_dim)
        if actions.dim() != 3 or tuple(actions.shape[1:]) != expected:
            raise ValueError(f"action chunks are {list(actions.shape)}, expected [B, {expected[0]}, {expected[1]}]")
        if not torch.isfinite(actions).all():
            raise ValueError("action chunks hold NaN or infinite values; expected finite, normalised actions")

    def encode(self, actions: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Integers of a chunk: [B, T, A], float → [B, T, D, Q], int64.

        Args:
            prefix: Indices of the first q stages, [B, T, D, q], fixed in advance (drafted or corrupted); the remaining
                stages then describe the residual of that prefix.

        Raises:
            ValueError: wrong shape, or values that are not finite.
        """
        self.check_actions(actions)
        return self.quantizer.encode(self.to_latents(actions), prefix)

    def decode(self, indices: Tensor) -> Tensor:
        """Chunk of the first q ≤ Q stages: [B, T, D, q], int64 → [B, T, A], float32.

        Raises:
            ValueError: more stages than the tokenizer has, or another code shape.
        """
        block = (len(self.code_shape.levels), self.code_shape.latent_dim)
        if indices.dim() != 4 or tuple(indices.shape[1:3]) != block or indices.shape[3] > self.code_shape.num_stages:
            raise ValueError(
                f"indices have shape {list(indices.shape)}, expected [B, {block[0]}, {block[1]}, "
                f"0..{self.code_shape.num_stages}]; they come from another tokenizer or a deeper one"
            )
        return self.to_actions(self.quantizer.decode(indices))

    def forward(self, actions: Tensor, depth: int | None = None) -> Tensor:
        """Reconstruction of a chunk from its first `depth` stages (all by default), differentiable: [B, T, A].

        The value is exactly decode(encode(actions)[..., :depth]); the gradient passes the rounding as if it were not
        there (straight through).
        """
        latents = self.to_latents(actions)
        with torch.no_grad():
            indices = self.quantizer.encode(latents)[..., :depth]
        quantized = self.quantizer.decode(indices)
        return self.to_actions(quantized + (latents - latents.detach()))  # the bracket is 0 and carries the gradient
