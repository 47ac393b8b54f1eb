"""Transform RFSQ: orthonormal DCT over the steps of each pose dim, then nested-radix residual stages.

Fitted, not trained: the data only say how large each coefficient gets. A coefficient joins at the first stage that can
see it, so coarse stages are short (low frequencies), and since the transform is an isometry every stage bounds what
later stages can change. Grippers do not go through the transform: one exact bit a step in the first stage.

The first code axis is therefore DCT frequency, not time, for all dims but the gripper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.errors import SettingError
from rsd.settings import ChunkLength, Depth, Finite, Levels, Positive, Width, checked
from rsd.tokenizer.base import ActionTokenizer, gripper_config
from rsd.tokenizer.quantizer import ResidualQuantizer
from rsd.types import CodeShape

GRIPPER_TOLERANCE = 0.05  # how far open or closed may be from 1 or 0: rsd.data.gripper.NEAR


def dct_matrix(length: int) -> Tensor:
    """Orthonormal DCT-II, [length, length], float64; row k is the k-th basis function over the steps."""
    k = torch.arange(length, dtype=torch.float64)
    matrix = torch.cos(math.pi / length * (k[None, :] + 0.5) * k[:, None]) * math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix


class TransformTokenizer(ActionTokenizer):
    """DCT coefficients in nested residual stages; D = A.

    Args:
        chunk_length: T.
        action_dim: A.
        grippers: Dims that are 0 or 1; the last one unless said.
        num_stages: Q.
        num_levels: L of every coefficient that has a token.
        ratio: Step of a stage over the step of the next; ≤ L, else greedy refinement leaves gaps.
        margin: Coefficients are assumed to reach this many times the largest magnitude seen in fitting.
    """

    basis: Tensor  # [T, T]
    ranges: Tensor  # [T, motions]

    @checked
    def __init__(
        self,
        *,
        chunk_length: ChunkLength,
        action_dim: Width,
        num_stages: Depth,
        num_levels: Levels,
        ratio: Finite,
        margin: Positive,
        grippers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not 1 < ratio <= num_levels:
            raise SettingError(f"stage ratio {ratio} with {num_levels} levels, expected 1 < ratio <= {num_levels}")
        self.config = {
            "chunk_length": chunk_length,
            "action_dim": action_dim,
            "num_stages": num_stages,
            "num_levels": num_levels,
            "ratio": ratio,
            "margin": margin,
            **gripper_config(action_dim, grippers),
        }
        self._motions: slice | list[int] = slice(action_dim - 1)
        self._bits: slice | list[int] = slice(action_dim - 1, None)
        self._order: slice | list[int] = slice(None)  # motions and then bits → dims
        if "grippers" in self.config:
            self._bits = own = self.config["grippers"]
            self._motions = [dim for dim in range(action_dim) if dim not in own]
            self._order = np.argsort(self._motions + own).tolist()
        self.register_buffer("basis", dct_matrix(chunk_length).float(), persistent=False)
        self.register_buffer(
            "ranges",
            torch.full((chunk_length, action_dim - len(self.config.get("grippers", [0]))), math.sqrt(chunk_length)),
        )
        self._lay_out_stages()
        self.register_load_state_dict_post_hook(_lay_out_again)

    def fit(self, chunks: Tensor) -> None:
        """Measure how large each coefficient gets on training chunks [N, T, A], and lay out the stages for it.

        Raises:
            SettingError: the gripper is more than open or closed.
        """
        self.check_actions(chunks)
        gripper = chunks[..., self._bits]
        between = (gripper - gripper.round()).abs() > GRIPPER_TOLERANCE
        if between.any():
            raise SettingError(
                f"the gripper stands between closed (0) and open (1) in {100 * between.float().mean():.0f} % of the "
                f"steps ({gripper.min():.3g}..{gripper.max():.3g}), and this tokenizer has one bit for it; choose one "
                "that has levels (quantizer=rfsq_d8), or record open and closed only"
            )
        coefficients = self.basis @ chunks[..., self._motions]  # [N, T, A-1]
        self.ranges.copy_(coefficients.abs().amax(dim=0) * self.config["margin"])
        self._lay_out_stages()

    def _lay_out_stages(self) -> None:
        """Stage steps and per-entry levels from the ranges: stage 1 just covers the largest coefficient."""
        num_stages, num_levels = self.config["num_stages"], self.config["num_levels"]
        first_step = 2 * self.ranges.max() / num_levels
        steps = first_step * float(self.config["ratio"]) ** -torch.arange(num_stages).to(self.ranges)  # [Q]
        visible = self.ranges[..., None] > steps / 2  # [T, A-1, Q]  smaller ones would only ever round to 0
        levels = torch.where(visible, num_levels, 1)
        bits = torch.ones_like(levels[:, :1]).repeat(1, self.config["action_dim"] - levels.shape[1], 1)
        bits[..., 0] = 2
        levels = torch.cat([levels, bits], dim=1)[:, self._order]  # [T, A, Q]
        steps = steps.expand(levels.shape).clone()
        steps[:, self._bits] = 1.0  # a gripper's two values are one apart
        self.quantizer = ResidualQuantizer(levels, steps)
        self.quantizer.requires_grad_(False)
        config = self.config
        nested = tuple(tuple(tuple(entry) for entry in row) for row in levels.tolist())
        self.code_shape = CodeShape(config["chunk_length"], config["action_dim"], num_levels, nested)

    def to_latents(self, actions: Tensor) -> Tensor:
        return self._ordered(self.basis @ actions[..., self._motions], actions[..., self._bits] - 0.5)

    def to_actions(self, latents: Tensor) -> Tensor:
        return self._ordered(self.basis.T @ latents[..., self._motions], latents[..., self._bits] + 0.5)

    def spread(self, moved: Tensor) -> Tensor:
        return self._ordered(self.basis.T.abs() @ moved[..., self._motions], moved[..., self._bits])

    def hand_over_bound(self, off: Tensor | None = None) -> Tensor:
        bound = super().hand_over_bound(off).clone()
        bound[..., self._bits] = 0  # a gripper's bit says it all
        return bound

    def _ordered(self, motions: Tensor, bits: Tensor) -> Tensor:
        return torch.cat([motions, bits], dim=-1)[..., self._order]


def _lay_out_again(tokenizer: TransformTokenizer, _: Any) -> None:
    """Behind `load_state_dict`; a module's function, so that a tokenizer can be pickled."""
    tokenizer._lay_out_stages()
