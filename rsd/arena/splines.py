"""BEAST's idea (arXiv 2506.06072): control points of a B-spline over the steps, each in one of 256 bins.

Least squares with a small ridge on a clamped cubic basis; the gripper has a spline of degree 0 with a piece a step,
which is one bit a step. An implementation of our own; one stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from rsd.arena.contract import Written

DEGREE = 3
NUM_CONTROL = 5  # of a chunk of 8 steps; BEAST has 10 for 20 steps
NUM_BINS = 256
RIDGE = 1e-6


def basis_of(chunk_length: int, num_control: int, degree: int = DEGREE) -> Tensor:
    """Values of the clamped basis functions at the steps, [T, num_control], float32; rows add up to 1."""
    inner = np.linspace(0, 1, num_control - degree + 1)
    knots = np.concatenate([np.zeros(degree), inner, np.ones(degree)])
    steps = np.linspace(0, 1, chunk_length)
    return torch.from_numpy(BSpline.design_matrix(steps, knots, degree).toarray()).float()


class Splines:
    """Control points of all dims but the grippers, which have a bit a step."""

    name, idea, num_stages = "bspline", "B-spline control points in 256 bins (BEAST-like)", 1

    def __init__(self, chunk_length: int, action_dim: int, grippers: Sequence[int]) -> None:
        self._shape = (chunk_length, action_dim)
        self._bits = list(grippers)
        self._motions = [dim for dim in range(action_dim) if dim not in self._bits]
        self._basis = basis_of(chunk_length, min(NUM_CONTROL, chunk_length), min(DEGREE, chunk_length - 1))  # [T, C]
        gram = self._basis.T @ self._basis + RIDGE * torch.eye(self._basis.shape[1])
        self._solve = torch.linalg.solve(gram, self._basis.T)  # [C, T]

    def fit(self, chunks: Tensor, *, seed: int, max_steps: int | None) -> int:
        points = self._solve @ chunks[..., self._motions]  # [N, C, motions]
        self._low = points.amin(dim=0)
        self._step = ((points.amax(dim=0) - self._low) / (NUM_BINS - 1)).clamp_min(1e-6)
        return 0

    def encode(self, chunks: Tensor) -> Tensor:
        points = self._solve @ chunks[..., self._motions]
        bins = ((points - self._low) / self._step).round().clamp(0, NUM_BINS - 1)
        bits = chunks[..., self._bits] > 0.5
        return torch.cat([bins.long().flatten(1), bits.long().flatten(1)], dim=1)  # [N, C*motions + T*grippers]

    def decode(self, code: Tensor, depth: int) -> Tensor:
        bins = code[:, : self._low.numel()].view(-1, *self._low.shape)
        chunks = torch.empty(len(code), *self._shape)
        chunks[..., self._motions] = self._basis @ (bins * self._step + self._low)
        chunks[..., self._bits] = code[:, self._low.numel() :].view(len(code), self._shape[0], -1).float()
        return chunks

    def written(self, code: Tensor) -> Written:
        levels = torch.full((code.shape[1],), 2)
        levels[: self._low.numel()] = NUM_BINS
        return Written(code, torch.zeros_like(levels), levels)

    def tail_bound(self, depth: int) -> Tensor | None:
        return torch.zeros(self._shape)
