"""The JPEG round trip of rsd/jpeg.py in integers on any device: what libjpeg does, without the lossless coding.

encoder: RGB → YCbCr → chroma halved → islow DCT → quantised    decoder: fast inverse DCT → fancy up-sampling → RGB
Bit-equal to `jpeg_round_trip` (tests/models/test_jpeg_on_device.py): every step is libjpeg's fixed-point arithmetic,
with the shifts where it has them (jccolor, jcsample, jfdctint, jcdctmgr; jddctmgr, jidctfst, jdsample, jdcolor of
libjpeg-turbo). What surprises first: the two transforms are not each other's inverse. The decoder's has 8 bits of
precision and rounds down.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rsd.jpeg import JPEG_QUALITY

BLOCK = 8
MULTIPLE = 16  # of both sides of a picture: a block of halved chroma
CENTRE = 128
LUMA = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMA = """17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99"""


@lru_cache(maxsize=4)
def tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Quantisation steps of luma and chroma, and the decoder's multipliers for them, each [2, 8, 8], int32."""
    standard = np.array([text.split() for text in (LUMA, CHROMA)], dtype=np.int64).reshape(2, BLOCK, BLOCK)
    steps = ((standard * (200 - 2 * JPEG_QUALITY) + 50) // 100).clip(1, 255)
    scale = np.sqrt(2) * np.cos(np.arange(BLOCK) * np.pi / 16)
    scale[0] = 1
    scales = np.rint(16384 * np.outer(scale, scale)).astype(np.int64)  # libjpeg's 14-bit table
    multipliers = (steps * scales + (1 << 11)) >> 12
    first, second = (torch.from_numpy(table.astype(np.int32)).to(device) for table in (steps, multipliers))
    return first, second


def round_trip(pictures: Tensor, steps: Tensor, multipliers: Tensor) -> Tensor:
    """Pictures [N, H, W, 3], uint8 → the same after JPEG; sides are multiples of 16, the tables are `tables`'."""
    red, green, blue = pictures.to(torch.int32).unbind(-1)  # each [N, H, W]
    offset = (CENTRE << 16) + (1 << 15) - 1
    luma = (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16
    chroma = torch.stack(
        [
            (-11059 * red - 21709 * green + 32768 * blue + offset) >> 16,
            (32768 * red - 27439 * green - 5329 * blue + offset) >> 16,
        ]
    )  # [2, N, H, W]
    luma = _coded(luma, steps[0], multipliers[0])
    to_blue, to_red = (_doubled(_coded(_halved(chroma), steps[1], multipliers[1])) - CENTRE).unbind(0)
    result = [
        luma + ((91881 * to_red + (1 << 15)) >> 16),
        luma + ((-22554 * to_blue - 46802 * to_red + (1 << 15)) >> 16),
        luma + ((116130 * to_blue + (1 << 15)) >> 16),
    ]
    return torch.stack(result, dim=-1).clamp(0, 255).to(torch.uint8)


def _halved(plane: Tensor) -> Tensor:
    """[..., H, W] → [..., H/2, W/2]: means of four, halves rounded down in even columns and up in odd ones."""
    rows = plane[..., 0::2, :] + plane[..., 1::2, :]
    sums = rows[..., 0::2] + rows[..., 1::2]
    bias = 1 + torch.arange(sums.shape[-1], device=plane.device, dtype=torch.int32) % 2
    return (sums + bias) >> 2


def _doubled(plane: Tensor) -> Tensor:
    """[..., H, W] → [..., 2H, 2W]: near neighbours count three times as much as the next ones; edges are repeated."""
    above = torch.cat([plane[..., :1, :], plane[..., :-1, :]], dim=-2)
    below = torch.cat([plane[..., 1:, :], plane[..., -1:, :]], dim=-2)
    rows = torch.stack([3 * plane + above, 3 * plane + below], dim=-2).flatten(-3, -2)  # [..., 2H, W]
    left = torch.cat([rows[..., :1], rows[..., :-1]], dim=-1)
    right = torch.cat([rows[..., 1:], rows[..., -1:]], dim=-1)
    return torch.stack([(3 * rows + left + 8) >> 4, (3 * rows + right + 7) >> 4], dim=-1).flatten(-2)


def _coded(plane: Tensor, steps: Tensor, multipliers: Tensor) -> Tensor:
    """A plane [..., H, W] of 0..255 through transform, quantisation and back."""
    height, width = plane.shape[-2:]
    blocks = plane.unflatten(-1, (width // BLOCK, BLOCK)).unflatten(-3, (height // BLOCK, BLOCK)) - CENTRE
    rows, columns = -3, -1  # [..., H/8, 8, W/8, 8]
    x = _along(blocks, columns, lambda one: _forward(one, shift=11, up=2))
    x = _along(x, rows, lambda one: _forward(one, shift=15, up=-2))
    divisor = (steps << 3)[:, None, :]  # the transform is 8 times too large
    quantised = ((x.abs() + (divisor >> 1)) // divisor) * x.sign()
    x = quantised * multipliers[:, None, :]
    x = _along(_along(x, rows, _inverse), columns, _inverse)
    x = (x >> 5).clamp(-CENTRE, CENTRE - 1) + CENTRE
    return x.flatten(-4, -3).flatten(-2)


def _along(x: Tensor, dim: int, transform: Callable[[list[Tensor]], list[Tensor]]) -> Tensor:
    return torch.stack(transform(list(x.unbind(dim))), dim=dim)


def _rounded(x: Tensor, shift: int) -> Tensor:
    return (x + (1 << (shift - 1))) >> shift


def _forward(x: list[Tensor], *, shift: int, up: int) -> list[Tensor]:
    """jfdctint.c, one direction; `up` is how far even sums are shifted, to the left or (negative) rounded right."""
    s0, s1, s2, s3 = x[0] + x[7], x[1] + x[6], x[2] + x[5], x[3] + x[4]
    d4, d5, d6, d7 = x[3] - x[4], x[2] - x[5], x[1] - x[6], x[0] - x[7]
    a0, a3, a1, a2 = s0 + s3, s0 - s3, s1 + s2, s1 - s2
    even = [a0 + a1, a0 - a1]
    out0, out4 = (one << up for one in even) if up > 0 else (_rounded(one, -up) for one in even)
    z1 = (a2 + a3) * 4433
    out2, out6 = _rounded(z1 + a3 * 6270, shift), _rounded(z1 - a2 * 15137, shift)
    z1, z2, z3, z4 = d4 + d7, d5 + d6, d4 + d6, d5 + d7
    z5 = (z3 + z4) * 9633
    z1, z2, z3, z4 = z1 * -7373, z2 * -20995, z3 * -16069 + z5, z4 * -3196 + z5
    out7, out5 = _rounded(d4 * 2446 + z1 + z3, shift), _rounded(d5 * 16819 + z2 + z4, shift)
    out3, out1 = _rounded(d6 * 25172 + z2 + z3, shift), _rounded(d7 * 12299 + z1 + z4, shift)
    return [out0, out1, out2, out3, out4, out5, out6, out7]


def _inverse(x: list[Tensor]) -> list[Tensor]:
    """jidctfst.c, one direction."""
    a0, a1 = x[0] + x[4], x[0] - x[4]
    a3 = x[2] + x[6]
    a2 = ((x[2] - x[6]) * 362 >> 8) - a3
    t0, t3, t1, t2 = a0 + a3, a0 - a3, a1 + a2, a1 - a2
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    t7 = z11 + z13
    z5 = (z10 + z12) * 473 >> 8
    t6 = (z10 * -669 >> 8) + z5 - t7
    t5 = ((z11 - z13) * 362 >> 8) - t6
    t4 = (z12 * 277 >> 8) - z5 + t5
    return [t0 + t7, t1 + t6, t2 + t5, t3 - t4, t3 + t4, t2 - t5, t1 - t6, t0 - t7]
