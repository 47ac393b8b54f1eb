"""A convolutional vision tower that learns from little data: it reports where things are, instead of patches.

A small base model trained from scratch cannot afford vision transformers. Here each picture goes through a FiLM-
conditioned residual network (FiLM: arXiv 1709.07871; OpenVLA-OFT+ conditions its own vision towers the same way), and
every "patch feature" is one keypoint: the expected position under a learned heat map (spatial soft-argmax, arXiv
1504.00702) together with the features found there.

What surprises first: the number of features does not depend on the picture's size, and every camera has its own tower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsd.settings import Count

CHANNELS = 3  # of a picture
WIDTHS = (1, 2, 3, 4)  # channels at strides 2, 4, 8, 16, in multiples of ConvShape.width
NUM_BLOCKS = (1, 2, 2)  # residual blocks at strides 4, 8, 16
FREQUENCIES = (1, 2, 4, 8)  # of the position's encoding, in half turns over the picture's half width


@dataclass(frozen=True)
class ConvShape:
    """Shape of the convolutional towers.

    Attributes:
        image_size: Pixels; pictures are square, a multiple of 16.
        num_views: M, pictures a sample; each has its own tower.
        width: Channels at stride 2.
        num_keypoints: N, features a picture.
        feature_dim: C, width of a feature.
    """

    image_size: Count
    num_views: Count
    width: Count
    num_keypoints: Count
    feature_dim: Count

    @property
    def num_patches(self) -> int:
        """Features a picture, by the name that other towers' shapes have for it."""
        return self.num_keypoints


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position, [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FiLMBlock(nn.Module):
    """Pre-activation residual block whose inner features are scaled and shifted by the instruction.

    Args:
        language_dim: Width of the instruction's vector; None for a plain block, which ignores it.
    """

    def __init__(self, width: int, language_dim: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.film = None if language_dim is None else nn.Linear(language_dim, 2 * width)
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        inner = self.norm2(self.conv1(F.gelu(self.norm1(x))))
        if self.film is not None:
            scale, shift = self.film(language)[..., None, None].chunk(2, dim=1)  # each [B, C, 1, 1]
            inner = inner * (1 + scale) + shift
        return x + self.conv2(F.gelu(inner))


class ConvTower(nn.Module):
    """One camera: pixels [B, 3, S, S] and instruction [B, H] → keypoint features [B, N, C]."""

    def __init__(self, shape: ConvShape, language_dim: int) -> None:
        super().__init__()
        widths = [shape.width * factor for factor in WIDTHS]
        self.stem = nn.Conv2d(CHANNELS, widths[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(FiLMBlock(width, language_dim) for _ in range(count))
            for width, count in zip(widths[1:], NUM_BLOCKS, strict=True)
        )
        merged = widths[1]
        self.lateral = nn.ModuleList(nn.Conv2d(width, merged, 1) for width in widths[1:])
        self.merge = nn.Conv2d(merged, merged, 3, padding=1)
        self.norm = ChannelNorm(merged)
        self.heat = nn.Conv2d(merged, shape.num_keypoints, 1)
        self.project = nn.Linear(merged + 2 + 4 * len(FREQUENCIES), shape.feature_dim)
        self.identity = nn.Parameter(0.02 * torch.randn(shape.num_keypoints, shape.feature_dim))

    def forward(self, pixels: Tensor, language: Tensor) -> Tensor:
        features, position = self.keypoints(self.feature_map(pixels, language))
        angles = math.pi * torch.cat([position * frequency for frequency in FREQUENCIES], dim=-1)
        where = torch.cat([position, angles.sin(), angles.cos()], dim=-1)  # [B, N, 2 + 4 * frequencies]
        return self.project(torch.cat([features, where.to(features.dtype)], dim=-1)) + self.identity

    def feature_map(self, pixels: Tensor, language: Tensor) -> Tensor:
        """Features at stride 4, which also know what coarser strides see. [B, C', S/4, S/4]."""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        maps = []
        for down, blocks in zip(self.down, self.stages, strict=True):
            x = down(F.gelu(x))
            for block in blocks.children():
                x = block(x, language)
            maps.append(x)
        merged = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            merged = lateral(finer) + F.interpolate(merged, scale_factor=2.0, mode="nearest")
        return self.norm(self.merge(F.gelu(merged)))

    def keypoints(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map [B, C', h, w] → what is at each keypoint, [B, N, C'], and where, (x, y) in [-1, 1], [B, N, 2]."""
        height, width = features.shape[-2:]
        heat = self.heat(features).flatten(2).float().softmax(dim=-1)  # [B, N, h*w]
        y = torch.linspace(-1, 1, height, device=heat.device).repeat_interleave(width)
        x = torch.linspace(-1, 1, width, device=heat.device).repeat(height)
        # sums, not matrix products: autocast would round these to bfloat16, half a pixel
        position = torch.stack([(heat * x).sum(dim=-1), (heat * y).sum(dim=-1)], dim=-1)
        return heat.to(features.dtype) @ features.flatten(2).transpose(1, 2), position


class CameraTowers(nn.Module):
    """A tower for each camera; the features of the cameras follow each other."""

    def __init__(self, towers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, pixel_values: Tensor, language: Tensor) -> Tensor:
        """[B, 3M, S, S] and [B, H] → [B, M*N, C]."""
        views = pixel_values.split(CHANNELS, dim=1)
        return torch.cat([tower(pixels, language) for tower, pixels in zip(self.towers, views, strict=True)], dim=1)


class ConvVision(CameraTowers):
    """A keypoint tower for each camera."""

    def __init__(self, shape: ConvShape, language_dim: int) -> None:
        super().__init__(ConvTower(shape, language_dim) for _ in range(shape.num_views))
