"""Drafts that nobody trained: the floor and the ceiling that a trained one is held against.

`RandomDraft` knows nothing; `oracle` knows what the base model itself would do, and costs what that costs. What
surprises first: a random draft is as sure of one token as of another, so a gate on likelihood has to be opened
(threshold=-inf) to execute what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.errors import SettingError
from rsd.settings import checked
from rsd.stages.base_chunk import BaseChunk
from rsd.tokenizer import ActionTokenizer
from rsd.types import CodeShape, Pass, Request


@dataclass(frozen=True)
class RandomDraft:
    """Binder and StageLogits: logits drawn from each request's seed.

    Attributes:
        code_shape: Of the tokenizer.
        device: Where logits are wanted.
        seeds: Of the requests that it is bound to.
    """

    code_shape: CodeShape
    device: torch.device
    seeds: tuple[int, ...] = ()

    def bind(self, looked: Pass, requests: Sequence[Request]) -> RandomDraft:
        return RandomDraft(self.code_shape, self.device, tuple(request.seed for request in requests))

    def of(self, rows: Tensor) -> RandomDraft:
        return RandomDraft(self.code_shape, self.device, tuple(self.seeds[row] for row in rows.tolist()))

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        """[B, T, D, stop - start, L]; what is known makes no difference."""
        levels = torch.tensor(self.code_shape.levels)[..., start:stop]  # [T, D, n]
        rows = []
        for seed in self.seeds:
            stages = [
                torch.rand(*levels.shape[:2], self.code_shape.num_levels, generator=_generator(seed, stage))
                for stage in range(start, stop)
            ]
            rows.append(torch.stack(stages, dim=2))  # [T, D, n, L]
        missing = torch.arange(self.code_shape.num_levels) >= levels[..., None]
        return torch.stack(rows).masked_fill(missing, -torch.inf).to(self.device)


def _generator(seed: int, stage: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + stage * 0x9E3779B97F4A7C15) % 2**63)


@checked
def refuse_training(name: str, **_: object) -> None:
    """Raise SettingError: a control has nothing to train."""
    raise SettingError(f"draft={name} is a control, and there is nothing to train; train draft=early or draft=micro")


def random(tokenizer: ActionTokenizer) -> RandomDraft:
    """The floor; conf/draft/random.yaml."""
    return RandomDraft(tokenizer.code_shape, tokenizer.quantizer.levels.device)


def oracle(tokenizer: ActionTokenizer) -> BaseChunk:
    """The ceiling; conf/draft/oracle.yaml."""
    return BaseChunk(tokenizer)
