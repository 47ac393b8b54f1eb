"""Models that are tables: logits made up from the stages before, without a network; small enough to check by hand."""

from __future__ import annotations

import torch

from rsd.decoding import DRAFT, Noise
from rsd.stages import Absent

T, D, Q, L = 2, 3, 4, 5
LEVELS = torch.full((T, D, Q), L)
NOBODY = Absent(DRAFT)


class TableModel:
    """A stage-causal model: logits of stage q are a fixed pseudo-random function of the stages before q."""

    def __init__(self, seed: int, agree_with: TableModel | None = None, rate: float = 0.0, flat: float = 1.0):
        self.seed, self.agree_with, self.rate, self.flat = seed, agree_with, rate, flat
        self.calls = 0

    def _stage(self, prefix: torch.Tensor, stage: int) -> torch.Tensor:
        rows = []
        for sample in prefix:
            key = hash((self.seed, stage, tuple(sample.flatten().tolist()))) % (2**31)
            own = torch.randn(T, D, L, generator=torch.Generator().manual_seed(key)) / self.flat
            if self.agree_with is not None:
                other = self.agree_with._stage(sample[None], stage)[0]
                same = torch.rand(T, D, 1, generator=torch.Generator().manual_seed(key + 1)) < self.rate
                own = torch.where(same, other, own)
            rows.append(own)
        return torch.stack(rows)  # [B, T, D, L]

    def __call__(self, known: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        self.calls += 1
        return torch.stack([self._stage(known[..., : min(q, known.shape[-1])], q) for q in range(start, stop)], dim=-2)

    def of(self, rows: torch.Tensor) -> TableModel:
        return self  # all rows are one function


class Function:
    """Logits from a function of (known, start, stop) that is the same for all rows."""

    def __init__(self, function):
        self.function = function

    def __call__(self, known, start, stop):
        return self.function(known, start, stop)

    def of(self, rows):
        return self


class PerRow:
    """Row i is answered by model i.

    Attributes:
        asked: Numbers of the rows in each call, also of those that `of` has made.
    """

    def __init__(self, models, numbers=None, asked=None):
        self.models, self.asked = models, [] if asked is None else asked
        self.numbers = list(range(len(models))) if numbers is None else numbers

    def __call__(self, known, start, stop):
        self.asked.append(self.numbers)
        return torch.cat([one(known[i : i + 1], start, stop) for i, one in enumerate(self.models)])

    def of(self, rows):
        picked = rows.tolist()
        return PerRow([self.models[i] for i in picked], [self.numbers[i] for i in picked], self.asked)


class Pair:
    """A draft with an earlier one; how far apart two codes are is the mean difference of their levels.

    Attributes:
        order: Which of them was asked, call by call.
    """

    def __init__(self, earlier, later, order=None):
        self.order = [] if order is None else order
        self._models = earlier, later
        self.earlier = Function(lambda *asked: self._ask("earlier", earlier, asked))

    def __call__(self, *asked):
        return self._ask("later", self._models[1], asked)

    def _ask(self, name, model, asked):
        self.order.append(name)
        return model(*asked)

    def distance(self, one, other):
        stages = [code.indices[..., : int(code.depth[0])] for code in (one, other)]  # [B, T, D, m] each
        return (stages[0] - stages[1]).abs().float().mean(dim=(1, 2, 3))

    def of(self, rows):
        return Pair(*(one.of(rows) for one in self._models), self.order)


def run(decoding, target=NOBODY, draft=NOBODY, seeds=(0,), levels=LEVELS, past=None):
    return decoding.run(target, draft, levels, Noise(list(seeds)), past)


def four_models():
    """A target, and a draft that is right for row 0, adversarial for row 1, half right for row 2, unsure for row 3."""
    target = TableModel(seed=11)
    half, unsure = TableModel(5, agree_with=target, rate=0.9), TableModel(6, flat=8.0)
    return PerRow([target] * 4), PerRow([target, Function(lambda *asked: -target(*asked)), half, unsure])
