"""What a phase is given: its batches, and what it asks of the datamodule, which Lightning hands over without a type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from rsd.space import Space
from rsd.types import Frame


class FrameBatch(TypedDict):
    """Frames, and the chunk that starts at each.

    Attributes:
        pictures: [B, M, S, S, 3], uint8, at the model's size.
        instructions: B of them.
        proprio: [B, P], float32, standard.
        actions: [B, T, A], float32, standard.
    """

    pictures: Tensor
    instructions: list[str]
    proprio: Tensor
    actions: Tensor


class DataModule(Protocol):
    """What all phases ask for; after `setup`."""

    @property
    def space(self) -> Space:
        """What the numbers of actions and proprio mean."""

    def content_id(self) -> str:
        """What identifies the data that is trained on."""


class Chunks(Protocol):
    """One split, without pictures: all chunks, standard, [N, T, A]."""

    @property
    def actions(self) -> Tensor: ...


class ChunkDataModule(DataModule, Protocol):
    """Batches are ChunkBatch."""

    @property
    def train(self) -> Chunks: ...

    @property
    def val(self) -> Chunks: ...


class Trajectory(Protocol):
    """One demonstration: standard actions, [n, A]."""

    @property
    def actions(self) -> np.ndarray: ...


class Frames(Protocol):
    """One split: items are `rsd.types.Frame`.

    Attributes:
        trajectories: Of all splits.
        episodes: Numbers of those that are in this one.
    """

    @property
    def trajectories(self) -> Sequence[Trajectory]: ...

    @property
    def episodes(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Frame: ...

    def instructions(self) -> Mapping[str, str]:
        """Every instruction of all splits, and where it stands."""


class FrameDataModule(DataModule, Protocol):
    """Batches are FrameBatch."""

    @property
    def train(self) -> Frames: ...

    @property
    def val(self) -> Frames: ...


class HiddenStateDataModule(DataModule, Protocol):
    """Batches are HiddenStateBatch."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What identifies the base model, as JSON."""

    def state_shape(self, point: str) -> tuple[int, int]:
        """(states a chunk, H) at a point."""


def median_action(frames: Frames) -> Tensor:
    """The training actions' median in each dim, standard, [A]: what a model that has learned nothing says."""
    actions = np.concatenate([frames.trajectories[index].actions for index in frames.episodes])
    return torch.from_numpy(np.median(actions, axis=0))


def gripper_accuracy(predicted: Tensor, target: Tensor, grippers: Sequence[int]) -> Tensor:
    """Share of steps at which grippers of chunks [B, T, A] are on the same side of the middle; a scalar, 1 for none."""
    dims = list(grippers)
    same = (predicted[..., dims] > 0.5) == (target[..., dims] > 0.5)
    return same.float().mean() if dims else predicted.new_ones(())


class DistilledBatch(FrameBatch):
    """Frames, and what the base model does in them.

    Attributes:
        base_actions: The base model's own chunks, model space, [B, T, A], float32.
    """

    base_actions: Tensor


class DistilledFrames(FrameDataModule, Protocol):
    """Batches are DistilledBatch."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What identifies the base model, as JSON."""


class LateBatch(DistilledBatch):
    """Frames, what the base model does in them, and what it did before.

    Attributes:
        old_actions: Its chunks of the frames 1, 2, … K steps before, model space, [B, K, T, A], float32.
        num_old: How many of these frames there are in the episode, 0..K, [B], int64; behind them stands the first's.
    """

    old_actions: Tensor
    num_old: Tensor


class LateFrames(DistilledFrames, Protocol):
    """Batches are LateBatch."""

    @property
    def max_delay(self) -> int:
        """K."""


def late_frames_of(trainer: Trainer) -> LateFrames:
    """The datamodule of phase=correction."""
    return _handed_over(trainer)


def distilled_frames_of(trainer: Trainer) -> DistilledFrames:
    """The datamodule of phase=draft draft=micro."""
    return _handed_over(trainer)


def chunks_of(trainer: Trainer) -> ChunkDataModule:
    """The datamodule of phase=rfsq."""
    return _handed_over(trainer)


def frames_of(trainer: Trainer) -> FrameDataModule:
    """The datamodule of phase=oft and phase=finetune."""
    return _handed_over(trainer)


def hidden_states_of(trainer: Trainer) -> HiddenStateDataModule:
    """The datamodule of phase=head and phase=draft."""
    return _handed_over(trainer)


def _handed_over(trainer: Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it and does not declare it
