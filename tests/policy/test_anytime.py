"""Anytime in a policy: whose steps are whose, what hooks count, and what a clock says."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from rsd.decoding import L1, Anytime, DepthAR, EarlyExit, Exit, FixedHorizon, MeanLogProb, Speculative
from rsd.errors import SettingError
from tests.models.openvla_tiny import LONG, SHORT, observation
from tests.policy.policies import NUM_DRAFT_STAGES, NUM_STAGES, make_policy, requests, save_parts
from tests.policy.test_lazy import NUM_LAYERS, Counted

EXIT = Exit(num_draft_stages=NUM_DRAFT_STAGES)
FULL = {
    "l1": (L1(), "head"),
    "depth_ar": (DepthAR(), "head"),
    "speculative": (Speculative(num_draft_stages=NUM_DRAFT_STAGES), "base"),
}


def anytime(full, passes=None, ms=None):
    return Anytime(full=full, num_draft_stages=NUM_DRAFT_STAGES, budget_passes=passes, budget_ms=ms)


@pytest.fixture(scope="module")
def counted():
    return Counted()


@pytest.fixture(scope="module")
def root(tmp_path_factory, counted):
    return save_parts(tmp_path_factory.mktemp("parts"), counted.base)


@pytest.fixture
def seen():
    return [observation(seed, LONG if seed == 1 else SHORT) for seed in range(3)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", FULL)
def test_first_steps_are_the_drafts_later_ones_the_targets_and_the_account_is_what_hooks_count(
    counted, root, seen, name, batch
):
    full, target = FULL[name]
    asked = requests(seen[:batch])
    makes = {"full": full, "exit": EXIT, "anytime": anytime(full, passes=0.3)}
    policies = {who: make_policy(counted.base, root, made, target=target) for who, made in makes.items()}
    whole, first = (policies[who].predict(asked) for who in ("full", "exit"))
    counted.forget()
    chunks = policies["anytime"].predict(asked)
    counted.check(chunks)  # each layer once, though the draft stops at one of them
    for chunk, late, early in zip(chunks, whole, first, strict=True):
        steps = chunk.work["drafted_steps"]
        passes = max(1, late.work["target_passes"])
        assert steps == min(8, int(np.ceil(passes / 0.3)) - 1) and steps >= 3
        np.testing.assert_array_equal(chunk.actions[:steps], early.actions[:steps])
        np.testing.assert_array_equal(chunk.actions[steps:], late.actions[steps:])
        assert chunk.work["base_layers"] == NUM_LAYERS and chunk.work["early_exits"] == chunk.work["late_steps"] == 0
        assert chunk.work["target_passes"] == late.work["target_passes"]
        assert chunk.work["draft_passes"] == late.work["draft_passes"] + NUM_DRAFT_STAGES
        assert chunk.depth == (late.depth or 0) and (chunk.bound >= early.bound).all()
        np.testing.assert_array_equal(chunk.memory.chunk[steps:], late.memory.chunk[steps:])


@pytest.mark.parametrize("name", ["depth_ar", "speculative"])
def test_passes_are_what_hooks_on_draft_and_target_count(counted, root, seen, name):
    full = DepthAR() if name == "depth_ar" else Speculative(num_draft_stages=NUM_DRAFT_STAGES)
    policy, calls = make_policy(counted.base, root, anytime(full, passes=1.0)), Counter()
    for role, place in (("target", policy.tokens.target), ("draft", policy.tokens.draft)):
        place.head.register_forward_hook(lambda *_, role=role: calls.update([role]))
    (chunk,) = policy.predict(requests(seen[:1]))
    assert calls == {role: chunk.work[f"{role}_passes"] for role in ("target", "draft")}
    assert chunk.work["drafted_steps"] == calls["target"] - 1 > 0


@pytest.mark.parametrize("name", FULL)
def test_a_budget_that_the_target_keeps_is_the_full_decoding_to_the_bit(counted, root, seen, name):
    full, target = FULL[name]
    for budget in ({"passes": NUM_STAGES}, {"ms": 1e9}):
        (chunk,) = make_policy(counted.base, root, anytime(full, **budget), target=target).predict(requests(seen[:1]))
        (whole,) = make_policy(counted.base, root, full, target=target).predict(requests(seen[:1]))
        np.testing.assert_array_equal(chunk.actions, whole.actions)
        assert chunk.work["drafted_steps"] == 0 and (chunk.bound == 0).all()


@pytest.mark.parametrize("name", FULL)
def test_a_robot_is_told_what_to_do_before_the_target_is_asked(counted, root, seen, name):
    """When it is told, hooks have counted the draft's layer and no more; it does not change the chunk."""
    full, target = FULL[name]
    policy = make_policy(counted.base, root, anytime(full, passes=0.3), target=target)
    asked, told = requests(seen), []
    counted.forget()
    chunks = policy.predict(asked, act=lambda actions: told.append((actions, set(counted.layers))))
    counted.check(chunks)
    ((actions, layers),) = told
    assert layers == {1} and actions.shape == (3, 8, 7)
    for chunk, plain, first in zip(chunks, policy.predict(asked), actions, strict=True):
        steps = chunk.work["drafted_steps"]
        assert steps >= 3 and chunk.work == plain.work
        np.testing.assert_array_equal(first[:steps], chunk.actions[:steps])
        np.testing.assert_array_equal(chunk.actions, plain.actions)


def test_other_decodings_tell_nobody(counted, root, seen):
    def act(actions):
        raise AssertionError("told")

    make_policy(counted.base, root, EXIT).predict(requests(seen), act=act)


@pytest.fixture
def slow(counted, monkeypatch):
    """A clock on which every layer of the language model takes 30 ms, and nothing else any time."""
    now = [0.0]

    def passed(*_):
        now[0] += 0.030

    hooks = [layer.register_forward_hook(passed) for layer in counted.base.model.language_model.model.layers]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("budget_ms", "drafted", "late"), [(100.0, 0, 0), (89.0, 1, 0), (40.0, 2, 0), (20.0, 4, 1), (1.0, 8, 8)]
)
def test_milliseconds_count_from_the_picture_to_the_whole_chunk(counted, root, seen, slow, budget_ms, drafted, late):
    """The draft reads layer 1 and is known after 30 ms, the base model's chunk after 90."""
    (chunk,) = make_policy(counted.base, root, anytime(L1(), ms=budget_ms)).predict(requests(seen[:1]))
    assert chunk.latency_ms["total"] == pytest.approx(90.0)
    assert (chunk.work["drafted_steps"], chunk.work["late_steps"]) == (drafted, late)
    ends = [make_policy(counted.base, root, one).predict(requests(seen[:1]))[0].actions for one in (EXIT, L1())]
    np.testing.assert_array_equal(chunk.actions, np.concatenate([ends[0][:drafted], ends[1][drafted:]]))


def test_a_horizon_around_it_leaves_the_steps_as_they_are(counted, root, seen):
    inner = anytime(L1(), passes=0.3)
    (chunk,) = make_policy(counted.base, root, FixedHorizon(full=inner, num_steps=4)).predict(requests(seen[:1]))
    (plain,) = make_policy(counted.base, root, inner).predict(requests(seen[:1]))
    assert chunk.num_steps == 4
    np.testing.assert_array_equal(chunk.actions, plain.actions)


def test_what_a_policy_refuses(counted, root):
    with pytest.raises(SettingError, match=r"budget_passes 0.2, passes of the target .*, expected at least 1/4"):
        make_policy(counted.base, root, anytime(L1(), passes=0.2), num_open_loop_steps=4)
    outer = EarlyExit(gate=MeanLogProb(threshold=0.0), full=anytime(L1(), passes=1.0), num_draft_stages=2)
    with pytest.raises(SettingError, match="Anytime inside of another decoding than Hold and FixedHorizon"):
        make_policy(counted.base, root, outer)
