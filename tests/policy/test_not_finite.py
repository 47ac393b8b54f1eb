"""Whatever a decoding reads is a number, or predict raises and says which part made it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsd.decoding import L1, DepthAR, EarlyExit, Exit, MeanLogProb, Parallel, Speculative
from rsd.errors import RSDError
from rsd.models.openvla import load_base
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from rsd.policy import VLAPolicy
from rsd.types import Request
from tests.models.openvla_tiny import build_base, observation
from tests.policy.policies import NUM_DRAFT_STAGES, make_policy, save_parts

NEVER, ALWAYS = float("inf"), float("-inf")


def early(threshold, full):
    return EarlyExit(gate=MeanLogProb(threshold=threshold), full=full, num_draft_stages=NUM_DRAFT_STAGES)


# decoding, target, and the parts that it reads
DECODINGS = {
    "l1": (L1(), "head", {"base", "l1_head"}),
    "depth_ar": (DepthAR(), "head", {"base", "target", "tokenizer"}),
    "sampled": (DepthAR(temperature=0.7), "head", {"base", "target", "tokenizer"}),
    "parallel": (Parallel(), "head", {"base", "target", "tokenizer"}),
    "parallel_sampled": (Parallel(temperature=1.0), "head", {"base", "target", "tokenizer"}),
    "speculative": (Speculative(num_draft_stages=2), "head", {"base", "target", "draft", "tokenizer"}),
    "speculative_sampled": (
        Speculative(num_draft_stages=2, temperature=1.0), "head", {"base", "target", "draft", "tokenizer"}
    ),
    "base_chunk": (DepthAR(), "base", {"base", "l1_head", "tokenizer"}),
    "base_chunk_parallel": (Parallel(), "base", {"base", "l1_head", "tokenizer"}),
    "base_chunk_sampled": (DepthAR(temperature=0.5), "base", {"base", "l1_head", "tokenizer"}),
    "base_chunk_speculative": (
        Speculative(num_draft_stages=2), "base", {"base", "l1_head", "draft", "tokenizer"}
    ),
    "exit": (Exit(num_draft_stages=2), "head", {"base", "draft", "tokenizer"}),
    "exit_sampled": (Exit(num_draft_stages=2, temperature=1.0), "head", {"base", "draft", "tokenizer"}),
    "early_exit_open": (early(ALWAYS, L1()), "head", {"base", "draft", "tokenizer"}),
    "early_exit_shut": (early(NEVER, L1()), "head", {"base", "draft", "l1_head"}),
    "early_exit_tokens": (early(NEVER, DepthAR()), "head", {"base", "draft", "target", "tokenizer"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"), build_base())


def poison(policy, part, value):
    """Put a value that is none into the first entry of a weight of a part."""
    tokens = policy.tokens
    weights = {
        "base": lambda: policy.base.model.projector.fc3.bias,
        "l1_head": lambda: policy.base.model.action_head.model.fc2.bias,
        "target": lambda: tokens.target.head.output,
        "draft": lambda: tokens.draft.head.output,
        "tokenizer": lambda: tokens.tokenizer.decoder[2].bias,
    }
    with torch.no_grad():
        weights[part]().view(-1)[0] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["base", "l1_head", "target", "draft", "tokenizer"])
@pytest.mark.parametrize("name", DECODINGS)
def test_a_part_that_says_no_number_is_named_by_whoever_reads_it(root, name, part, value):
    decoding, target, reads = DECODINGS[name]
    policy = make_policy(build_base(), root, decoding, target=target)
    if part not in reads:
        return
    poison(policy, part, value)
    said = {
        "base": "the base model's state|the base model's chunk|the base model produced",
        "l1_head": "the base model's state 'head'|the base model's chunk|the base model produced",
        "target": "what the target says",
        "draft": "what the draft says",
        "tokenizer": "the tokenizer produced",
    }
    with pytest.raises(RSDError, match=said[part]):
        policy.predict([Request(observation(), 0)])


@pytest.mark.parametrize("name", DECODINGS)
def test_a_row_that_is_broken_does_not_pass_beside_one_that_is_not(root, name):
    decoding, target, _ = DECODINGS[name]
    policy = make_policy(build_base(), root, decoding, target=target)
    prepare = policy.base.prepare

    def broken(observations):
        inputs = prepare(observations)
        inputs["pixel_values"][-1] = math.nan
        return inputs

    policy.base.prepare = broken
    with pytest.raises(RSDError, match=r"is NaN or infinite|produced NaN"):
        policy.predict([Request(observation(seed), seed) for seed in range(2)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", DECODINGS)
def test_proprio_that_is_no_number_is_refused(root, name, value):
    decoding, target, _ = DECODINGS[name]
    policy = make_policy(build_base(), root, decoding, target=target)
    seen = observation()
    seen.proprio[3] = value
    with pytest.raises(RSDError, match=r"proprio has entries {3: "):
        policy.predict([Request(seen, 0)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["l1", "depth_ar", "exit"])
def test_statistics_that_are_no_numbers_are_named(root, name, value):
    decoding, target, _ = DECODINGS[name]
    policy = make_policy(build_base(), root, decoding, target=target)
    space = policy.base.space
    policy.base.space = replace(space, action=replace(space.action, high=(value, *space.action.high[1:])))
    policy.base.__dict__.pop("spec", None)
    with pytest.raises(RSDError, match=r"the statistics 'libero_toy_no_noops' produced NaN or infinite actions"):
        policy.predict([Request(observation(), 0)])


@pytest.mark.parametrize("temperature", [1e-45, 1e-320])
@pytest.mark.parametrize("target", ["head", "base"])
def test_a_temperature_below_all_numbers_does_not_choose_level_0(root, temperature, target):
    policy = make_policy(build_base(), root, DepthAR(temperature=temperature), target=target)
    with pytest.raises(RSDError, match="a distribution at temperature"):
        policy.predict([Request(observation(), 0)])


def test_infinite_steps_of_the_quantiser_are_named(root):
    for value in (math.nan, math.inf):
        policy = make_policy(build_base(), root, DepthAR(), target="base")
        policy.tokens.tokenizer.quantizer.log_steps.fill_(value)
        with pytest.raises(RSDError, match=r"what the tokenizer makes of stages \d|the tokenizer produced"):
            policy.predict([Request(observation(), 0)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_attention_of_no_numbers_is_no_attention_to_nothing(root, value):
    """On a CPU, torch's kernel makes zeros of scores that are NaN."""
    policy = make_policy(build_base(), root, L1())
    with torch.no_grad():
        policy.base.model.vision_backbone.featurizer.blocks[1].attn.qkv.bias[0] = value
    with pytest.raises(RSDError, match="the base model produced NaN or infinite actions"):
        policy.predict([Request(observation(), 0)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_encoder_hides_nothing_behind_its_bounds(root, value):
    policy = make_policy(build_base(), root, DepthAR(), target="base")
    with torch.no_grad():
        policy.tokens.tokenizer.encoder[2].bias[0] = value
    with pytest.raises(RSDError, match=r"what the tokenizer makes of stages 0\.\.0 is NaN"):
        policy.predict([Request(observation(), 0)])


def test_what_is_in_order_is_left_alone(root):
    for name, (decoding, target, _) in DECODINGS.items():
        (chunk,) = make_policy(build_base(), root, decoding, target=target).predict([Request(observation(), 0)])
        assert np.isfinite(chunk.actions).all(), name


@pytest.mark.parametrize("action_head", ["autoregressive", "diffusion", "discrete"])
def test_other_action_heads_hide_nothing_behind_argmax_or_clamp(tmp_path, action_head):
    alone = action_head == "autoregressive"
    architecture = openvla_architecture(action_head=action_head, proprio_dim=None if alone else 8, size="tiny")
    write_random_checkpoint(tmp_path / "c", architecture=architecture)
    base = load_base(
        checkpoint=tmp_path / "c", unnorm_key="libero_goal", views=["image"], use_proprio=not alone,
        chunk_length=1 if alone else 8, action_head=action_head, canaries=False,
    )  # fmt: skip
    policy = VLAPolicy(base=base, decoding=L1(), tokens=None, num_open_loop_steps=1, device=torch.device("cpu"))
    request = Request(observation(), 0)
    assert np.isfinite(policy.predict([request])[0].actions).all()
    last = {
        "diffusion": lambda: base.model.action_head.noise_predictor.mlp_resnet.fc2.bias,
        "discrete": lambda: base.model.language_model.lm_head.weight,
        "autoregressive": lambda: base.model.language_model.lm_head.weight,
    }[action_head]()
    for weight in (last, base.model.projector.fc3.bias if hasattr(base.model.projector, "fc3") else last):
        for value in (math.nan, math.inf, -math.inf):
            before = weight.clone()
            weight.view(-1)[0] = value
            with pytest.raises(RSDError, match="the base model produced NaN or infinite actions"):
                policy.predict([request])
            weight.copy_(before)
