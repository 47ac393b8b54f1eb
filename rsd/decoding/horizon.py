"""How much of a chunk is executed: the controls that every way of asking the base model less has to beat.

`Hold` repeats the chunk's last action, which costs nothing; `FixedHorizon` executes another number of steps. What
surprises first: neither changes what is decoded, so both stand outside of any other decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.decoding.decoding import Decoding, asks_tokens
from rsd.decoding.past import Past
from rsd.decoding.sampling import Noise
from rsd.errors import SettingError
from rsd.settings import Count, Natural, checked
from rsd.stages import StageLogits
from rsd.types import Code


@dataclass(frozen=True, kw_only=True)
class _Horizon:
    """Decodes as `full` does.

    Attributes:
        full: The decoding.
    """

    full: Decoding

    def __post_init__(self) -> None:
        if not hasattr(self.full, "run"):
            raise SettingError(f"full {self.full!r}, expected a decoding")

    @property
    def needs(self) -> frozenset[str]:
        return self.full.needs

    @property
    def num_draft_stages(self) -> int | None:
        return self.full.num_draft_stages

    @property
    def asks_tokens(self) -> str | None:
        """See `asks_tokens`."""
        return asks_tokens(self.full)

    def steps(self, chunk_length: int) -> int:
        """Steps to execute of a chunk of so many."""
        raise NotImplementedError

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        code = self.full.run(target, draft, levels, noise, past)
        code.num_steps = torch.full_like(code.depth, self.steps(len(levels)))
        return code


@checked
@dataclass(frozen=True, kw_only=True)
class Hold(_Horizon):
    """The whole chunk, and its last action some more times.

    Attributes:
        num_repeats: How many more times, 0 or more.
    """

    num_repeats: Natural

    def steps(self, chunk_length: int) -> int:
        return chunk_length + self.num_repeats


@checked
@dataclass(frozen=True, kw_only=True)
class FixedHorizon(_Horizon):
    """The first steps of a chunk.

    Attributes:
        num_steps: How many, 1..T.
    """

    num_steps: Count

    def steps(self, chunk_length: int) -> int:
        if not 1 <= self.num_steps <= chunk_length:
            raise SettingError(f"num_steps {self.num_steps}, expected 1..{chunk_length}, the steps of a chunk")
        return self.num_steps


def check_horizon(decoding: Decoding | None, chunk_length: int) -> None:
    """See that a decoding executes no more steps than its chunks have, before the first one.

    Raises:
        SettingError: it does.
    """
    while decoding is not None:
        if isinstance(decoding, _Horizon):
            decoding.steps(chunk_length)
        decoding = getattr(decoding, "full", None)  # what it stands outside of
