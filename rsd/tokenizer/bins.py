"""OpenVLA's action bins as a one-stage tokenizer: the baseline that every other codec stands beside.

"256 bins" are 256 edges over [-1, 1] and therefore 255 values, the bins' centres (openvla @ c8f03f4, ActionTokenizer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from rsd.settings import ChunkLength, Range, Width, checked
from rsd.tokenizer.base import ActionTokenizer, gripper_config
from rsd.tokenizer.quantizer import ResidualQuantizer
from rsd.types import CodeShape

Edges = Annotated[int, Range(3, 2**16)]


class BinTokenizer(ActionTokenizer):
    """Uniform bins over [-1, 1] for every entry of the chunk; D = A, Q = 1.

    Args:
        chunk_length: T.
        action_dim: A.
        num_bins: Edges of the bins; there is one level fewer.
        grippers, between: See `ActionTokenizer`.
    """

    @checked
    def __init__(
        self,
        *,
        chunk_length: ChunkLength,
        action_dim: Width,
        num_bins: Edges,
        grippers: Sequence[int] | None = None,
        between: bool = False,
    ):
        super().__init__()
        self.config = {"chunk_length": chunk_length, "action_dim": action_dim, "num_bins": num_bins}
        self.config |= gripper_config(action_dim, grippers, between)
        levels = num_bins - 1
        self.code_shape = CodeShape.full(chunk_length, action_dim, action_dim, 1, levels)
        self.quantizer = ResidualQuantizer(torch.tensor(self.code_shape.levels), torch.tensor([2.0 / levels]))

    def to_latents(self, actions: Tensor) -> Tensor:
        return actions

    def to_actions(self, latents: Tensor) -> Tensor:
        return latents

    def spread(self, moved: Tensor) -> Tensor:
        return moved
