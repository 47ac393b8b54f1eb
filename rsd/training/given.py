"""What a phase is given: its batches, and what it asks of the datamodule, which Lightning hands over without a type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from rsd.models.openvla.base import OpenVLABase
from rsd.space import Space
from rsd.types import Frame


class FrameBatch(TypedDict):
    """Frames, and the chunk that starts at each.

    Attributes:
        pictures: [B, M, S, S, 3], uint8, at the model's size.
        instructions: B of them.
        proprio: [B, P], float32, standard.
        actions: [B, T, A], float32, standard.
        space: Of a mixture: which of the datamodule's spaces a sample's numbers are of, [B], int64.
    """

    pictures: Tensor
    instructions: list[str]
    proprio: Tensor
    actions: Tensor
    space: NotRequired[Tensor]


class DataModule(Protocol):
    """What all phases ask for; after `setup`."""

    @property
    def space(self) -> Space:
        """What the numbers of actions and proprio mean."""

    def content_id(self) -> str:
        """What identifies the data that is trained on."""


class OfSpaces(DataModule, Protocol):
    """Data that may be a mixture: a batch's "space" counts `spaces`, of which `space` is the first."""

    @property
    def spaces(self) -> Sequence[Space]: ...


class Chunks(Protocol):
    """One split, without pictures: all chunks, standard, [N, T, A], and of a mixture the space of each, [N]."""

    @property
    def actions(self) -> Tensor: ...

    @property
    def space(self) -> Tensor | None: ...


class ChunkDataModule(OfSpaces, Protocol):
    """Batches are ChunkBatch."""

    @property
    def train(self) -> Chunks: ...

    @property
    def val(self) -> Chunks: ...


class Trajectory(Protocol):
    """One demonstration: standard actions, [n, A]."""

    @property
    def actions(self) -> np.ndarray: ...


class Episodes(Protocol):
    """One split of one data set.

    Attributes:
        trajectories: Of all splits.
        episodes: Numbers of those that are in this one.
    """

    @property
    def trajectories(self) -> Sequence[Trajectory]: ...

    @property
    def episodes(self) -> Sequence[int]: ...


class Frames(Protocol):
    """One split: items are `rsd.types.Frame`.

    Attributes:
        parts: One a space.
    """

    @property
    def parts(self) -> Sequence[Episodes]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Frame: ...

    def instructions(self) -> Mapping[str, str]:
        """Every instruction of all splits, and where it stands."""


class FrameDataModule(OfSpaces, Protocol):
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


def by_space(values: Tensor, functions: Sequence[Callable[[Tensor], Tensor]], space: Tensor | None) -> Tensor:
    """What the function of its space makes of each sample.

    Args:
        values: [B, ...].
        functions: One a space; each leaves the shape as it is.
        space: Which one, [B]; None where there is one space.
    """
    if space is None:
        return functions[0](values)
    index = space.to(values.device)
    result = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    for number, function in enumerate(functions):
        result[index == number] = function(values[index == number])
    return result


def median_actions(datamodule: FrameDataModule) -> Tensor:
    """The training actions' median in each dim, model space, [K, A]: what a model that has learned nothing says."""
    medians = []
    for part, space in zip(datamodule.train.parts, datamodule.spaces, strict=True):
        actions = np.concatenate([part.trajectories[index].actions for index in part.episodes])  # [n, A]
        medians.append(space.to_model(torch.from_numpy(np.median(actions, axis=0))))
    return torch.stack(medians)


def normalized_proprio(batch: FrameBatch, base: OpenVLABase, spaces: Sequence[Space]) -> Tensor:
    """Model space, [B, P]; of a mixture with each sample's space."""
    if "space" in batch:
        return by_space(batch["proprio"], [one.proprio_to_model for one in spaces], batch["space"])
    return base.normalized_proprio([*batch["proprio"].cpu().numpy()])


def of_sample(values: Tensor, space: Tensor | None) -> Tensor:
    """Of values a space, [K, A], each sample's, [B, 1, A]; [1, A] where there is one space."""
    return values if space is None else values[space.to(values.device)][:, None]


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
