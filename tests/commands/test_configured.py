"""What may be typed beside policy=FOLDER: what the folder does not decide on."""

import os
import shutil

import pytest
from hydra.errors import InstantiationException

import rsd
from rsd.clock import Clock, DelayError, Naive
from rsd.commands.configured import check_clock, configured_clock, folder_options, policy_fields
from rsd.commands.error_lines import cause_of
from rsd.decoding import L1, Anytime
from rsd.errors import SettingError
from rsd.policy import PolicyError
from rsd.policy.folder import calibrated
from tests.records import edit
from tests.test_configs import composed


@pytest.mark.parametrize(
    "typed", ["model=oft_small", "quantizer=rfsq_d4", "draft.layer=2", "draft.num_stages=1", "chunk=4", "+experiment=x"]
)
def test_parts_beside_a_folder_are_refused(typed):
    cfg = composed("eval", ["policy=released"])
    with pytest.raises(SettingError, match=rf"policy=released brings its own parts: leave out .*{typed[1:]}"):
        folder_options(cfg, ["policy=released", typed])


def test_what_is_the_users_own_goes_to_the_folder():
    overrides = ["policy=released", "decoding=exit", "draft.num_stages=1", "model.backbone.execution=captured"]
    options = folder_options(composed("eval", overrides), overrides)
    assert options["decoding"].num_draft_stages == 1 and options["execution"] == "captured"
    assert options["num_open_loop_steps"] is None
    here = [*overrides[:1], "model.backbone.pictures=device"]
    assert folder_options(composed("eval", here), here)["pictures"] == "device"
    plain = folder_options(composed("eval", overrides[:1]), overrides[:1])
    assert plain["decoding"] is None and "execution" not in plain


def test_a_decoding_by_its_name_alone_is_the_calibrated_one_of_the_folder(tmp_path):
    shutil.copytree("released", tmp_path / "mine", copy_function=os.link)
    (tmp_path / "mine" / "policy.json").unlink()
    shutil.copy("released/policy.json", tmp_path / "mine")
    edit(tmp_path / "mine" / "policy.json", lambda record: record.pop("calibrations"))
    overrides = [f"policy={tmp_path / 'mine'}", "decoding=temporal", "env=libero_goal", "env.variant=swap"]
    before = folder_options(composed("eval", overrides), overrides)
    assert before["decoding"].gate.threshold == -0.1277 and before["draft"] == "micro"
    calibrated(tmp_path / "mine", "temporal", -0.5, {"suites": ["libero_goal"]})
    found = folder_options(composed("eval", overrides), overrides)
    assert (found["decoding"], found["draft"], found["suite"]) == ("temporal", None, "libero_goal_swap")
    with pytest.raises(PolicyError, match=r"'temporal' was calibrated for libero_goal, not for libero_goal_swap"):
        policy_fields(composed("eval", overrides), overrides)
    fields = policy_fields(composed("eval", overrides[:3]), overrides[:3])
    assert fields["options"]["gate"]["threshold"] == -0.5 and fields["decoding"] == "temporal"
    for typed in ("draft.num_stages=1", "decoding.decode.max_unverified=4", "decoding@decoding.full=hold"):
        with pytest.raises(SettingError, match=rf"^{typed} beside decoding=temporal, whose threshold"):
            folder_options(composed("eval", [*overrides, typed]), [*overrides, typed])
    by_hand = [*overrides, "decoding.decode.max_unverified=4", "decoding.decode.gate.threshold=-0.1"]
    assert policy_fields(composed("eval", by_hand), by_hand)["options"]["gate"]["threshold"] == -0.1


def test_an_earlier_draft_goes_to_the_parts_of_a_composed_policy_and_into_the_plan():
    overrides = ["decoding=early_exit", "decoding.decode.tolerance=0.02", "draft.layer=3", "draft.earlier=2"]
    cfg = composed("eval", overrides)
    parts = cfg.composed.checkpoints
    assert (parts.draft_point, parts.earlier_point, cfg.decoding.decode.tolerance) == (3, 2, 0.02)
    fields = policy_fields(cfg, overrides)
    assert fields["options"]["tolerance"] == 0.02 and fields["checkpoints"]["earlier"] == fields["checkpoints"]["draft"]
    plain = policy_fields(composed("eval", overrides[:1]), overrides[:1])
    assert plain["options"]["tolerance"] is None and plain["checkpoints"]["earlier"] is None


@pytest.mark.parametrize("name", ["eval", "serve"])
def test_delay_and_async_make_the_clock(name):
    def clock(*overrides):
        return configured_clock(composed(name, ["policy=released", *overrides]), ["policy=released", *overrides])

    assert clock() == Clock(delay=0) and clock("delay=2") == Clock(delay=2)
    assert clock("decoding=l1", "delay=2", "async=naive") == Naive(delay=2) != Clock(delay=2)
    with pytest.raises(InstantiationException) as raised:
        clock("async=rtc")
    assert "async=rtc is real-time chunking" in str(cause_of(raised.value))
    for delay in ("-1", "1.5", "two", "null"):
        with pytest.raises(SettingError, match=r"delay is .*, expected a whole number of at least 0"):
            clock(f"delay={delay}")


@pytest.mark.parametrize("policy", [["policy=released"], []])
def test_a_delay_is_held_to_the_chunk_before_anything_is_loaded(policy):
    overrides = [*policy, "delay=8", "async=naive"]
    with pytest.raises(DelayError, match="delay=8 with async=naive, but a chunk has 8 actions"):
        configured_clock(composed("eval", overrides), overrides)


def test_nobody_stands_still_who_does_not_know_how():
    policy = rsd.load("released", decoding="l1")
    check_clock(policy, Naive(delay=7))
    with pytest.raises(DelayError, match="a chunk has 8 actions"):
        check_clock(policy, Naive(delay=8))
    with pytest.raises(DelayError, match="a chunk has 8 actions"):
        policy.queue(clock=Naive(delay=8))
    assert policy.queue(clock=Clock(delay=2)).needs_observation
    with pytest.raises(SettingError, match="two clocks for one delay; set delay=0, or another decoding"):
        check_clock(
            rsd.load("released", decoding=Anytime(full=L1(), num_draft_stages=1, budget_passes=0.5)), Clock(delay=1)
        )
    object.__setattr__(policy.base.spec.space, "gripper", "unchanged")
    check_clock(policy, Clock())
    with pytest.raises(SettingError, match=r"delay=1 has the robot stand still at times, .* space has 'unchanged'"):
        check_clock(policy, Clock(delay=1))


@pytest.mark.parametrize("decoding", ["exit", "early_exit"])
def test_a_draft_in_numbers_goes_to_the_parts_and_leaves_the_tokenizer_out_of_the_plan(tmp_path, decoding):
    overrides = [f"decoding={decoding}", "draft=numbers", f"paths.draft={tmp_path}"]
    cfg = composed("eval", overrides)
    assert cfg.composed.checkpoints.readout == "numbers" and cfg.decoding.decode.num_draft_stages is None
    fields = policy_fields(cfg, overrides)
    used = {part for part, path in fields["checkpoints"].items() if path is not None}
    assert (fields["draft"], used) == ("numbers", {"base", "draft"})
    overrides = ["policy=released", "decoding=exit", "draft=numbers"]
    assert folder_options(composed("eval", overrides), overrides)["draft"] == "numbers"
    assert composed("eval", []).composed.checkpoints.readout == "tokens"


def test_picture_tokens_go_to_the_folder_and_into_the_plan():
    overrides = ["policy=released", "visual_tokens=grid", "visual_tokens.num_tokens=8"]
    grid = {"kind": "grid", "num_tokens": 8}
    cfg = composed("eval", overrides)
    assert folder_options(cfg, overrides)["visual_tokens"].to_json() == grid
    assert policy_fields(cfg, overrides)["base"]["visual_tokens"] == grid
    cfg = composed("eval", overrides[1:])
    assert policy_fields(cfg, overrides[1:])["base"]["visual_tokens"]["num_tokens"] == 8
    plain = composed("eval", [])
    assert "visual_tokens" not in policy_fields(plain, [])["base"]  # plans are those of earlier versions
    assert "visual_tokens" not in folder_options(composed("eval", overrides[:1]), overrides[:1])


def test_a_plan_says_how_a_composed_policy_is_run_where_it_is_not_as_ever():
    plain = ["model=oft_spatial", "data=libero_spatial"]
    base = policy_fields(composed("eval", plain), plain)["base"]
    assert base["execution"] == "eager" and "fp8" not in base and "pictures" not in base
    typed = [*plain, "model.backbone.execution=fp8", "model.backbone.pictures=device", "model.backbone.fp8.limit=0.1"]
    base = policy_fields(composed("eval", typed), typed)["base"]
    assert base["fp8"]["limit"] == 0.1 and base["pictures"] == "device"


def test_a_number_of_picture_tokens_without_a_choice_is_refused():
    overrides = ["policy=released", "visual_tokens.num_tokens=8"]
    with pytest.raises(InstantiationException) as raised:
        folder_options(composed("eval", overrides), overrides)
    assert "num_tokens is 8, and visual_tokens=all keeps every one" in str(cause_of(raised.value))
