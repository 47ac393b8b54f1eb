"""Filling a hidden-state cache: frames/s of write_cache against those of the batched forward alone."""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmark_7b.cases import TWO_VIEWS, make_base
from benchmark_7b.clocks import Clock, interleaved
from rsd.data.fill_cache import write_cache
from rsd.data.made_up import picture
from rsd.models.openvla.model import OpenVLAOFT
from rsd.points import point_names
from rsd.types import Frame, Observation


class JpegFrames:
    """What FrameDataset promises, from JPEG bytes in memory: decoding and preparing cost what they cost there."""

    name = "random"

    def __init__(self, number: int, views: tuple[str, ...]) -> None:
        self.episodes = [0]
        self.number = number
        self.pictures: list[dict[str, bytes]] = []
        for seed in range(16):
            stored = {}
            random = np.random.default_rng(seed)
            for view in views:
                buffer = io.BytesIO()
                Image.fromarray(picture(random)).save(buffer, format="JPEG", quality=95)
                stored[view] = buffer.getvalue()
            self.pictures.append(stored)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, row: int) -> Frame:
        stored = self.pictures[row % len(self.pictures)].items()
        pictures = {view: np.asarray(Image.open(io.BytesIO(data))) for view, data in stored}
        observation = Observation(pictures, np.zeros(8), "any", stored=True)
        return {"observation": observation, "actions": torch.zeros(8, 7), "episode": 0, "step": row}

    def content_id(self) -> str:
        return f"random-{self.number}"


def measure_caching(options: argparse.Namespace, model: OpenVLAOFT, device: torch.device) -> dict[str, Any]:
    """Frames/s of write_cache against those of the batched forward alone, layers and batch alike."""
    views = TWO_VIEWS
    base = make_base(model, views)
    layers = sorted({(model.llm_config.num_hidden_layers + 1) // 2, model.llm_config.num_hidden_layers})
    batch, frames = options.batch_size, JpegFrames(options.frames, views)
    inputs = base.prepare([frames[row]["observation"] for row in range(batch)])
    inputs = {name: value.to(device) for name, value in inputs.items()}

    def forward() -> Tensor:
        looked = base.look(inputs)
        for point in point_names(layers):
            looked.at(point)
        return looked.chunk()

    alone = interleaved({"forward": forward}, Clock(device), 3, 10)
    alone_fps = 1000 * batch / alone["forward"]["wall_ms"]["median"]
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        started = time.perf_counter()
        write_cache(
            bases=[base],
            frames=frames,
            directory=Path(scratch) / "cache",
            points=point_names(layers),
            batch_size=batch,
            shard_bytes=128 * 10**6,
            command="",
            num_workers=options.workers,
            report=lambda line: None,
        )
        seconds = time.perf_counter() - started
    fps = len(frames) / seconds
    record = {"batch_size": batch, "workers": options.workers, "frames": len(frames), "layers": layers}
    return record | {"forward_frames_per_s": alone_fps, "caching_frames_per_s": fps, "share": fps / alone_fps}
