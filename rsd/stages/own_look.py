"""A draft with eyes of its own: a stage head on a small base model that sees the observation by itself.

It asks nothing of the policy's base model, so a decoding that is content with it costs that model nothing. What
surprises first: its pictures skip the JPEG round trip, of which nothing is left at its size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rsd.stages.head_at import BoundHead, HeadAt
from rsd.types import BaseModel, Pass, Request
from rsd.work import Stopwatch


@dataclass(frozen=True)
class OwnLook:
    """Binder of a head that reads a base model of its own.

    Attributes:
        eyes: The small base model.
        reader: The head, at a point of `eyes`.
    """

    eyes: BaseModel
    reader: HeadAt

    def bind(self, looked: Pass, requests: Sequence[Request]) -> BoundLook:
        seen = [dataclasses.replace(request.observation, stored=True) for request in requests]
        reader = dataclasses.replace(self.reader, source=f"the {self.reader.role}'s own base model")
        return BoundLook(reader.bind(self.eyes.look(seen), requests), looked.clock, self.reader.role)


@dataclass(frozen=True)
class BoundLook:
    """StageLogits of a head on its own pass; all time, that of its eyes included, is booked under its role."""

    head: BoundHead
    clock: Stopwatch
    role: str

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        with self.clock.part(self.role):
            return self.head(known, start, stop)

    def of(self, rows: Tensor) -> BoundLook:
        return BoundLook(self.head.of(rows), self.clock, self.role)
