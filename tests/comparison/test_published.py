"""Verdicts against published.yaml, and the settings that are checked when a rate is not the published one."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from rsd.commands.configured import policy_fields
from rsd.comparison.published import check_settings, compare_with_published, load_published, look_up
from tests.fakes import point_mass_tasks

CONF = Path(__file__).parents[2] / "conf"
TABLE = load_published()


def success(num_success: int, num_trials: int, num_errors: int = 0) -> dict:
    rate = num_success / num_trials if num_trials else None
    episodes = num_trials + num_errors
    return {"num_success": num_success, "num_episodes": episodes, "num_errors": num_errors, "success_rate": rate}


def composed_settings(model: str, suite: str, *overrides: str) -> dict:
    """The settings of the plan that eval.py makes; the tasks are those that the simulator would tell."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", [f"model={model}", f"env={suite}", *overrides])
    made = cfg.env.make
    tasks = point_mass_tasks(num_tasks=cfg.env.num_tasks, suite=suite, max_steps=made.max_steps, num_init_states=50)
    tasks = [dataclasses.replace(task, protocol=instantiate(made.protocol)) for task in tasks]
    plan = instantiate(cfg.plan)(tasks=tasks, policy=policy_fields(cfg, []))
    return {**plan.settings(), "versions": {"mujoco": "3.2.3"}, "num_errors": 0}


PUBLISHED = [
    (model, suite) for entry in TABLE["tables"] for model, rates in entry["success_rates"].items() for suite in rates
]


@pytest.mark.parametrize(("model", "suite"), PUBLISHED)
def test_rsds_own_configuration_of_every_published_model_is_the_published_one(model, suite):
    overrides = ["chunk=1", "protocol=openvla"] if model.startswith("openvla") else []
    verdict = compare_with_published(
        TABLE, model, suite, success(400, 500), composed_settings(model, suite, *overrides)
    )
    assert [check for check in verdict["checks"] if check["status"] != "as published"] == []


@pytest.mark.parametrize(
    ("num_success", "num_trials", "verdict"),
    [(488, 500, "inside"), (470, 500, "below"), (500, 500, "above"), (45, 50, "below"), (47, 50, "inside")],
)
def test_verdicts_against_97_6_per_cent_of_500(num_success, num_trials, verdict):
    found = compare_with_published(TABLE, "oft_spatial", "libero_spatial", success(num_success, num_trials), {})
    assert found["verdict"] == verdict and found["published"] == 0.976
    assert found["difference"] == pytest.approx(num_success / num_trials - 0.976)
    assert found["low"] < found["difference"] < found["high"]
    assert "2502.19645" in found["source"]


def test_crashed_episodes_are_not_in_the_rate():
    found = compare_with_published(TABLE, "oft_spatial", "libero_spatial", success(488, 500, num_errors=100), {})
    assert found["verdict"] == "inside"


@pytest.mark.parametrize(
    ("model", "suite", "trials"),
    [
        ("oft_small", "libero_spatial", 500),  # trained from scratch: no reproduction of anything
        ("oft_spatial", "libero_object", 500),  # a model on another suite than its own
        (None, "libero_spatial", 500),
        ("oft_spatial", "libero_spatial", 0),
    ],
)
def test_no_verdict_without_a_published_rate(model, suite, trials):
    assert compare_with_published(TABLE, model, suite, success(trials, trials, num_errors=1), {}) is None


def test_settings_that_differ_come_first_with_their_reason():
    settings = composed_settings("oft_spatial", "libero_spatial", "num_trials=10")
    settings["versions"]["mujoco"] = "3.3.0"
    checks = compare_with_published(TABLE, "oft_spatial", "libero_spatial", success(90, 100), settings)["checks"]
    assert [(c["setting"], c["expected"], c["found"]) for c in checks if c["status"] == "differs"] == [
        ("versions.mujoco", "3.2.3", "3.3.0"),
        ("num_trials", 50, 10),
    ]
    assert checks[0]["why"].startswith("other versions change physics")


def test_the_suites_own_name_is_a_right_unnorm_key_too():
    expected = {"policy.unnorm_key": "libero_goal_no_noops"}
    for key, status in (("libero_goal", "as published"), ("libero_10_no_noops", "differs")):
        settings = {"policy": {"unnorm_key": key}}
        assert check_settings(expected, settings, TABLE["why"])[0]["status"] == status


def test_look_up():
    assert look_up({"a": {"b": None}}, "a.b") is None
    assert look_up({"a": {"b": 1}}, "a.c") == look_up({"a": 1}, "a.b") == "not recorded"
