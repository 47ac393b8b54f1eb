"""A mixture of data sets as one Lightning datamodule over the datamodules of its members.

Every member is what it would be alone: its own layout, statistics and Space. A batch has "space", the index of the
Space that each sample's actions and proprio are to be normalised with, [B], int64. What surprises first: a batch is
collated member by member and put together, so all that members have in a batch must be of one shape; that is checked
before anything is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from rsd.data import DataError
from rsd.data.datamodules import ChunkDataModule, FrameDataModule, RLDSDataModule
from rsd.data.mixture import EpochMixture, check_weights
from rsd.data.resident_frames import ResidentFrameDataModule
from rsd.data.shuffle import Fetch, ShuffledLoader, batch_loader, ranks
from rsd.errors import SettingError
from rsd.processes import say
from rsd.space import Space
from rsd.types import Frame

REMEDIES = {
    "action dims": "mix data sets with the same action, or give them one layout: data.members.NAME={weight: 1.0, "
    "action: [FEATURE, …]}",
    "gripper dims": "give them one layout: data.members.NAME={weight: 1.0, gripper: {dims: [6]}}",
    "proprio dims": "set model.backbone.use_proprio=false, or give them one layout: data.members.NAME={weight: 1.0, "
    "proprio: [FEATURE, …]}",
}
MIXABLE = (ChunkDataModule, FrameDataModule, ResidentFrameDataModule)


class MixedSplit:
    """One split of all members, their rows numbered one after another.

    Attributes:
        parts: The members' data sets.
        order: Which row is whose.
    """

    def __init__(self, parts: Sequence[Any], order: EpochMixture, *, weighted: bool) -> None:
        """Put data sets together.

        Args:
            weighted: Whether `actions` are drawn by weight, as the first epoch does, or are those of every row.
        """
        self.parts, self.order, self.weighted = list(parts), order, weighted

    def __len__(self) -> int:
        return int(self.order.starts[-1])

    def __getitem__(self, row: int) -> Frame:
        """One frame, of whichever member it is."""
        ((member, _, (own,)),) = self.order.split([row])
        frame: Frame = self.parts[member][int(own)]
        return frame

    @functools.cached_property
    def rows(self) -> Tensor:
        """Those of `actions`, int64."""
        return torch.from_numpy(self.order.order() if self.weighted else np.arange(len(self)))

    @property
    def actions(self) -> Tensor:
        """Standard chunks of `rows`, [N, T, A]; only of members that hold theirs in memory."""
        return torch.cat([part.actions for part in self.parts])[self.rows]

    @property
    def space(self) -> Tensor:
        """Index of the Space of each of `rows`, [N], int64."""
        return torch.repeat_interleave(torch.arange(len(self.parts)), torch.tensor(self.order.sizes))[self.rows]

    def instructions(self) -> dict[str, str]:
        """Every instruction of all members, and where it stands, for people."""
        where: dict[str, list[str]] = {}
        for part in self.parts:
            for text, place in part.instructions().items():
                where.setdefault(text, []).append(f"{part.name}: {place}")
        return {text: "; ".join(places) for text, places in where.items()}


class MixtureDataModule(LightningDataModule):
    """Batches that are drawn from several data sets by weight.

    Attributes:
        train, val: After `setup`: all members' splits. Validation has every row of every member once.
        spaces: After `setup`: one for each member, in their order; the batch's "space" counts them.
    """

    def __init__(
        self, *, members: Mapping[str, RLDSDataModule], weights: Mapping[str, object], balance_weights: bool = True
    ) -> None:
        """Put datamodules together.

        Args:
            members: Name in data.members → the datamodule of that data set alone; all of one kind, with one batch size.
            weights: Of each; those of weight 0 are left out.
            balance_weights: Whether a weight multiplies the size of its data set; see rsd/data/mixture.py.

        Raises:
            SettingError: weights that nothing can be drawn with, or members of a kind that cannot be mixed.
        """
        super().__init__()
        self.weights = check_weights(weights)
        self.left_out = [name for name in members if name not in self.weights]
        self.members = {name: member for name, member in members.items() if name in self.weights}
        for member in self.members.values():
            if type(member) not in MIXABLE:
                raise SettingError(
                    f"data=mixture does not go with this phase, whose data come from {type(member).__name__}; mixtures "
                    "are for phase=rfsq, oft, oft_gpu, and the fine-tunings of OpenVLA; set data= to one data set"
                )
        first = next(iter(self.members.values()))
        self.batch_size, self.seed = first.batch_size, first.seed
        self.balance_weights = balance_weights

    @property
    def space(self) -> Space:
        """The first member's."""
        return self.spaces[0]

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train"):
            return
        if self.left_out:
            say(f"note: data.members {', '.join(self.left_out)} have weight 0 and are not read")
        for name, member in self.members.items():
            member.trainer = self.trainer
            try:
                member.setup(stage)
            except DataError as error:
                raise DataError(f"member {name!r} of the mixture: {error} (as data.members.{name}.KEY)") from error
        self.spaces = [member.space for member in self.members.values()]
        self._check_together()
        weights = list(self.weights.values())
        train, val = ([getattr(one, split) for one in self.members.values()] for split in ("train", "val"))
        orders = [member.order() for member in self.members.values()]
        self.order = EpochMixture(orders, weights, self.seed, self.balance_weights)
        self.train = MixedSplit(train, self.order, weighted=True)
        every = EpochMixture([len(part) for part in val], [1.0] * len(val), self.seed)
        self.val = MixedSplit(val, every, weighted=False)
        for name, part, share in zip(self.members, train, self.order.shares, strict=True):
            weight = self.weights[name]
            say(f"mixture: {name} is {100 * share:.3g} % of what is drawn ({len(part)} chunks, weight {weight:g})")

    def _check_together(self) -> None:
        """Raise DataError unless all members' actions and proprio fit into one batch, and their names differ."""
        names, spaces = list(self.members), self.spaces
        same = [space.name for space in spaces]
        if len(set(same)) < len(same):
            twice = next(name for name in same if same.count(name) > 1)
            both = [name for name, own in zip(names, same, strict=True) if own == twice]
            raise DataError(
                f"data.members {' and '.join(both)} are the same data set, {twice!r}, so their statistics would have "
                "one unnorm_key; leave one out, or give it the sum of the weights"
            )
        found: dict[str, list[Any]] = {
            "action dims": [len(space.action) for space in spaces],
            "gripper dims": [list(space.action.grippers) for space in spaces],
        }
        if self._has_proprio():
            found["proprio dims"] = [0 if space.proprio is None else len(space.proprio) for space in spaces]
        for what, values in found.items():
            if any(value != values[0] for value in values):
                listed = ", ".join(f"{name} has {value}" for name, value in zip(names, values, strict=True))
                raise DataError(f"members of the mixture have different {what}: {listed}; {REMEDIES[what]}")

    def _has_proprio(self) -> bool:
        """Whether the model reads proprio; where not, batches have none."""
        first = next(iter(self.members.values()))
        return isinstance(first, FrameDataModule) and first.proprio

    def content_id(self) -> str:
        """What identifies the training split's items and how often they are drawn; after `setup`."""
        weights = ",".join(f"{weight:g}" for weight in self.weights.values())
        ids = "+".join(member.content_id() for member in self.members.values())
        return f"mixture {weights} balanced={self.balance_weights} {ids}"

    def train_dataloader(self) -> ShuffledLoader:
        first = next(iter(self.members.values()))
        return ShuffledLoader(
            self.order,
            self._fetch("train"),
            batch_size=self.batch_size,
            num_workers=first.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> DataLoader:
        first = next(iter(self.members.values()))
        return batch_loader(range(len(self.val)), self._fetch("val"), self.batch_size, first.num_workers)

    def _fetch(self, split: str) -> Fetch:
        """What makes a batch of rows of `train` or `val`."""
        fetches = [member.fetch(getattr(member, split)) for member in self.members.values()]
        without = () if self._has_proprio() else ("proprio",)  # whose widths may differ
        return functools.partial(mixed_batch, order=getattr(self, split).order, fetches=fetches, without=without)


def mixed_batch(
    rows: Sequence[int], order: EpochMixture, fetches: Sequence[Fetch], without: Sequence[str] = ()
) -> dict[str, Any]:
    """One batch of rows of several data sets, in the order of `rows`, and each row's "space", [B], int64."""
    batch: dict[str, Any] = {"space": torch.empty(len(rows), dtype=torch.int64)}
    for member, places, own in order.split(rows):
        batch["space"][places] = member
        fetched = fetches[member](own.tolist())
        for name, values in ((name, fetched[name]) for name in fetched if name not in without):
            _put(batch, name, values, places, len(rows))
    return batch


def _put(batch: dict[str, Any], name: str, values: Any, places: np.ndarray, size: int) -> None:
    """Put one member's entries, a tensor or a list, at their places in the batch."""
    if isinstance(values, Tensor):
        if name not in batch:
            batch[name] = torch.empty((size, *values.shape[1:]), dtype=values.dtype, device=values.device)
        batch[name][torch.as_tensor(places, device=values.device)] = values
        return
    entries = batch.setdefault(name, [None] * size)
    for place, value in zip(places.tolist(), values, strict=True):
        entries[place] = value
