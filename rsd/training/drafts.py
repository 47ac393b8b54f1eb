"""phase=draft at one point of the base model, or at several at once: draft.layer=3, draft.layer=[2,3,4].

Several drafts, in tokens or in numbers, read the same batches of one cache, and nothing else of one another: each has
its own loss, its own clipped gradient and its own draws, so that it becomes what it would have become alone, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeGuard, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from rsd.points import point_names
from rsd.settings import Length, Point, Points, checked
from rsd.training.numbers import NumberHeadModule
from rsd.training.stage_head import StageHeadModule
from rsd.training.steps import scheduled
from rsd.types import HiddenStateBatch


class _OneOfSeveral(LightningModule):
    """A draft that logs under the name of its point, with those that it is trained with."""

    point: str

    def __init__(self, all_of_them: LightningModule, **draft: Any) -> None:
        super().__init__(**draft)
        self._tell = all_of_them.log

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        self._tell(f"{self.point}/{name}", value)


class _TokensOfSeveral(_OneOfSeveral, StageHeadModule):
    """`StageHeadModule` among others."""


class _NumbersOfSeveral(_OneOfSeveral, NumberHeadModule):
    """`NumberHeadModule` among others."""


class DraftsModule(LightningModule):
    """Drafts at several points, from one pass over the cache.

    Args:
        one: Makes each of them.
        layer: The points, as `point_name` takes them; one that is named twice is trained once.
        draft: The rest of `StageHeadModule`'s or `NumberHeadModule`'s, the same for all.

    Attributes:
        points: Their names.
        report: Point to the metrics of its last validation.
    """

    @checked
    def __init__(
        self, one: Callable[..., LightningModule], *, layer: Annotated[Sequence[Point], Length()], **draft: Any
    ) -> None:
        super().__init__()
        self.points = point_names(layer)
        drafts = []
        drawn = torch.get_rng_state()
        for point in self.points:
            torch.set_rng_state(drawn)  # a learned tokenizer draws, too: for each draft what it would have alone
            drafts.append(one(self, layer=point, **draft))
        self.drafts = nn.ModuleList(drafts)

    @property
    def _each(self) -> list[_TokensOfSeveral | _NumbersOfSeveral]:
        return cast("list[_TokensOfSeveral | _NumbersOfSeveral]", list(self.drafts))

    def setup(self, stage: str) -> None:
        drawn = torch.get_rng_state()
        for draft in self._each:
            torch.set_rng_state(drawn)  # its first weights are those that it would have alone
            draft.trainer = self.trainer
            draft.setup(stage)

    def training_step(self, batch: HiddenStateBatch, batch_idx: int) -> Tensor:
        losses = torch.stack([draft.training_step(batch, batch_idx) for draft in self._each])
        self.log("train/loss", losses.mean(), prog_bar=True)
        return losses.sum()  # the gradient of each draft is that of its own loss

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, *_: Any, **__: Any) -> None:
        """To the trainer's norm, draft by draft."""
        if gradient_clip_val:
            for draft in self._each:
                nn.utils.clip_grad_norm_(draft.parameters(), gradient_clip_val)

    def validation_step(self, batch: HiddenStateBatch, batch_idx: int) -> None:
        for draft in self._each:
            draft.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        for draft in self._each:
            draft.on_validation_epoch_end()
        self.report = {point: draft.report for point, draft in zip(self.points, self._each, strict=True)}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        groups = [group for draft in self._each for group in draft.trained()]
        rate = self._each[0].learning_rate
        optimizer = torch.optim.AdamW(groups, lr=rate)
        return scheduled(optimizer, rate, self.trainer.max_steps)

    def on_fit_end(self) -> None:
        for draft in self._each:
            draft.on_fit_end()

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write each draft's checkpoint, in a folder of its point beside `directory`; return the metrics by point."""
        for point, draft in zip(self.points, self._each, strict=True):
            draft.export(directory.parent / point / directory.name, provenance)
        return self.report


def _are_several(layer: Points) -> TypeGuard[Sequence[Point]]:
    return isinstance(layer, Sequence) and not isinstance(layer, str)


class DraftModule(StageHeadModule):
    """A draft as `StageHeadModule` trains it, where `layer` is one point; of several points, a `DraftsModule`.

    Args:
        layer: A point, or several.
        draft: The rest of `StageHeadModule`'s.
    """

    def __new__(cls, *, layer: Points, **draft: Any) -> Any:
        """One class for conf/phase/draft.yaml, whatever was typed; what it makes of several points is none of it."""
        if _are_several(layer):
            return DraftsModule(_TokensOfSeveral, layer=layer, **draft)
        return super().__new__(cls)

    @checked
    def __init__(self, *, layer: Points, **draft: Any) -> None:
        super().__init__(layer=cast("Point", layer), **draft)


class NumbersModule(NumberHeadModule):
    """The same in numbers, as `NumberHeadModule` trains it."""

    def __new__(cls, *, layer: Points, **draft: Any) -> Any:
        """See `DraftModule`."""
        if _are_several(layer):
            return DraftsModule(_NumbersOfSeveral, layer=layer, **draft)
        return super().__new__(cls)

    @checked
    def __init__(self, *, layer: Points, **draft: Any) -> None:
        super().__init__(layer=cast("Point", layer), **draft)
