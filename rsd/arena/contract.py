"""The one contract of all contestants: chunks ↔ integers. Nothing about a chunk enters but through its integers.

What surprises first: a code is whatever the contestant writes (a block, lists of unequal length), so that throughput
is its own; `written` lays it out as a table for counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Written:
    """Codes as a table.

    Attributes:
        tokens: [N, K], int64; -1 where a chunk has no token.
        stages: Stage of each column, [K], int64, 0..Q-1.
        levels: Values that each column's tokens can take, [K], int64, above 1.
        aligned: Whether a column means the same in every chunk; with byte pairs it does not.
    """

    tokens: Tensor
    stages: Tensor
    levels: Tensor
    aligned: bool = True


class Contestant(Protocol):
    """An action tokenizer in the arena.

    Attributes:
        name: Short, of files and rows.
        idea: In a few words.
        num_stages: Q; a code of one stage decodes as a whole only.
    """

    name: str
    idea: str
    num_stages: int

    def fit(self, chunks: Tensor, *, seed: int, max_steps: int | None) -> int:
        """Take constants, or train, on chunks [N, T, A] in model space; returns the optimizer steps that it took.

        Args:
            max_steps: Optimizer steps of one that is trained; None takes its own number.
        """

    def encode(self, chunks: Tensor) -> Any:
        """Integers of chunks [N, T, A], float32, model space."""

    def decode(self, code: Any, depth: int) -> Tensor:
        """Chunks [N, T, A], float32, of the first `depth` stages of what `encode` returned."""

    def written(self, code: Any) -> Written:
        """The same integers as a table."""

    def tail_bound(self, depth: int) -> Tensor | None:
        """Largest change of each entry that stages after `depth` can make, [T, A]; None where nobody can say."""
