"""Two drafts at two points of the base model: the later one drafts, the earlier one says whether it agrees.

How far two codes are apart is said of what they decode to, which a decoding cannot know, so the bound pair measures it.
What surprises first: the pass stops at the earlier point also when the later draft is asked first, since a pass that
has gone by a point has to begin anew to read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from rsd.stages.head_at import BoundHead, HeadAt
from rsd.stages.logits import StageLogits, require_finite
from rsd.tokenizer import ActionTokenizer
from rsd.types import Pass, Request


@runtime_checkable
class Twofold(StageLogits, Protocol):
    """A draft that has another one at an earlier point."""

    @property
    def earlier(self) -> StageLogits:
        """The other one, for the same observations."""

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """How far two codes are apart, [B]: mean absolute difference of their chunks, model space.

        Args:
            one, other: Indices of the first m stages, [B, T, D, m], int64.

        Raises:
            NotFiniteError: what they decode to is NaN or infinite.
        """


@dataclass(frozen=True)
class TwoExits:
    """Binder of both.

    Attributes:
        earlier, later: Heads at two points, in the order in which the base model comes by.
        tokenizer: On the base model's device.
    """

    earlier: HeadAt
    later: HeadAt
    tokenizer: ActionTokenizer

    def bind(self, looked: Pass, requests: Sequence[Request]) -> BoundExits:
        return BoundExits(self, looked, self.earlier.bind(looked, requests), self.later.bind(looked, requests))


class BoundExits:
    """`Twofold` of two heads for the observations of one pass."""

    def __init__(self, place: TwoExits, looked: Pass, earlier: BoundHead, later: BoundHead) -> None:
        self._place, self._looked, self._later = place, looked, later
        self.earlier = earlier

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        self._looked.at(self._place.earlier.point)
        return self._later(known, start, stop)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        with self._looked.clock.part("tokenizer"):
            chunks = [self._place.tokenizer.decode(indices) for indices in (one, other)]  # [B, T, A] each
            apart = (chunks[0] - chunks[1]).abs().mean(dim=(1, 2))  # [B]
            return require_finite(apart, "what the tokenizer makes of the draft's or the earlier draft's stages")

    def of(self, rows: Tensor) -> BoundExits:
        looked = self._looked.of(rows)  # one for both, or the layers up to the earlier point would be run twice
        return BoundExits(self._place, looked, self.earlier.of(rows, looked), self._later.of(rows, looked))
