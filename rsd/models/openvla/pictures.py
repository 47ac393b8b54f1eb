"""Evaluation's pictures on the model's device: JPEG, resize, centre crop and normalisation in one go.

The same pixels as `OpenVLABase.prepare` makes on the CPU: JPEG is integers, and resampling is done in float64 there and
here, so that only a tie of the rounding can fall to the other side. What surprises first: on a GPU this is a CUDA graph
a batch size, and JPEG is compiled for it, some seconds at the first picture. Integers stay the same when they are
compiled; the crop's float32 would not, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rsd.errors import SettingError
from rsd.images import center_box, crop_and_resize, lanczos3_weights, to_float, to_uint8
from rsd.jpeg import jpeg_round_trip
from rsd.models.openvla.execution import CudaCapture, Graph
from rsd.models.openvla.jpeg_on_device import MULTIPLE, round_trip, tables
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.segments import Tensors, given

PLACES = ("cpu", "device")


def check_pictures(place: str) -> None:
    """Raise SettingError unless `place` is one of PLACES."""
    if place not in PLACES:
        raise SettingError(f"model.backbone.pictures is {place!r}, expected one of {list(PLACES)}")


class DevicePictures:
    """Callable: N pictures [H, W, 3], uint8, and whether they come from a camera, which has seen no JPEG → pixels
    [N, 3 * towers, S, S], float32, on the device. JPEG is on the CPU for sides that are no multiples of 16.

    Raises:
        SettingError: the towers want pictures of different sizes.
    """

    def __init__(self, processor: PrismaticImageProcessor, *, center_crop: bool, device: torch.device) -> None:
        if len(set(processor.sizes)) > 1:
            raise SettingError(
                f"the towers take pictures of {list(processor.sizes)} pixels, model.backbone.pictures=device makes one "
                "size only; set model.backbone.pictures=cpu"
            )
        self.device, self._size = device, processor.sizes[0]
        self._weights: dict[int, Tensor] = {}  # side of a picture → [S, side], float64
        self._box = center_box().to(device) if center_crop else None
        self._mean, self._std = (
            torch.tensor(moments, dtype=torch.float32, device=device)[:, :, None, None]
            for moments in (processor.means, processor.stds)
        )  # each [towers, 3, 1, 1]
        self._tables, self._round_trip = tables(device), round_trip
        self._capture: CudaCapture | None = None
        if device.type == "cuda":
            self._capture, self._round_trip = CudaCapture(device), torch.compile(round_trip, dynamic=False)
        self._graphs: dict[tuple[tuple[int, ...], bool], Graph] = {}

    def __call__(self, pictures: Sequence[np.ndarray], *, live: bool) -> Tensor:
        shapes = [picture.shape for picture in pictures]
        made = {}
        for shape in dict.fromkeys(shapes):
            of_shape = [picture for picture in pictures if picture.shape == shape]
            here = live and any(side % MULTIPLE for side in shape[:2])
            of_shape = [jpeg_round_trip(picture) for picture in of_shape] if here else of_shape
            made[shape] = self._of_one_size(np.stack(of_shape), live=live and not here)  # [n, 3 * towers, S, S]
        if len(made) == 1:
            return made[shapes[0]]
        rows = {shape: iter(pixels) for shape, pixels in made.items()}
        return torch.stack([next(rows[shape]) for shape in shapes])

    @torch.inference_mode(False)
    @torch.no_grad()
    def _of_one_size(self, pictures: np.ndarray, *, live: bool) -> Tensor:
        for side in pictures.shape[1:3]:
            if side not in self._weights:
                weights = torch.from_numpy(lanczos3_weights(side, self._size).toarray())
                self._weights[side] = weights.to(self.device)
        inputs: Tensors = {"pictures": torch.from_numpy(pictures).to(self.device)}
        if self._capture is None:
            return given(self._pixels(inputs, live=live), "pixels")
        key = pictures.shape, live
        if key not in self._graphs:
            self._graphs[key] = Graph(inputs, partial(self._pixels, live=live), self._capture)
        return given(self._graphs[key](inputs), "pixels").clone()  # the graph writes to the same memory every time

    def _pixels(self, inputs: Tensors, *, live: bool) -> Tensors:
        stored = given(inputs, "pictures")
        if live:
            stored = self._round_trip(stored, *self._tables)
        x = stored.permute(0, 3, 1, 2).double()  # [N, 3, H, W]
        x = self._weights[x.shape[2]] @ x @ self._weights[x.shape[3]].T  # [N, 3, S, S]
        pictures = x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # [N, S, S, 3]
        if self._box is not None:
            cropped = crop_and_resize(to_float(pictures), self._box.expand(len(pictures), 4))
            pictures = to_uint8(cropped.clamp(0, 1))
        pixels = pictures.permute(0, 3, 1, 2)[:, None].to(torch.float32) / 255  # [N, 1, 3, S, S]
        return {"pixels": ((pixels - self._mean) / self._std).flatten(1, 2)}
