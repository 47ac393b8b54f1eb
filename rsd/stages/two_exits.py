"""Two drafts at two points of the base model: the later one drafts, the earlier one says whether it agrees.

Each may say tokens or numbers. How far two answers are apart is said of their chunks, which a decoding cannot know of
tokens, so the bound pair measures it.
What surprises first: the pass stops at the earlier point also when the later draft is asked first, since a pass that
has gone by a point has to begin anew to read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from rsd.stages.base_chunk import executed
from rsd.stages.head_at import BoundHead, HeadAt
from rsd.stages.logits import StageLogits, require_finite
from rsd.stages.numbers import BoundNumbers, NumbersAt
from rsd.tokenizer import ActionTokenizer
from rsd.types import Code, Pass, Request


@runtime_checkable
class Twofold(StageLogits, Protocol):
    """A draft that has another one at an earlier point."""

    @property
    def earlier(self) -> StageLogits:
        """The other one, for the same observations."""

    def distance(self, one: Code, other: Code) -> Tensor:
        """How far two answers are apart, [B]: mean absolute difference of their chunks, model space.

        Args:
            one, other: Of a draft each, all rows of the same depth.

        Raises:
            NotFiniteError: what they decode to is NaN or infinite.
        """


@dataclass(frozen=True)
class TwoExits:
    """Binder of both.

    Attributes:
        earlier, later: Drafts at two points, in the order in which the base model comes by.
        tokenizer: On the base model's device; None where both say numbers.
        grippers, between: Of the base model's chunks; see `executed`.
    """

    earlier: HeadAt | NumbersAt
    later: HeadAt | NumbersAt
    tokenizer: ActionTokenizer | None
    grippers: Sequence[int] = (-1,)
    between: bool = False

    def bind(self, looked: Pass, requests: Sequence[Request]) -> BoundExits:
        bound = BoundExits if isinstance(self.later, HeadAt) else BoundNumberExits
        return bound(self, looked, self.earlier.bind(looked, requests), self.later.bind(looked, requests))


class BoundExits:
    """`Twofold` of two drafts for the observations of one pass."""

    def __init__(
        self, place: TwoExits, looked: Pass, earlier: BoundHead | BoundNumbers, later: BoundHead | BoundNumbers
    ) -> None:
        self._place, self._looked, self._later = place, looked, later
        self.earlier = earlier

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        self._looked.at(self._place.earlier.point)
        return self._later(known, start, stop)

    def distance(self, one: Code, other: Code) -> Tensor:
        with self._looked.clock.part("tokenizer"):
            chunks = [self._executed(code) for code in (one, other)]  # [B, T, A] each
            apart = (chunks[0] - chunks[1]).abs().mean(dim=(1, 2))  # [B]
            return require_finite(apart, "what the tokenizer makes of the draft's or the earlier draft's stages")

    def _executed(self, code: Code) -> Tensor:
        if code.chunk is not None:
            return executed(code.chunk, self._place.grippers, self._place.between)
        assert self._place.tokenizer is not None  # whoever says tokens has one
        return self._place.tokenizer.decode(code.indices[..., : int(code.depth[0])])

    def of(self, rows: Tensor) -> Self:
        looked = self._looked.of(rows)  # one for both, or the layers up to the earlier point would be run twice
        return type(self)(self._place, looked, self.earlier.of(rows, looked), self._later.of(rows, looked))


class BoundNumberExits(BoundExits):
    """The same where the later draft says numbers: `InNumbers`, too."""

    def chunk(self) -> Tensor:
        assert isinstance(self._later, BoundNumbers)
        self._looked.at(self._place.earlier.point)
        return self._later.chunk()
