"""What moves a policy's chunks, on policies whose pictures are cut off or not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rsd.decoding import L1, DepthAR
from rsd.finding import FAILED, OK
from rsd.policy.sensitivity import INSTRUCTION, PICTURES, PROPRIO, ZEROS, Sensitivity, findings, sensitivity
from rsd.types import Frame, Request
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation
from tests.policy.policies import make_policy, save_parts


def pairs_of(policy, count=3) -> list[tuple[Frame, Frame]]:
    """Frames whose demonstrations are what the policy does, each with one of another task."""
    own = [observation(seed) for seed in range(count)]
    chunks = [chunk.memory.chunk for chunk in policy.predict([Request(one, seed) for seed, one in enumerate(own)])]
    shown = [torch.from_numpy(policy.base.spec.space.action.unnormalize(chunk)) for chunk in chunks]
    others = [observation(100 + seed, LONG) for seed in range(count)]
    return [
        (
            {"observation": one, "actions": actions, "episode": 0, "step": 0},
            {"observation": other, "actions": actions, "episode": 1, "step": 0},
        )
        for one, actions, other in zip(own, shown, others, strict=True)
    ]


def l1_policy(base, tmp_path):
    return make_policy(base, tmp_path, L1())


def test_a_policy_that_looks(tmp_path):
    policy = l1_policy(build_base(), tmp_path)
    found = sensitivity(policy, pairs_of(policy))
    assert found.error == pytest.approx(0, abs=2e-3) and found.num_frames == 3  # nearly: clipped
    assert list(found.moved) == [PICTURES, INSTRUCTION, PROPRIO, ZEROS] and min(found.moved.values()) > found.error
    rows = list(findings(found, "three frames"))
    assert [row.status for row in rows] == [OK] * 5 and not any("ignores" in row.text for row in rows)


def test_a_policy_whose_pictures_are_cut_off(tmp_path):
    policy = l1_policy(build_base(), tmp_path)
    pairs = pairs_of(policy)
    with torch.no_grad():
        policy.base.model.projector.fc3.weight.zero_()
    found = sensitivity(policy, pairs)
    assert found.moved[PICTURES] == 0 < found.error and found.moved[INSTRUCTION] > 0 < found.moved[PROPRIO]
    (row,) = [row for row in findings(found, "three frames") if row.name == PICTURES]
    assert row.status == FAILED and "the policy ignores its pictures; " in row.text


def test_a_decoding_over_tokens_and_a_model_without_proprio(tmp_path):
    base = build_base(use_proprio=False)
    policy = make_policy(base, save_parts(tmp_path, base), DepthAR())
    found = sensitivity(policy, pairs_of(policy))
    assert list(found.moved) == [PICTURES, INSTRUCTION] and found.moved[PICTURES] > 0


@pytest.mark.parametrize(("moved", "ignored"), [(0.1, True), (0.2, False), (0.3, False)])
def test_the_error_is_the_measure(moved, ignored):
    """By hand: what moves the chunk as far as the error is no longer ignored; other inputs are never judged."""
    found = Sensitivity(0.2, {PICTURES: moved, INSTRUCTION: 0.0}, 8)
    error, pictures, instruction = findings(found, "8 held-out frames")
    assert error.found == "0.2, mean of |chunk - demonstration| in model space, on 8 held-out frames"
    assert (pictures.status == FAILED) == ignored == ("ignores its pictures" in pictures.text)
    assert instruction.status == OK


def test_the_error_by_hand(tmp_path):
    """Demonstrations that are off by half of a normalised unit in one of seven dims."""
    policy = l1_policy(build_base(), tmp_path)
    pairs = pairs_of(policy)
    for own, _ in pairs:
        own["actions"][:, -1] += 3.5  # the gripper is not normalised
    assert sensitivity(policy, pairs).error == pytest.approx(0.5, abs=2e-3)


def test_observations_are_left_as_they_are(tmp_path):
    policy = l1_policy(build_base(), tmp_path)
    pairs = pairs_of(policy, count=1)
    before = dataclasses.replace(pairs[0][0]["observation"])
    sensitivity(policy, pairs)
    assert pairs[0][0]["observation"].instruction == before.instruction == SHORT
