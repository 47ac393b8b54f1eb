"""Policies that really are broken, each trained in seconds, and one that is not: the verdict names what is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from rsd.diagnosis.diagnose import diagnose
from rsd.diagnosis.measure import Options, measure
from rsd.diagnosis.verdict import USES, headline, verdict
from rsd.finding import FAILED, WARNING
from tests.diagnosis import made_up_arm

OPTIONS = Options(num_frames=24, num_episodes=4, batch_size=24)


def silent(*_: object) -> None:
    """Tells nobody."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small models are slower with more
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return made_up_arm.write(tmp_path_factory.mktemp("arm"))


def judged(policy, frames):
    found, _ = measure(policy, frames, OPTIONS, silent)
    return found, verdict(found)


def names(statements, status) -> set[str]:
    return {one.finding.name for one in statements if one.status == status}


def test_a_good_policy_passes_and_has_a_page(frames, tmp_path):
    policy = made_up_arm.trained(frames)
    told = []
    statements = diagnose(policy, frames, tmp_path, "Arm", OPTIONS, 2, lambda *one: told.append(one))
    assert names(statements, FAILED) == set()
    used = {one.finding.name for one in statements if one.about == USES}
    assert used == {"it uses its pictures", "it uses its instruction", "it uses its proprio"}
    assert headline(statements).startswith("Nothing f")
    page, record = (tmp_path / "diagnosis.html").read_text(), json.loads((tmp_path / "diagnosis.json").read_text())
    assert page.index("Verdict") < page.index("Interventions") < page.index("Patch features")
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    for one in statements:
        assert one.finding.name[1:] in page
    measured = record["measurements"]
    assert len(measured["moved"]) == 4 + 3 + 4 and set(measured["saliency"]) == {"image", "words", "proprio"}
    assert sum(measured["saliency"].values()) == pytest.approx(1, abs=1e-3)
    assert {what for what, _, _ in told} == {"interventions", "episodes", "pictures"}
    for stage in ("DINOv2", "SigLIP", "projector"):
        assert f"{stage}, image" in page


@pytest.mark.slow
def test_one_that_was_trained_with_black_pictures(frames):
    found, statements = judged(made_up_arm.trained(frames, "black"), frames)
    assert names(statements, FAILED) == {"it ignores its pictures"}
    (said,) = [one.finding for one in statements if one.status == FAILED]
    assert "black pictures" in said.found and "it makes the same motion with" in said.found and "black" in said.remedy
    assert found.of("instruction", "another task's").gain.value > 0.1  # and it listens


@pytest.mark.slow
def test_one_that_was_trained_with_shuffled_instructions(frames):
    _, statements = judged(made_up_arm.trained(frames, "shuffled"), frames)
    assert names(statements, FAILED) == {"it ignores its instruction"}
    (said,) = [one.finding for one in statements if one.status == FAILED]
    assert "shuffled" in said.text


@pytest.mark.slow
def test_one_whose_gripper_labels_were_inverted(frames):
    _, statements = judged(made_up_arm.trained(frames, "inverted"), frames)
    assert names(statements, FAILED) == {"its gripper is inverted"}
    (said,) = [one.finding for one in statements if one.status == FAILED]
    assert "data.gripper" in said.text and "agreement" in said.found


@pytest.mark.slow
def test_one_that_leaks_proprio(tmp_path):
    frames = made_up_arm.write(tmp_path, leaks=True)
    found, statements = judged(made_up_arm.trained(frames), frames)
    assert "it answers from proprio alone" in names(statements, FAILED)
    assert "the state gives the next actions away" in names(statements, WARNING)
    assert found.proprio.policy.low > 0.9


def test_the_hand_that_goes_down_and_never_closes(frames):
    """Black pictures and any text give the same motion."""
    _, statements = judged(made_up_arm.trained(frames, "constant"), frames)
    failed = names(statements, FAILED)
    assert {
        "it ignores its pictures",
        "it ignores its instruction",
        "it makes the same motion whatever it is shown",
        "its gripper never closes",
    } <= failed
    text = {one.finding.name: one.finding.found for one in statements}
    assert "black pictures" in text["it ignores its pictures"]
    assert text["it ignores its instruction"].startswith("any text gives the same motion")
    assert "the hand goes down" in text["it makes the same motion whatever it is shown"]
    assert headline(statements).startswith("Do not run it on a robot: ")
