"""A small real base model and data set: deterministic, honest about shapes, and fast.

The states are fixed random linear maps of picture statistics and proprio, so two frames never share them by accident.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsd.data.fill_cache import write_cache
from rsd.space import Space
from rsd.types import BaseSpec, Frame, Inputs, Observation
from rsd.work import Stopwatch, Work

T, A, P = 8, 7, 8
POINTS = ["layer.2", "layer.4"]
BATCH = 4
ENTRY = {"q01": [-1.0] * A, "q99": [1.0] * A, "min": [-1.0] * A, "max": [1.0] * A}
SPACE = Space.from_statistics("toy_no_noops", {"action": ENTRY})
SHARD_BYTES = 16_000  # 8 rows at H=16


class LinearBase:
    """States behind layer i at position k: row k of a fixed random map of the frame's features, [K, H].

    Attributes:
        passes: How often it was shown a batch and asked something.
        asked: Layers whose states were asked for, pass by pass.
    """

    num_layers = 4
    views: tuple[str, ...] = ("image", "wrist_image")

    def __init__(self, seed: int = 0, hidden_dim: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.hidden_dim = hidden_dim
        self.maps = torch.randn(self.num_layers, T * A, hidden_dim, 2 * len(self.views) + P, generator=generator)
        self.passes = 0
        self.asked: list[int] = []

    @cached_property
    def spec(self) -> BaseSpec:
        return BaseSpec(
            views=self.views,
            proprio_dim=P,
            chunk_length=T,
            action_dim=A,
            space=SPACE,
            points={f"layer.{number}": (T * A, self.hidden_dim) for number in range(1, self.num_layers + 1)},
            action_head="l1",
            continuous=True,
            identify=lambda: {
                "name": "linear", "weights": f"seed-{self.seed}", "hidden_dim": self.hidden_dim, "crop": 0.9
            },
        )  # fmt: skip

    def prepare(self, observations: Sequence[Observation]) -> Inputs:
        rows = []
        for observation in observations:
            pictures = [observation.images[view].astype(np.float32) / 255 for view in self.views]
            statistics = [value for picture in pictures for value in (picture.mean(), picture.std())]
            rows.append(np.concatenate([statistics, observation.proprio]))
        return {"features": torch.from_numpy(np.stack(rows)).float()}  # [B, 2 views + P]

    def look(self, observations: Sequence[Observation] | Inputs) -> LinearPass:
        return LinearPass(self, observations)


class LinearPass:
    """Runs layer after layer, as far as asked; each is a product of the features with its own map.

    A part of a pass (`of`) books its work in the account of the pass that it is a part of, in `rows`.
    """

    def __init__(
        self,
        base: LinearBase,
        seen: Sequence[Observation] | Inputs,
        whole: LinearPass | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self._base, self._seen = base, seen
        self._features: Tensor | None = seen["features"] if isinstance(seen, Mapping) else None  # [B, 2 views + P]
        self._depth = 0
        self._found: dict[str, Tensor] = {}
        count = len(seen) if self._features is None else len(self._features)
        self.rows: Tensor = torch.arange(count) if rows is None else rows
        self.work: Work = Work.none(len(self.rows)) if whole is None else whole.work
        self.clock: Stopwatch = Stopwatch() if whole is None else whole.clock
        if self._features is not None and whole is None:
            self.work.pictures_prepared += len(base.views)

    def __len__(self) -> int:
        return len(self.rows)

    def _prepared(self) -> Tensor:
        if self._features is None:
            assert not isinstance(self._seen, Mapping)
            self._features = self._base.prepare(self._seen)["features"]
            self.work.pictures_prepared[self.rows] += len(self._base.views)
        return self._features

    def _states(self, number: int) -> Tensor:
        if self._depth == 0:
            self._base.passes += 1
            self.work.vision_calls[self.rows] += 1
        self.work.base_layers[self.rows] += max(0, number - self._depth)
        self._depth = max(self._depth, number)
        return torch.einsum("khf,bf->bkh", self._base.maps[number - 1], self._prepared())  # [B, K, H]

    def at(self, point: str) -> Tensor:
        if point not in self._base.spec.points:
            raise ValueError(f"the base model has no point {point!r}; it has {', '.join(self._base.spec.points)}")
        number = int(point.removeprefix("layer."))
        self._base.asked.append(number)
        if point not in self._found:
            self._found[point] = self._states(number)
        return self._found[point]

    def chunk(self) -> Tensor:
        if "chunk" not in self._found:
            self._found["chunk"] = self._states(self._base.num_layers).mean(dim=-1).reshape(-1, T, A).tanh()
        return self._found["chunk"]  # [B, T, A]

    def of(self, rows: Tensor) -> LinearPass:
        seen = self._seen
        keep = (
            {name: value[rows] for name, value in seen.items()}
            if isinstance(seen, Mapping)
            else [seen[row] for row in rows.tolist()]
        )
        some = type(self)(self._base, keep, self, self.rows[rows])
        some._features = None if self._features is None else self._features[rows]
        some._depth, some._found = self._depth, {name: value[rows] for name, value in self._found.items()}
        return some


class ToyFrames:
    """Episodes of random small pictures; what FrameDataset promises, without files."""

    name = "toy_no_noops"

    def __init__(self, lengths: Sequence[int] = (13, 9, 14, 11), views: Sequence[str] = LinearBase.views) -> None:
        self.rows = [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]
        self.views = tuple(views)
        self.episodes = list(range(len(lengths)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Frame:
        episode, step = self.rows[row]
        random = np.random.default_rng([episode, step])
        images = {view: random.integers(0, 256, (8, 8, 3), dtype=np.uint8) for view in self.views}
        observation = Observation(images, random.normal(size=P), f"task {episode}")
        actions = random.normal(size=(T, A)).astype(np.float32)
        return {"observation": observation, "actions": torch.from_numpy(actions), "episode": episode, "step": step}

    def content_id(self) -> str:
        return f"toy-{len(self.rows)}"

    def cut_off(self, space) -> list[tuple[float, float]]:
        return [(0.0, 0.0)] * A


class SlowBase(LinearBase):
    """Takes its time, so that there is something to interrupt."""

    def __init__(self, delay_s):
        super().__init__()
        self.delay_s = delay_s

    def look(self, observations):
        time.sleep(self.delay_s)
        return super().look(observations)


def write(
    directory, *, base=None, bases=None, frames=None, points=POINTS, batch_size=BATCH, report=lambda line: None, **extra
):
    """Write the toy cache, or the rest of it."""
    frames = frames if frames is not None else ToyFrames()
    write_cache(
        bases=bases or [base or LinearBase()],
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
    write(directory, base=SlowBase(delay_s))
