"""Patch features as pictures: their first three principal components as red, green and blue.

Patches of one colour are one thing to the tower. The components are those of all pictures together that are shown, so
colours mean the same in each of them; a tower whose pictures show nothing but noise sees nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rsd.diagnosis.saliency import feature_maps
from rsd.models.openvla import segments
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.conv import ConvVision
from rsd.types import Observation

COLOURS = 3
TOWERS = ("DINOv2", "SigLIP")
TAIL = 0.01  # of the values of a component that are cut off on both sides


@torch.no_grad()
def patch_features(base: OpenVLABase, observation: Observation) -> dict[str, dict[str, np.ndarray]]:
    """Stage ("DINOv2", "SigLIP", "projector", …) → view → features on their grid, [h, w, C].

    Keypoint towers have a map of features each; their keypoints are no grid, so there is none of the projector.
    """
    model, inputs = base.model, base.on_device(base.prepare([observation]))
    vision = model.vision_backbone
    if isinstance(vision, ConvVision):
        maps = feature_maps(base, inputs)
        return {
            "convolutional tower": {v: _numpy(one[0].permute(1, 2, 0)) for v, one in zip(base.views, maps, strict=True)}
        }
    ids, start = segments.given(inputs, "input_ids"), segments.given(inputs, "action_start")
    pixels = segments.given(inputs, "pixel_values")
    mask, sentence = inputs["attention_mask"], inputs.get("sentence")
    features = model.vision_features(pixels, ids, mask, start, base.chunk_length, sentence)  # [1, M*N, C]
    shapes = model.architecture.transformers
    names = TOWERS if len(shapes) > 1 else ("SigLIP",)
    if not shapes:
        parts = {"patch tower": features}
    else:
        parts = dict(zip(names, features.split([shape.embed_dim for shape in shapes], dim=-1), strict=True))
    parts["projector"] = model.projector(features)
    return {name: _by_view(base, part) for name, part in parts.items()}


def _by_view(base: OpenVLABase, features: Tensor) -> dict[str, np.ndarray]:
    """[1, M*N, C] → view → [side, side, C]."""
    rows = features[0].view(len(base.views), -1, features.shape[-1])
    side = round(rows.shape[1] ** 0.5)
    return {view: _numpy(row.view(side, side, -1)) for view, row in zip(base.views, rows, strict=True)}


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def as_colours(grids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Feature grids [h, w, C] → pictures [h, w, 3], uint8, by the principal components of all of them together."""
    flat = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids]).astype(np.float64)
    center = flat.mean(axis=0)
    _, _, axes = np.linalg.svd(flat - center, full_matrices=False)
    axes = axes[:COLOURS]
    axes = axes * np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)  # else the sign is the library's choice
    projected = (flat - center) @ axes.T
    low, high = np.quantile(projected, [TAIL, 1 - TAIL], axis=0)
    width = np.where(high > low, high - low, 1.0)
    pictures = []
    for grid in grids:
        values = ((grid.reshape(-1, grid.shape[-1]) - center) @ axes.T - low) / width
        colours = np.zeros((len(values), COLOURS))
        colours[:, : values.shape[1]] = values
        pictures.append((255 * colours.clip(0, 1)).astype(np.uint8).reshape(*grid.shape[:2], COLOURS))
    return pictures
