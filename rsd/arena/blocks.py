"""The project's own tokenizers as contestants: blocks [T, D, Q] of rsd/tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd.arena.contract import Written
from rsd.arena.training import train
from rsd.tokenizer import ActionTokenizer

PREFIX_WEIGHT = 0.02  # of the error of a random prefix beside the full code's: conf/phase/rfsq.yaml


class Blocks:
    """An `ActionTokenizer` behind the contract; trained as phase=rfsq does where it has weights.

    Args:
        max_steps: Optimizer steps unless `fit` is told others; 0 of a tokenizer that is fitted.
    """

    def __init__(self, name: str, idea: str, tokenizer: ActionTokenizer, max_steps: int) -> None:
        self.name, self.idea, self.tokenizer, self._max_steps = name, idea, tokenizer, max_steps
        self.num_stages = tokenizer.code_shape.num_stages

    def fit(self, chunks: Tensor, *, seed: int, max_steps: int | None) -> int:
        self.tokenizer.fit(chunks)
        weights = [one for one in self.tokenizer.parameters() if one.requires_grad]
        steps = 0 if not weights else self._max_steps if max_steps is None else max_steps
        if steps:
            train(weights, self._loss, chunks, steps=steps, seed=seed)
        self.tokenizer.eval().requires_grad_(False)
        return steps

    def _loss(self, chunks: Tensor, draw: torch.Generator) -> Tensor:
        depth = int(torch.randint(1, self.num_stages + 1, (), generator=draw))
        full, prefix = self.tokenizer(chunks) - chunks, self.tokenizer(chunks, depth) - chunks
        return full.square().mean() + PREFIX_WEIGHT * prefix.square().mean()

    def encode(self, chunks: Tensor) -> Tensor:
        return self.tokenizer.encode(chunks)

    def decode(self, code: Tensor, depth: int) -> Tensor:
        return self.tokenizer.decode(code[..., :depth])

    def written(self, code: Tensor) -> Written:
        levels = torch.tensor(self.tokenizer.code_shape.levels)  # [T, D, Q]
        stages = torch.arange(self.num_stages).expand(levels.shape)
        used = levels > 1
        return Written(code[:, used], stages[used], levels[used])

    def tail_bound(self, depth: int) -> Tensor | None:
        return self.tokenizer.action_bound(depth)
