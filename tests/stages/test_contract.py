"""Law 7: a head at a point, the base model's chunk and a table keep what a binder promises."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rsd.stages import BaseChunk, HeadAt
from rsd.stages.logits import require_finite
from rsd.types import Pass
from tests.decoding.tables import LEVELS, L, PerRow, TableModel
from tests.stages.contract import BinderContract
from tests.stages.test_head import make_head
from tests.tokenizer.test_tokenizers import rfsq, transform


class OfTokenizer(BinderContract):
    """For both kinds of code: a full one, and one with entries that have no token."""

    @pytest.fixture(params=[rfsq, transform], ids=["rfsq", "transform"])
    def tokenizer(self, request):
        return request.param().eval()

    @pytest.fixture
    def levels(self, tokenizer):
        return torch.tensor(tokenizer.code_shape.levels)


class TestHeadAt(OfTokenizer):
    @pytest.fixture
    def binder(self, tokenizer):
        return HeadAt(make_head(tokenizer, hidden_dim=16), "layer.2", "target")


class TestBaseChunk(OfTokenizer):
    @pytest.fixture
    def binder(self, tokenizer):
        return BaseChunk(tokenizer)


@dataclass(frozen=True)
class TableBinder:
    """A pseudo-random table for each row, which one depends on the signs of the row's state."""

    levels: Tensor
    point: str = "layer.1"

    def bind(self, looked, memory):
        return BoundTable(self, looked)


class BoundTable:
    def __init__(self, place: TableBinder, looked: Pass, tables: PerRow | None = None) -> None:
        self._place, self._looked, self._tables = place, looked, tables

    def __call__(self, known, start, stop):
        if self._tables is None:
            states = require_finite(self._looked.at(self._place.point), "the base model's state")
            signs = (states.flatten(1)[:, :16] > 0).long()  # [B, 16]
            self._tables = PerRow([TableModel(seed) for seed in (signs * 2 ** torch.arange(16)).sum(dim=1).tolist()])
        missing = torch.arange(L) >= self._place.levels[..., start:stop, None]
        return self._tables(known, start, stop).masked_fill(missing, -torch.inf)

    def of(self, rows):
        tables = None if self._tables is None else self._tables.of(rows)
        return BoundTable(self._place, self._looked.of(rows), tables)


class TestTable(BinderContract):
    @pytest.fixture
    def levels(self):
        levels = LEVELS.clone()
        levels[1, :, 2:] = 3
        return levels

    @pytest.fixture
    def binder(self, levels):
        return TableBinder(levels)
