"""Relaxed acceptance in a policy: what `Chunk.bound` says of the base model's chunk, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rsd.decoding import Certificate, DepthAR, EarlyExit, Levels, Speculative
from rsd.jpeg import jpeg_round_trip
from rsd.policy import Checkpoints, PolicyError
from rsd.stages.base_chunk import executed
from rsd.stages.controls import random
from rsd.tokenizer import TransformTokenizer, save_tokenizer
from tests.models.openvla_tiny import UNNORM_KEY, build_base, observation, statistics
from tests.policy.policies import make_policy, requests
from tests.tokenizer.contract import random_chunks
from tests.tokenizer.test_tokenizers import rfsq, transform

RULES = [Levels(r=2), Certificate()]
MADE_FROM = {"unnorm_key": UNNORM_KEY, "norm_stats": {UNNORM_KEY: statistics()}}


def relaxed(rule, stages=2):
    return Speculative(num_draft_stages=stages, accept=rule)


def saved(tokenizer, folder):
    save_tokenizer(tokenizer, folder / "tokenizer", MADE_FROM)
    return folder / "tokenizer"


@pytest.fixture(scope="module")
def base():
    return build_base()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tokenizer whose grid reaches all of the tiny base model's chunks."""
    return saved(transform(num_stages=4, ratio=7 / 3), tmp_path_factory.mktemp("wide"))


@pytest.fixture
def seen():
    return [observation(seed) for seed in range(3)]


def policy(base, tokenizer, decoding):
    """With a draft that says any tokens, held to the base model's chunk."""
    checkpoints = Checkpoints(tokenizer=tokenizer, control=random)
    return make_policy(base, tokenizer.parent, decoding, checkpoints=checkpoints)


def wanted(base, observations):
    """What the robot would execute of the base model's own chunks, model space, [B, T, A]."""
    pictures = [{view: jpeg_round_trip(image) for view, image in one.images.items()} for one in observations]
    stored = [replace(one, images=shown, stored=True) for one, shown in zip(observations, pictures, strict=True)]
    with torch.inference_mode():
        return executed(base.look(stored).chunk()).numpy()


@pytest.mark.parametrize("rule", RULES)
def test_the_bound_holds_against_the_base_models_chunk_and_the_gripper_is_its_own(base, wide, seen, rule):
    chunks = policy(base, wide, relaxed(rule)).predict(requests(seen))
    for chunk, own in zip(chunks, wanted(base, seen), strict=True):
        error = np.abs(chunk.memory.chunk - own)
        assert chunk.bound is not None and (error <= chunk.bound + 1e-5).all() and (error[:, :-1] > 0).any()
        assert chunk.bound[-1] == 0 and (error[:, -1] == 0).all()


def test_a_chunk_that_the_grid_does_not_reach_has_no_bound(base, tmp_path, seen):
    tokenizer = TransformTokenizer(chunk_length=8, action_dim=7, num_stages=4, num_levels=7, ratio=7 / 3, margin=1.0)
    small = random_chunks(64, 8)
    small[..., :-1] *= 1e-3
    tokenizer.fit(small)
    chunks = policy(base, saved(tokenizer, tmp_path), relaxed(Certificate())).predict(requests(seen))
    assert [chunk.bound for chunk in chunks] == [None] * 3
    for chunk, own in zip(chunks, wanted(base, seen), strict=True):
        np.testing.assert_array_equal(chunk.memory.chunk[:, -1], own[:, -1])  # the gripper is exact all the same


def test_rows_that_end_early_have_the_tail_bound_and_the_others_that_of_the_rule(base, wide, seen):
    def gate(log_probs, levels):
        return torch.tensor([True, False, True])[: len(log_probs)]

    mixed = policy(base, wide, EarlyExit(gate=gate, full=relaxed(Certificate()), num_draft_stages=2))
    full = policy(base, wide, relaxed(Certificate()))
    exact = policy(base, wide, DepthAR())
    early, late, _ = mixed.predict(requests(seen))
    tail = mixed.tokens.tokenizer.action_bound(2).amax(dim=0)
    np.testing.assert_allclose(early.bound, tail.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(late.bound, full.predict(requests(seen))[1].bound)
    assert (late.bound[:-1] > 0).all() and (exact.predict(requests(seen))[1].bound == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_tokenizer_without_a_bit_for_the_gripper_is_refused(base, tmp_path, rule):
    folder = saved(rfsq(), tmp_path)
    with pytest.raises(PolicyError, match=f"accept {type(rule).__name__} keeps the gripper exact, and tokenizer RFSQ"):
        policy(base, folder, relaxed(rule))
