"""A small real base model and data set: deterministic, honest about shapes, and fast.

The states are fixed random linear maps of picture statistics and proprio, so two frames never share them by accident.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.data.fill_cache import write_cache
from rsd.types import BackboneOutput, Observation

T, A, P = 8, 7, 8
POINTS = ["layer.2", "layer.4"]
BATCH = 4
SHARD_BYTES = 16_000  # 8 rows at H=16


class LinearBackbone:
    """States of layer i at position k: row k of a fixed random map of the frame's features, [K, H]."""

    chunk_length = T
    action_dim = A
    num_layers = 4
    views: tuple[str, ...] = ("image", "wrist_image")
    unnorm_key = "toy_no_noops"

    def __init__(self, seed: int = 0, hidden_dim: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.hidden_dim = hidden_dim
        self.state_shapes = dict.fromkeys(range(1, self.num_layers + 1), (T * A, hidden_dim))
        self.norm_stats: dict[str, Any] = {"action": {"q01": [-1.0] * A, "q99": [1.0] * A}}
        self.maps = torch.randn(self.num_layers, T * A, hidden_dim, 2 * len(self.views) + P, generator=generator)
        self.forward_passes = 0
        self.asked: list[int] = []  # layers, pass by pass

    def prepare(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        rows = []
        for observation in observations:
            pictures = [observation.images[view].astype(np.float32) / 255 for view in self.views]
            statistics = [value for picture in pictures for value in (picture.mean(), picture.std())]
            rows.append(np.concatenate([statistics, observation.proprio]))
        return {"features": torch.from_numpy(np.stack(rows)).float()}  # [B, 2 views + P]

    def forward(self, inputs: dict[str, Tensor], layers: Sequence[int]) -> BackboneOutput:
        self.forward_passes += 1
        self.asked += layers
        states = torch.einsum("lkhf,bf->lbkh", self.maps, inputs["features"])  # [layers, B, K, H]
        actions = states[-1].mean(dim=-1).reshape(-1, T, A).tanh()  # [B, T, A]
        return BackboneOutput({layer: states[layer - 1] for layer in layers}, actions)

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "linear", "weights": f"seed-{self.seed}", "hidden_dim": self.hidden_dim, "crop": 0.9}


class ToyFrames:
    """Episodes of random small pictures; what FrameDataset promises, without files."""

    name = "toy_no_noops"

    def __init__(self, lengths: Sequence[int] = (13, 9, 14, 11), views: Sequence[str] = LinearBackbone.views) -> None:
        self.rows = [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]
        self.views = tuple(views)
        self.episodes = list(range(len(lengths)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        episode, step = self.rows[row]
        random = np.random.default_rng([episode, step])
        images = {view: random.integers(0, 256, (8, 8, 3), dtype=np.uint8) for view in self.views}
        observation = Observation(images, random.normal(size=P), f"task {episode}")
        actions = random.normal(size=(T, A)).astype(np.float32)
        return {"observation": observation, "actions": actions, "episode": episode, "step": step}

    def content_id(self) -> str:
        return f"toy-{len(self.rows)}"


class SlowBackbone(LinearBackbone):
    """Takes its time, so that there is something to interrupt."""

    def __init__(self, delay_s):
        super().__init__()
        self.delay_s = delay_s

    def forward(self, inputs, layers):
        time.sleep(self.delay_s)
        return super().forward(inputs, layers)


def write(directory, *, backbone=None, frames=None, points=POINTS, batch_size=BATCH, report=lambda line: None, **extra):
    """Write the toy cache, or the rest of it."""
    backbone = backbone or LinearBackbone()
    frames = frames if frames is not None else ToyFrames()
    write_cache(
        backbone=backbone,
        frames=frames,
        directory=Path(directory),
        points=points,
        batch_size=batch_size,
        shard_bytes=SHARD_BYTES,
        command="make-the-cache",
        report=report,
        **extra,
    )


def write_slowly(directory, delay_s, started):
    """Target of a process that is going to be killed."""
    started.set()
    write(directory, backbone=SlowBackbone(delay_s))
