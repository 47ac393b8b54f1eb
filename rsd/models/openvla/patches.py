"""A convolutional vision tower that keeps the grid: a token for every 16 × 16 pixels, learned from scratch.

Where the towers of conv.py report a few keypoints, these hand the language model what a vision transformer hands it:
patch tokens, row by row, of which a selection may leave some out. The stem is convolutional, because that is what
learns from little data (arXiv 2106.14881), and the instruction scales and shifts its features (FiLM) as in OFT+.

What surprises first: nothing here attends; patches see each other in the language model only. Every camera has a tower
of its own, and its learned positions tell the camera, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsd.models.openvla.conv import CHANNELS, CameraTowers, FiLMBlock
from rsd.settings import Count

STRIDE = 16  # pixels between patches
WIDTHS = (1, 2, 4, 6)  # channels at strides 2, 4, 8, 16, in multiples of PatchShape.width
NUM_BLOCKS = (1, 2, 1)  # residual blocks at strides 4, 8, 16
POSITION_STD = 0.1  # of a patch's learned position at the start


@dataclass(frozen=True)
class PatchShape:
    """Shape of the patch towers.

    Attributes:
        image_size: Pixels, 16 or more; pictures are square.
        num_views: M, pictures a sample; each has its own tower.
        width: Channels at stride 2.
        feature_dim: C, width of a token.
        film: Whether the instruction scales and shifts the features.
    """

    image_size: Count
    num_views: Count
    width: Count
    feature_dim: Count
    film: bool = True

    @property
    def num_patches(self) -> int:
        """N, tokens a picture: a square number."""
        return (self.image_size // STRIDE) ** 2


def halving(fine: int, coarse: int) -> nn.Conv2d:
    """A convolution to half the height and width; every output is centred on its 2 × 2 inputs."""
    return nn.Conv2d(fine, coarse, 4, stride=2, padding=1)


class PatchTower(nn.Module):
    """One camera: pixels [B, 3, S, S] and instruction [B, H] → patch tokens [B, N, C], row by row."""

    def __init__(self, shape: PatchShape, language_dim: int) -> None:
        super().__init__()
        widths = [shape.width * factor for factor in WIDTHS]
        told = language_dim if shape.film else None
        self.stem = halving(CHANNELS, widths[0])
        self.down = nn.ModuleList(halving(fine, coarse) for fine, coarse in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(FiLMBlock(width, told) for _ in range(count))
            for width, count in zip(widths[1:], NUM_BLOCKS, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.project = nn.Linear(widths[-1], shape.feature_dim)
        self.position = nn.Parameter(POSITION_STD * torch.randn(shape.num_patches, shape.feature_dim))

    def forward(self, pixels: Tensor, language: Tensor) -> Tensor:
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        for down, blocks in zip(self.down, self.stages, strict=True):
            x = down(F.gelu(x))
            for block in blocks.children():
                x = block(x, language)
        patches = x.flatten(2).transpose(1, 2)  # [B, N, 6 * width]
        return self.project(self.norm(patches)) + self.position


class PatchVision(CameraTowers):
    """A patch tower for each camera."""

    def __init__(self, shape: PatchShape, language_dim: int) -> None:
        super().__init__(PatchTower(shape, language_dim) for _ in range(shape.num_views))
