"""Transform RFSQ: orthonormal DCT over the steps of each pose dim, then nested-radix residual stages.

Fitted, not trained: the data only say how large each coefficient gets. A coefficient joins at the first stage that can
see it, so coarse stages are short (low frequencies), and since the transform is an isometry every stage bounds what
later stages can change. The gripper does not go through the transform: one exact bit a step in the first stage.

The first code axis is therefore DCT frequency, not time, for all dims but the gripper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rsd.errors import SettingError
from rsd.settings import ChunkLength, Depth, Finite, Levels, Positive, Width, checked
from rsd.tokenizer.base import ActionTokenizer
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
        action_dim: A; the last dim is the gripper, 0 or 1.
        num_stages: Q.
        num_levels: L of every coefficient that has a token.
        ratio: Step of a stage over the step of the next; ≤ L, else greedy refinement leaves gaps.
        margin: Coefficients are assumed to reach this many times the largest magnitude seen in fitting.
    """

    basis: Tensor  # [T, T]
    ranges: Tensor  # [T, A - 1]

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
        }
        self.register_buffer("basis", dct_matrix(chunk_length).float(), persistent=False)
        self.register_buffer("ranges", torch.full((chunk_length, action_dim - 1), math.sqrt(chunk_length)))
        self._lay_out_stages()
        self.register_load_state_dict_post_hook(lambda module, _: module._lay_out_stages())

    def fit(self, chunks: Tensor) -> None:
        """Measure how large each coefficient gets on training chunks [N, T, A], and lay out the stages for it.

        Raises:
            SettingError: the gripper is more than open or closed.
        """
        self.check_actions(chunks)
        gripper = chunks[..., -1]
        between = (gripper - gripper.round()).abs() > GRIPPER_TOLERANCE
        if between.any():
            raise SettingError(
                f"the gripper stands between closed (0) and open (1) in {100 * between.float().mean():.0f} % of the "
                f"steps ({gripper.min():.3g}..{gripper.max():.3g}), and this tokenizer has one bit for it; choose one "
                "that has levels (quantizer=rfsq_d8), or record open and closed only"
            )
        coefficients = self.basis @ chunks[..., :-1]  # [N, T, A-1]
        self.ranges.copy_(coefficients.abs().amax(dim=0) * self.config["margin"])
        self._lay_out_stages()

    def _lay_out_stages(self) -> None:
        """Stage steps and per-entry levels from the ranges: stage 1 just covers the largest coefficient."""
        num_stages, num_levels = self.config["num_stages"], self.config["num_levels"]
        first_step = 2 * self.ranges.max() / num_levels
        steps = first_step * float(self.config["ratio"]) ** -torch.arange(num_stages).to(self.ranges)  # [Q]
        visible = self.ranges[..., None] > steps / 2  # [T, A-1, Q]  smaller ones would only ever round to 0
        levels = torch.where(visible, num_levels, 1)
        gripper = torch.ones_like(levels[:, :1])
        gripper[..., 0] = 2
        levels = torch.cat([levels, gripper], dim=1)  # [T, A, Q]
        steps = steps.expand(levels.shape).clone()
        steps[:, -1] = 1.0  # the gripper's two values are one apart
        self.quantizer = ResidualQuantizer(levels, steps)
        self.quantizer.requires_grad_(False)
        config = self.config
        nested = tuple(tuple(tuple(entry) for entry in row) for row in levels.tolist())
        self.code_shape = CodeShape(config["chunk_length"], config["action_dim"], num_levels, nested)

    def to_latents(self, actions: Tensor) -> Tensor:
        return torch.cat([self.basis @ actions[..., :-1], actions[..., -1:] - 0.5], dim=-1)

    def to_actions(self, latents: Tensor) -> Tensor:
        return torch.cat([self.basis.T @ latents[..., :-1], latents[..., -1:] + 0.5], dim=-1)

    def spread(self, moved: Tensor) -> Tensor:
        return torch.cat([self.basis.T.abs() @ moved[..., :-1], moved[..., -1:]], dim=-1)

    def hand_over_bound(self, off: Tensor | None = None) -> Tensor:
        bound = super().hand_over_bound(off)
        return torch.cat([bound[..., :-1], torch.zeros_like(bound[..., -1:])], dim=-1)  # the gripper's bit says it all
