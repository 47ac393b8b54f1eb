"""What every binder must do; a test class inherits this and provides `binder` and `levels`.

class TestMyBinder(BinderContract):
    @pytest.fixture
    def levels(self): ...  # of the tokenizer's code, [T, D, Q]
    @pytest.fixture
    def binder(self, levels): ...
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd.stages import Binder, NotFiniteError, StageLogits
from rsd.types import Observation, Request
from tests.data.fake_base import LinearBase, P

BATCH = 3
CLOSE = 1e-4  # of logits in batches of different sizes


def observations() -> list[Observation]:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (BATCH, 2, 8, 8, 3), dtype=np.uint8)
    return [
        Observation(dict(zip(LinearBase.views, both, strict=True)), random.normal(size=P), "reach") for both in pictures
    ]


def asked() -> list[Request]:
    return [Request(observation, seed) for seed, observation in enumerate(observations())]


class BinderContract:
    """Over the linear fake, whose states are [56, 16] behind each of four layers, and whose chunk is [8, 7]."""

    @pytest.fixture
    def levels(self) -> Tensor:
        raise NotImplementedError

    @pytest.fixture
    def binder(self, levels: Tensor) -> Binder:
        raise NotImplementedError

    @pytest.fixture
    def looked(self):
        return LinearBase().look(observations())

    @pytest.fixture
    def bound(self, binder, looked) -> StageLogits:
        return binder.bind(looked, asked())

    @pytest.fixture
    def code(self, levels) -> Tensor:
        """Some code of each row, [B, T, D, Q]."""
        return self.some_code(levels, seed=0)

    @staticmethod
    def some_code(levels: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(BATCH, *levels.shape, generator=generator) * levels).long().minimum(levels - 1)

    def test_nothing_is_computed_before_the_first_call_and_the_states_only_once(self, bound, looked, code):
        bound.of(torch.tensor([0, 2]))
        assert int(looked.work.base_layers.sum()) == int(looked.work.pictures_prepared.sum()) == 0
        with torch.no_grad():
            first = bound(code[..., :0], 0, 1)
            account = [looked.work.row(row) for row in range(BATCH)]
            assert all(one["base_layers"] > 0 for one in account)
            assert torch.equal(bound(code[..., :0], 0, 1), first)
            bound(code[..., :1], 1, 2)
        assert [looked.work.row(row) for row in range(BATCH)] == account

    @torch.no_grad()
    def test_logits_have_their_shape_and_exist_where_levels_do(self, bound, code, levels):
        num_stages, num_levels = levels.shape[-1], int(levels.max())
        for start, stop in ((0, 1), (1, num_stages), (0, num_stages)):
            logits = bound(code[..., :start], start, stop)
            assert logits.shape == (BATCH, *levels.shape[:2], stop - start, num_levels)
            exists = torch.arange(num_levels) < levels[..., start:stop, None]
            assert torch.equal(logits.isfinite(), exists.expand_as(logits))
            assert (logits[:, ~exists] == -torch.inf).all()

    @torch.no_grad()
    def test_changing_later_stages_never_changes_earlier_logits(self, bound, code, levels):
        """Law 5."""
        num_stages = levels.shape[-1]
        logits = bound(code, 0, num_stages)
        for stage in range(num_stages):
            other = code.clone()
            other[..., stage:] = self.some_code(levels, seed=stage + 1)[..., stage:]
            assert torch.equal(bound(other, 0, num_stages)[..., : stage + 1, :], logits[..., : stage + 1, :])

    @torch.no_grad()
    def test_a_stage_that_is_known_is_read(self, bound, code, levels):
        other = (code + 1) % levels
        assert not torch.equal(bound(other[..., :1], 1, 2), bound(code[..., :1], 1, 2))

    @torch.no_grad()
    def test_asking_for_one_stage_is_asking_for_all(self, bound, code, levels):
        everything = bound(code, 0, levels.shape[-1])
        for stage in range(levels.shape[-1]):
            part = bound(code[..., :stage], stage, stage + 1)
            torch.testing.assert_close(part, everything[..., stage : stage + 1, :], atol=CLOSE, rtol=CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize("asked_before", [False, True])
    def test_some_rows_say_what_they_say_among_all(self, binder, bound, looked, code, levels, asked_before):
        whole = binder.bind(LinearBase().look(observations()), asked())(code, 0, levels.shape[-1])
        if asked_before:
            bound(code, 0, 1)
        before, rows = looked.work.base_layers.tolist(), torch.tensor([0, 2])
        some = bound.of(rows)
        torch.testing.assert_close(some(code[rows], 0, levels.shape[-1]), whole[rows], atol=CLOSE, rtol=CLOSE)
        layers = looked.work.base_layers.tolist()
        assert layers[1] == before[1] and layers[0] == layers[2] > 0  # row 1 goes no further
        last = some.of(torch.tensor([1]))
        torch.testing.assert_close(last(code[2:], 0, levels.shape[-1]), whole[2:], atol=CLOSE, rtol=CLOSE)
        assert looked.work.base_layers.tolist() == layers

    @torch.no_grad()
    def test_rows_say_different_things(self, bound, code, levels):
        logits = bound(code[:1].expand_as(code), 0, levels.shape[-1])
        assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[1], logits[2])

    @torch.no_grad()
    def test_a_base_model_that_says_nan_is_named(self, binder, code):
        base = LinearBase()
        base.maps = base.maps * torch.nan
        bound = binder.bind(base.look(observations()), asked())
        with pytest.raises(NotFiniteError, match="is NaN or infinite"):
            bound(code[..., :0], 0, 1)
