"""The seam between models and decodings: logits of some stages given the stages before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, runtime_checkable

from torch import Tensor

from rsd.errors import RSDError
from rsd.types import Pass, Request


class NotFiniteError(RSDError, ValueError):
    """A part of the policy said NaN or infinity where a decoding reads numbers."""


class StageLogits(Protocol):
    """A target or draft bound to some observations."""

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        """Logits of stages start..stop-1.

        Args:
            known: Indices of the first n stages, [B, T, D, n], int64. Stage q reads the first min(q, n) of them only.

        Returns:
            [B, T, D, stop - start, L]; levels that an entry does not have are -inf.

        Raises:
            NotFiniteError: what it reads of the base model, or what it says, is NaN.
        """

    def of(self, rows: Tensor) -> StageLogits:
        """The same for some of the observations, [n] int64; nothing is computed for the others any more."""


@runtime_checkable
class Numbers(StageLogits, Protocol):
    """A target that knows its chunk as numbers, and so how near a code comes to it."""

    def error_bound(self, off: Tensor) -> Tensor:
        """Largest error of each action dim of what is refined greedily to this chunk, as it is executed: [B, A].

        Infinite for a chunk that lies outside of the tokenizer's grid, where no digits come near it.

        Args:
            off: How many levels each digit is away from the greedy one at most, [B, T, D, Q], int64.

        Raises:
            SettingError: the tokenizer's stages leave gaps.
        """


class Binder(Protocol):
    """A model and the place where it reads the base model."""

    def bind(self, looked: Pass, requests: Sequence[Request]) -> StageLogits:
        """For the observations of a pass, and what was asked about each; computes nothing yet."""


@dataclass(frozen=True)
class Absent:
    """The place of a model that the policy does not have. A decoding that asks for it is wrong about its needs."""

    role: str

    def bind(self, looked: Pass, requests: Sequence[Request]) -> Absent:
        return self

    def of(self, rows: Tensor) -> Absent:
        return self

    def __call__(self, known: Tensor, start: int, stop: int) -> NoReturn:
        raise LookupError(f"the decoding asks for a {self.role}, and the policy has none; give it one")


def require_finite(values: Tensor, what: str, missing: Tensor | None = None) -> Tensor:
    """The values themselves.

    Args:
        missing: Levels that do not exist, whose logits are -inf by right; broadcastable to `values`.

    Raises:
        NotFiniteError: some are NaN or infinite.
    """
    broken = ~values.isfinite()
    if bool((broken if missing is None else broken & ~missing).any()):
        raise NotFiniteError(f"{what} is NaN or infinite; check the weights and the dtype of the part that said it")
    return values
