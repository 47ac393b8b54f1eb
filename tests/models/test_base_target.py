"""The base model's chunk as the target: its greedy code, whatever is known, and the exactness that follows from it."""

import pytest
import torch

from rsd.decoding import depth_ar, parallel, speculative
from rsd.models.base_target import BaseTarget, executed
from tests.tokenizer.contract import random_chunks
from tests.tokenizer.test_tokenizers import rfsq, transform


@pytest.fixture(params=[rfsq, transform], ids=["rfsq", "transform"])
def tokenizer(request):
    return request.param().eval()


@torch.no_grad()
def test_exact_decodings_return_the_chunks_own_code(tokenizer):
    chunk = 1.3 * random_chunks(6, 8)  # a continuous head is not bounded
    levels = torch.tensor(tokenizer.code_shape.levels)
    target = BaseTarget(tokenizer, chunk)
    expected = tokenizer.encode(executed(chunk))
    arguments = {"levels": levels, "batch_size": 6}
    assert torch.equal(depth_ar(target, **arguments).indices, expected)
    assert torch.equal(parallel(target, **arguments).indices, expected)

    def stubborn(known, start, stop):  # proposes level 0 everywhere
        logits = torch.full((6, *levels.shape[:2], stop - start, tokenizer.code_shape.num_levels), -torch.inf)
        logits[..., 0] = 0.0
        return logits

    result = speculative(target, stubborn, num_draft_stages=2, **arguments)
    assert torch.equal(result.indices, expected)


@torch.no_grad()
def test_after_a_wrong_prefix_it_repairs_what_can_be_repaired(tokenizer):
    chunk = random_chunks(4, 8)
    prefix = (tokenizer.encode(executed(chunk))[..., :1] + 1).minimum(
        torch.tensor(tokenizer.code_shape.levels)[..., :1] - 1
    )
    logits = BaseTarget(tokenizer, chunk)(prefix, 1, 3)
    expected = tokenizer.encode(executed(chunk), prefix)[..., 1:3]
    assert torch.equal(logits.argmax(dim=-1), expected)


@torch.no_grad()
def test_a_stage_knows_nothing_of_itself_and_later_ones(tokenizer):
    target = BaseTarget(tokenizer, random_chunks(3, 8))
    levels = torch.tensor(tokenizer.code_shape.levels)
    known = tokenizer.encode(executed(random_chunks(3, 8, seed=1)))
    everything = target(known, 0, levels.shape[-1])
    for stage in range(levels.shape[-1]):
        part = target(known[..., :stage], stage, stage + 1)
        assert torch.equal(part, everything[..., stage : stage + 1, :])
    exists = torch.arange(everything.shape[-1]) < levels[..., None]  # [T, D, Q, L]
    assert torch.equal(everything.isfinite().all(dim=0), exists)


def test_what_is_executed_is_clipped_and_the_gripper_is_open_or_closed():
    chunk = torch.tensor([[[1.5, -1.5, 0.25, 0.0, 0.0, 0.0, 0.51], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]]])
    expected = [[[1.0, -1.0, 0.25, 0.0, 0.0, 0.0, 1.0], [0.0] * 7]]
    assert executed(chunk).tolist() == expected


def test_a_chunk_that_is_not_finite_is_refused(tokenizer):
    chunk = random_chunks(1, 8)
    chunk[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        BaseTarget(tokenizer, chunk)
