"""Evaluation's pictures on the model's device: resize, centre crop and normalisation in one go.

The same pixels as `OpenVLABase.prepare` makes on the CPU: resampling is done in float64 there and here, so that only a
tie of the rounding can fall to the other side. JPEG stays on the CPU. What surprises first: on a GPU this is a CUDA
graph a batch size; it reads and writes the same memory every time, and what it returns is a copy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rsd.errors import SettingError
from rsd.images import CAMERA_SIZE, center_box, crop_and_resize, lanczos3_weights, to_float, to_uint8
from rsd.models.openvla.execution import CudaCapture, Graph
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.segments import Tensors, given

PLACES = ("cpu", "device")


def check_pictures(place: str) -> None:
    """Raise SettingError unless `place` is one of PLACES."""
    if place not in PLACES:
        raise SettingError(f"model.backbone.pictures is {place!r}, expected one of {list(PLACES)}")


class DevicePictures:
    """Callable: pictures [N, 256, 256, 3], uint8 → pixels [N, 3 * towers, S, S], float32, on the device.

    Raises:
        SettingError: the towers want pictures of different sizes.
    """

    def __init__(self, processor: PrismaticImageProcessor, *, center_crop: bool, device: torch.device) -> None:
        if len(set(processor.sizes)) > 1:
            raise SettingError(
                f"the towers take pictures of {list(processor.sizes)} pixels, model.backbone.pictures=device makes one "
                "size only; set model.backbone.pictures=cpu"
            )
        self.device, size = device, processor.sizes[0]
        weights = torch.from_numpy(lanczos3_weights(CAMERA_SIZE, size).toarray())
        self._weights = weights.to(device)  # [S, 256], float64
        self._box = center_box().to(device) if center_crop else None
        self._mean, self._std = (
            torch.tensor(moments, dtype=torch.float32, device=device)[:, :, None, None]
            for moments in (processor.means, processor.stds)
        )  # each [towers, 3, 1, 1]
        self._capture = CudaCapture(device) if device.type == "cuda" else None
        self._graphs: dict[int, Graph] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> Tensor:
        inputs: Tensors = {"pictures": torch.from_numpy(pictures).to(self.device)}
        if self._capture is None:
            return given(self._pixels(inputs), "pixels")
        graph = self._graphs.get(len(pictures))
        if graph is None:
            graph = self._graphs[len(pictures)] = Graph(inputs, self._pixels, self._capture)
        return given(graph(inputs), "pixels").clone()

    def _pixels(self, inputs: Tensors) -> Tensors:
        x = given(inputs, "pictures").permute(0, 3, 1, 2).double()  # [N, 3, 256, 256]
        x = self._weights @ x @ self._weights.T  # [N, 3, S, S]
        pictures = x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # [N, S, S, 3]
        if self._box is not None:
            cropped = crop_and_resize(to_float(pictures), self._box.expand(len(pictures), 4))
            pictures = to_uint8(cropped.clamp(0, 1))
        pixels = pictures.permute(0, 3, 1, 2)[:, None].to(torch.float32) / 255  # [N, 1, 3, S, S]
        return {"pixels": ((pixels - self._mean) / self._std).flatten(1, 2)}
