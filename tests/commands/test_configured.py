"""What may be typed beside policy=FOLDER: what the folder does not decide on."""

import os
import shutil

import pytest
from hydra.errors import InstantiationException

from rsd.commands.configured import folder_options, policy_fields
from rsd.commands.entry_point import cause_of
from rsd.errors import SettingError
from rsd.policy import PolicyError
from rsd.policy.folder import calibrated
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
    plain = folder_options(composed("eval", overrides[:1]), overrides[:1])
    assert plain["decoding"] is None and "execution" not in plain


def test_a_decoding_by_its_name_alone_is_the_calibrated_one_of_the_folder(tmp_path):
    shutil.copytree("released", tmp_path / "mine", copy_function=os.link)
    (tmp_path / "mine" / "policy.json").unlink()
    shutil.copy("released/policy.json", tmp_path / "mine")
    overrides = [f"policy={tmp_path / 'mine'}", "decoding=temporal", "env=libero_goal", "env.variant=swap"]
    before = folder_options(composed("eval", overrides), overrides)
    assert before["decoding"].gate.threshold == -0.2833 and before["draft"] == "micro"
    calibrated(tmp_path / "mine", "temporal", -0.5, {"suites": ["libero_goal"]})
    found = folder_options(composed("eval", overrides), overrides)
    assert (found["decoding"], found["draft"], found["suite"]) == ("temporal", None, "libero_goal_swap")
    with pytest.raises(PolicyError, match=r"'temporal' was calibrated for libero_goal, not for libero_goal_swap"):
        policy_fields(composed("eval", overrides), overrides)
    fields = policy_fields(composed("eval", overrides[:3]), overrides[:3])
    assert fields["options"]["gate"]["threshold"] == -0.5 and fields["decoding"] == "temporal"
    by_hand = [*overrides, "decoding.decode.gate.threshold=-0.1"]
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


def test_a_number_of_picture_tokens_without_a_choice_is_refused():
    overrides = ["policy=released", "visual_tokens.num_tokens=8"]
    with pytest.raises(InstantiationException) as raised:
        folder_options(composed("eval", overrides), overrides)
    assert "num_tokens is 8, and visual_tokens=all keeps every one" in str(cause_of(raised.value))
