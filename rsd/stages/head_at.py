"""A trained stage head at a point of the base model: the trained target, or a draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rsd.stages.head import StageHead
from rsd.stages.logits import require_finite
from rsd.types import Pass, Request


@dataclass(frozen=True)
class HeadAt:
    """Binder of a StageHead.

    Attributes:
        head: On the base model's device.
        point: Name of the point whose states it reads, e.g. "layer.3".
        role: "target" or "draft": for messages, and the name that its time is booked under.
        source: Whose states these are, for messages.
    """

    head: StageHead
    point: str
    role: str
    source: str = "the base model"

    def bind(self, looked: Pass, requests: Sequence[Request]) -> BoundHead:
        return BoundHead(self, looked)


@dataclass(frozen=True)
class HeadLogits:
    """StageLogits of a head whose features are there, [B, T, W]."""

    head: StageHead
    features: Tensor

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        return self.head(self.features, known, start, stop)

    def of(self, rows: Tensor) -> HeadLogits:
        return HeadLogits(self.head, self.features[rows])


class BoundHead:
    """StageLogits of a head for the observations of a pass; see `rsd.stages.logits`."""

    def __init__(self, place: HeadAt, looked: Pass, logits: HeadLogits | None = None) -> None:
        self._place, self._looked, self._logits = place, looked, logits

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        place = self._place
        with self._looked.clock.part(place.role):
            if self._logits is None:
                states = require_finite(self._looked.at(place.point), f"{place.source}'s state {place.point!r}")
                self._logits = HeadLogits(place.head, place.head.features(states))
            logits = self._logits(known, start, stop)
            missing = place.head.missing[..., start:stop, :]  # [T, D, q, L]
            return require_finite(logits, f"what the {place.role} says of stages {start}..{stop - 1}", missing)

    def of(self, rows: Tensor, looked: Pass | None = None) -> BoundHead:
        """See `StageLogits.of`; `looked` is their part of the pass, where somebody else goes on with it, too."""
        logits = None if self._logits is None else self._logits.of(rows)
        return BoundHead(self._place, self._looked.of(rows) if looked is None else looked, logits)
