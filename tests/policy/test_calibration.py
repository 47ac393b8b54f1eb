"""Thresholds that keep a promise: the bound, the choice, what is refused, and what a policy's folder says of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rsd.checkpoint import CheckpointError
from rsd.decoding import L1, EarlyExit, MeanLogProb
from rsd.errors import SettingError
from rsd.policy import describe_folder, load_folder
from rsd.policy.calibration import (
    BLACK,
    FROZEN,
    GRID,
    ROBOT,
    Listening,
    Measured,
    Promise,
    broken,
    calibrate,
    curve,
    evidence,
    measure,
    p_value,
)
from rsd.policy.contract import PolicyError
from rsd.policy.folder import calibrated
from rsd.stages import controls
from rsd.types import Request
from tests.models.openvla_tiny import observation
from tests.policy.test_micro import ALWAYS, counted, folder, temporal, written  # noqa: F401  fixtures

PROMISE = Promise(tau=0.2, risk=0.1, delta=0.1)


def made_up(num_episodes: int, *, seed: int = 0, blind: float = -9.0, wrong_below: float = -0.3) -> Measured:
    """Ten frames an episode; the draft is wrong exactly where it is less sure than `wrong_below`."""
    score = -np.random.default_rng(seed).exponential(0.3, size=10 * num_episodes)
    unsure = np.full(len(score), blind)
    wrong = np.where(score < wrong_below, 0.5, 0.05)
    return Measured(score, wrong, np.repeat(np.arange(num_episodes), 10), {BLACK: unsure, FROZEN: unsure})


def test_the_bound_is_that_of_so_many_independent_risks():
    assert p_value(0.0, 44, 0.05) == pytest.approx(0.95**44)  # nothing wrong: the probability of just that
    assert p_value(0.05, 1000, 0.05) == 1.0 and p_value(0.2, 50, 0.05) == 1.0
    assert p_value(0.02, 500, 0.05) < p_value(0.03, 500, 0.05) < 0.1
    assert Promise(tau=0.2, risk=0.05, delta=0.1).min_episodes == 45  # 0.95**45 < 0.1 < 0.95**44


def test_the_loosest_threshold_before_the_first_that_fails_is_taken():
    measured = made_up(200)
    kept, points = calibrate(measured, PROMISE)
    assert [point.threshold for point in points] == list(GRID)
    place = points.index(kept)
    assert all(point.p <= PROMISE.delta for point in points[: place + 1]) and points[place + 1].p > PROMISE.delta
    assert kept.threshold < -0.3 and 0 < kept.risk < PROMISE.risk < points[-1].risk
    assert kept.coverage == np.mean(measured.score >= kept.threshold)


def test_the_promise_is_kept_in_nine_of_ten_calibrations():
    """Of 200 sets of 60 episodes each: those whose true risk, known here, is above the promised one."""
    truth = {p.threshold: p.risk for p in curve(made_up(20_000, seed=9), PROMISE)}
    broken = [truth[calibrate(made_up(60, seed=seed), PROMISE)[0].threshold] > PROMISE.risk for seed in range(200)]
    assert np.mean(broken) <= PROMISE.delta


@pytest.mark.parametrize("name", [BLACK, FROZEN])
def test_a_gate_that_is_surer_of_pictures_it_cannot_see_is_refused(name):
    measured = made_up(200)
    sure = {**measured.blind, name: np.zeros(len(measured.score))}
    with pytest.raises(PolicyError, match=f"with {name} the gate lets 100.0% of the chunks through, with the real"):
        calibrate(Measured(measured.score, measured.wrong, measured.episode, sure), PROMISE)


def test_too_few_episodes_and_a_draft_that_is_always_wrong_are_refused():
    with pytest.raises(SettingError, match=r"21 episodes are too few: a risk of 0.1 with delta 0.1 takes 22 at least"):
        calibrate(made_up(21), PROMISE)
    with pytest.raises(PolicyError, match=r"no threshold keeps a risk of 0.1 at tau 0.2: .*; train it longer, or prom"):
        calibrate(replace(made_up(200, wrong_below=1.0), score=np.zeros(2000)), PROMISE)


def test_it_says_how_many_episodes_would_do():
    assert PROMISE.enough(0.0) == PROMISE.min_episodes == 22 and PROMISE.enough(0.1) is None
    few = made_up(30)
    wrong = np.where(np.arange(300) < 15, 0.5, 0.05)  # 15 of 300 frames are wrong, however sure
    measured = replace(few, score=np.zeros(300), wrong=wrong)
    number = PROMISE.enough(0.05)
    assert p_value(0.05, number, 0.1) <= 0.1 < p_value(0.05, 30, 0.1)
    with pytest.raises(
        PolicyError, match=rf"5.00% in 30 episodes already at -0.005, for which {number} episodes would do"
    ):
        calibrate(measured, PROMISE)


@pytest.mark.parametrize("wrong", [{"tau": 0}, {"tau": float("nan")}, {"risk": 0.6}, {"risk": 0}, {"delta": -1}])
def test_promises_that_are_none_are_refused(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Promise(**{"tau": 0.2, "risk": 0.1, "delta": 0.1, **wrong})


def pair(policy_folder):
    listening = Listening(gate=ALWAYS)
    proposing = EarlyExit(gate=listening, full=L1(), num_draft_stages=None)
    base = load_folder(policy_folder, decoding=L1(), canaries=False)
    return load_folder(policy_folder, decoding=proposing, draft="micro", canaries=False), base, listening


def test_frames_are_shown_to_the_draft_and_to_the_base_model(folder):  # noqa: F811
    written(folder, {"l1": (L1(), None), "temporal": (temporal(ALWAYS, 2), None)}, {"temporal": "micro"})
    draft, base, listening = pair(folder)
    episodes = [[observation(seed) for seed in range(3)], [observation(seed) for seed in range(5, 7)]]
    found = measure(draft, base, listening, episodes)
    assert found.episode.tolist() == [0, 0, 0, 1, 1] and found.score.shape == found.wrong.shape == (5,)
    assert (found.score < 0).all() and (found.wrong > 0).all()
    assert found.blind[FROZEN][[0, 3]] == pytest.approx(found.score[[0, 3]])  # an episode's first frame is its own
    assert not np.allclose(found.blind[FROZEN][[1, 2, 4]], found.score[[1, 2, 4]])
    assert not np.allclose(found.blind[BLACK], found.score)
    assert set(found.blind) == {
        f"{name}{view}" for name in (BLACK, FROZEN) for view in ("", " (image)", " (wrist_image)")
    }
    robot = measure(draft, base, listening, episodes, ROBOT)
    requests = [Request(frame, seed) for seed, frame in enumerate(episodes[0] + episodes[1])]
    pairs = zip(draft.predict(requests), base.predict(requests), strict=True)
    apart = [np.abs(one.actions - other.actions)[: draft.num_open_loop_steps, :6].max() for one, other in pairs]
    same_grip = np.isfinite(robot.wrong)
    assert robot.wrong[same_grip] == pytest.approx(np.array(apart)[same_grip]) and not np.allclose(
        robot.wrong, found.wrong
    )
    same = measure(draft, draft, listening, episodes)
    assert (same.wrong == 0).all()


def test_a_folder_says_what_its_threshold_was_found_by_and_for_what(folder):  # noqa: F811
    written(folder, {"l1": (L1(), None), "temporal": (temporal(ALWAYS, 2), None)}, {"temporal": "micro"})
    measured = made_up(200)
    kept, points = calibrate(measured, PROMISE)
    calibrated(folder, "temporal", kept.threshold, evidence(measured, PROMISE, kept, points))
    gate = load_folder(folder, decoding="temporal", canaries=False).decoding.gate
    assert gate == MeanLogProb(threshold=kept.threshold)
    record = json.loads((folder / "policy.json").read_text())
    told = record["calibrations"]["temporal"]
    assert told["num_episodes"] == 200 and told["mean_risk"] == kept.risk and len(told["curve"]) == len(GRID)

    del record["checksum"]
    record["decodings"]["temporal"]["gate"]["threshold"] = -1.0
    (folder / "policy.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"'temporal' was calibrated for another policy: decoding.gate.threshold"):
        load_folder(folder, decoding="temporal", canaries=False)
    load_folder(folder, decoding="l1", canaries=False)  # has no threshold
    record["decodings"]["temporal"]["gate"]["threshold"] = kept.threshold
    told["parts"]["micro"] = "0" * 64
    (folder / "policy.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"another policy: parts.micro: .*calibrate.py again, .* by hand"):
        load_folder(folder, decoding="temporal", canaries=False)


def test_a_threshold_holds_for_the_suites_the_steps_and_the_draft_that_it_was_found_with(folder):  # noqa: F811
    written(folder, {"l1": (L1(), None), "temporal": (temporal(ALWAYS, 2), None)}, {"temporal": "micro"})
    calibrated(folder, "temporal", -0.5, {"suites": ["libero_spatial", "libero_goal"]})
    named = {"decoding": "temporal", "canaries": False}
    assert load_folder(folder, **named, suite="libero_goal").decoding.gate.threshold == -0.5
    assert describe_folder(folder, {"decoding": "temporal"})["options"]["gate"]["threshold"] == -0.5  # of no suite
    for ask in (load_folder, lambda folder, **asked: describe_folder(folder, asked)):
        with pytest.raises(
            PolicyError, match=r"'temporal' was calibrated for libero_spatial, libero_goal, not for lib"
        ):
            ask(folder, **named, suite="libero_goal_swap")
        with pytest.raises(CheckpointError, match=r"calibrated for another policy: num_open_loop_steps: 8 → 4; run"):
            ask(folder, **named, num_open_loop_steps=4)
        with pytest.raises(CheckpointError, match=r"calibrated for another policy: parts.micro: .* → \(absent\)"):
            ask(folder, **named, draft=controls.random)
    load_folder(folder, decoding="l1", suite="libero_object", canaries=False)  # has no threshold
    by_hand = temporal(MeanLogProb(threshold=-0.5), 2)  # promises nothing
    load_folder(folder, decoding=by_hand, draft="micro", suite="libero_object", canaries=False)


@pytest.mark.parametrize("suites", ["libero_goal", [3], None])
def test_suites_that_are_none_are_refused(folder, suites):  # noqa: F811
    written(folder, {"l1": (L1(), None), "temporal": (temporal(ALWAYS, 2), None)}, {"temporal": "micro"})
    calibrated(folder, "temporal", -0.5, {"suites": suites})
    with pytest.raises(CheckpointError, match=r"entry 'calibrations.temporal.suites.*expected"):
        load_folder(folder, decoding="l1", canaries=False)


def test_a_canary_breaks_all_cameras_or_one_of_them():
    frames = [observation(seed) for seed in range(2)]
    shown = broken(frames, [frames[0]] * 2)
    for name in (BLACK, FROZEN):
        real, other = frames[1].images, shown[f"{name} (image)"][1].images
        gone = np.zeros_like(real["image"]) if name == BLACK else frames[0].images["image"]
        assert np.array_equal(other["image"], gone) and np.array_equal(other["wrist_image"], real["wrist_image"])
        assert not np.array_equal(shown[name][1].images["wrist_image"], real["wrist_image"])
    one = [replace(frame, images={"image": frame.images["image"]}) for frame in frames]
    assert list(broken(one, one)) == [BLACK, FROZEN]
