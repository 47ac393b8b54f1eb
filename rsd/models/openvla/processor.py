"""Prismatic's image processor: a picture → normalised pixels, once for DINOv2 and once for SigLIP (SPEC §6).

What surprises first: the published preprocessor_config.json carries DINOv2's mean and std *rounded to bfloat16* in
tvf_normalize_params, and these win over means/stds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rsd.checkpoint import CheckpointError
from rsd.errors import SettingError
from rsd.record import read, shown
from rsd.settings import Count

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # DINOv2
HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and std
COLOURS = 3
STRATEGIES = ("resize-naive", "resize-crop", "letterbox")


class _Moments(TypedDict):
    mean: list[float]
    std: list[float]


class _Published(TypedDict):
    """What is read of a preprocessor_config.json."""

    interpolations: list[str]
    means: list[list[float]]
    stds: list[list[float]]
    tvf_normalize_params: NotRequired[list[_Moments]]
    input_sizes: list[list[Count]]
    image_resize_strategy: str


class PrismaticImageProcessor:
    """Callable: pictures [N, H, W, 3], uint8 → pixels [N, 3 * backbones, S, S], float32, DINOv2's channels first."""

    def __init__(
        self,
        *,
        sizes: Sequence[int],
        means: Sequence[Sequence[float]] = (IMAGENET_MEAN, HALF),
        stds: Sequence[Sequence[float]] = (IMAGENET_STD, HALF),
        strategy: str = "resize-naive",
    ) -> None:
        if strategy not in STRATEGIES:
            raise SettingError(f"image_resize_strategy {shown(strategy)} is unknown; expected one of {STRATEGIES}")
        if not 0 < len(sizes) == len(means) == len(stds) or {len(one) for one in (*means, *stds)} != {COLOURS}:
            raise SettingError(f"pictures of sizes {list(sizes)} need a mean and a std each, of {COLOURS} colours")
        if min(sizes) < 1 or any(value <= 0 for std in stds for value in std):
            raise SettingError(f"pictures have sizes {list(sizes)} and stds {list(stds)}, expected numbers above 0")
        self.sizes = tuple(sizes)
        self.means = tuple(tuple(mean) for mean in means)
        self.stds = tuple(tuple(std) for std in stds)
        self.strategy = strategy

    @classmethod
    def from_file(cls, path: Path) -> PrismaticImageProcessor:
        """Read a published preprocessor_config.json."""
        record = read(Path(path), _Published, error=CheckpointError, remedy="copy it again")
        if set(record["interpolations"]) != {"bicubic"}:
            raise CheckpointError(f"{path}: interpolations {shown(record['interpolations'])}, expected bicubic only")
        means, stds = record["means"], record["stds"]
        if "tvf_normalize_params" in record:
            means = [entry["mean"] for entry in record["tvf_normalize_params"]]
            stds = [entry["std"] for entry in record["tvf_normalize_params"]]
        sizes = [size[-1] for size in record["input_sizes"] if size]
        try:
            return cls(sizes=sizes, means=means, stds=stds, strategy=record["image_resize_strategy"])
        except SettingError as error:
            raise CheckpointError(f"{path}: {error}; copy it again") from error

    def to_json(self) -> dict[str, Any]:
        return {"sizes": self.sizes, "means": self.means, "stds": self.stds, "strategy": self.strategy}

    def __call__(self, pictures: Tensor) -> Tensor:
        channels = []
        for size, *moments in zip(self.sizes, self.means, self.stds, strict=True):
            pixels = self.resize(pictures, size).permute(0, 3, 1, 2).to(torch.float32) / 255
            mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in moments)
            channels.append((pixels - mean) / std)
        return torch.cat(channels, dim=1)

    def resize(self, pictures: Tensor, size: int) -> Tensor:
        """[N, H, W, 3], uint8 → [N, size, size, 3], uint8; pictures of that size pass untouched."""
        if pictures.shape[1:3] == (size, size):
            return pictures
        resized = [np.asarray(self._resize_one(Image.fromarray(picture), size)) for picture in pictures.cpu().numpy()]
        return torch.from_numpy(np.stack(resized)).to(pictures.device)

    def _resize_one(self, picture: Image.Image, size: int) -> Image.Image:
        if self.strategy == "resize-naive":
            return picture.resize((size, size), Image.Resampling.BICUBIC)
        if self.strategy == "letterbox":
            picture = _pad_to_square(picture, tuple(int(255 * value) for value in self.means[-1]))
        short, long = min(picture.size), max(picture.size)
        other = int(size * long / short)  # the shorter side becomes `size`, the other is truncated (torchvision)
        width, height = (size, other) if picture.width <= picture.height else (other, size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return picture.crop((left, top, left + size, top + size))


def _pad_to_square(picture: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Equal borders left and right, or above and below; an odd difference leaves the picture one pixel off square."""
    longest = max(picture.size)
    horizontal, vertical = (longest - picture.width) // 2, (longest - picture.height) // 2
    padded = Image.new("RGB", (picture.width + 2 * horizontal, picture.height + 2 * vertical), colour)
    padded.paste(picture, (horizontal, vertical))
    return padded
