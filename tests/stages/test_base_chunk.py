"""The base model's chunk as the target: its greedy code, whatever is known, and the exactness that follows from it."""

import pytest
import torch

from rsd.decoding import DepthAR, Noise, Parallel, Speculative
from rsd.stages import Absent, BaseChunk
from rsd.stages.base_chunk import ChunkLogits, executed
from tests.models.openvla_tiny import build_base, observation
from tests.tokenizer.contract import random_chunks
from tests.tokenizer.test_tokenizers import rfsq, transform


@pytest.fixture(params=[rfsq, transform], ids=["rfsq", "transform"])
def tokenizer(request):
    return request.param().eval()


@torch.no_grad()
def test_exact_decodings_return_the_chunks_own_code(tokenizer):
    chunk = 1.3 * random_chunks(6, 8)  # a continuous head is not bounded
    levels = torch.tensor(tokenizer.code_shape.levels)
    target = ChunkLogits(tokenizer, chunk)
    expected = tokenizer.encode(executed(chunk))
    nobody, noise = Absent("draft"), Noise(range(6))
    assert torch.equal(DepthAR().run(target, nobody, levels, noise).indices, expected)
    assert torch.equal(Parallel().run(target, nobody, levels, noise).indices, expected)

    class Stubborn:  # proposes level 0 everywhere
        def __call__(self, known, start, stop):
            logits = torch.full((6, *levels.shape[:2], stop - start, tokenizer.code_shape.num_levels), -torch.inf)
            logits[..., 0] = 0.0
            return logits

    code = Speculative(num_draft_stages=2).run(target, Stubborn(), levels, noise)
    assert torch.equal(code.indices, expected)


@torch.no_grad()
def test_after_a_wrong_prefix_it_repairs_what_can_be_repaired(tokenizer):
    chunk = random_chunks(4, 8)
    prefix = (tokenizer.encode(executed(chunk))[..., :1] + 1).minimum(
        torch.tensor(tokenizer.code_shape.levels)[..., :1] - 1
    )
    logits = ChunkLogits(tokenizer, chunk)(prefix, 1, 3)
    expected = tokenizer.encode(executed(chunk), prefix)[..., 1:3]
    assert torch.equal(logits.argmax(dim=-1), expected)


@torch.no_grad()
def test_a_stage_knows_nothing_of_itself_and_later_ones(tokenizer):
    target = ChunkLogits(tokenizer, random_chunks(3, 8))
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
        ChunkLogits(tokenizer, chunk)


@torch.no_grad()
def test_some_rows_say_what_they_say_among_all(tokenizer):
    target, rows = ChunkLogits(tokenizer, random_chunks(5, 8)), torch.tensor([1, 4])
    known = tokenizer.encode(executed(random_chunks(5, 8, seed=1)))
    assert torch.equal(target.of(rows)(known[rows], 0, 4), target(known, 0, 4)[rows])


@torch.no_grad()
def test_bound_to_a_pass_it_runs_the_base_model_when_it_is_asked_and_only_for_its_rows(tokenizer):
    base = build_base()
    looked = base.look([observation(seed) for seed in range(3)])
    bound = BaseChunk(tokenizer).bind(looked, [None] * 3)
    known, rows = torch.zeros(3, *torch.tensor(tokenizer.code_shape.levels).shape[:2], 0).long(), torch.tensor([0, 2])
    some = bound.of(rows)
    assert looked.work.base_layers.tolist() == [0, 0, 0]
    logits = some(known[rows], 0, 4)
    assert looked.work.base_layers.tolist() == [3, 0, 3]
    expected = ChunkLogits(tokenizer, base.look([observation(seed) for seed in (0, 2)]).chunk())
    assert torch.equal(logits, expected(known[rows], 0, 4))
    again = some.of(torch.tensor([1]))  # what is there goes along
    assert torch.equal(again(known[:1], 0, 4), logits[1:]) and looked.work.base_layers.tolist() == [3, 0, 3]
    assert set(looked.clock.elapsed_ms) == {"target", "base_model", "preprocess"}
