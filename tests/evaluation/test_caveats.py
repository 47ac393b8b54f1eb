"""The banners at the head of a report."""

import dataclasses

import pytest

from rsd.evaluation.caveats import caveats, stamps
from rsd.evaluation.plan import Protocol, Stopping
from rsd.evaluation.sequential import anytime_interval
from rsd.types import EpisodeResult
from tests.evaluation.folders import plan_of
from tests.fakes import point_mass_tasks

RULE = Stopping("StopWhenDecided", {"rate": 0.9})


def planned(num_planned=2, **changes):
    plan = plan_of(point_mass_tasks(num_tasks=1), num_init_states=500, num_trials=num_planned)
    return dataclasses.replace(plan, **changes)


def episode(init_state_id=0, *, error=None, mujoco="3.2.3"):
    success = error is None
    versions = {"mujoco": mujoco}
    return EpisodeResult(
        "s", 0, "do it", init_state_id, 0, success, 10, error=error, protocol="openvla_oft-1", versions=versions
    )


def titles(results, plan):
    return [caveat["title"] for caveat in caveats(results, plan=plan, stopped=None)]


def test_a_proper_run_has_none():
    assert titles([episode(0), episode(1)], planned()) == []


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"allowed_versions": {"mujoco": "3.3.0"}}, "MuJoCo 3.3.0 by override."),
        ({"ablation": "BlackPictures"}, "Ablation: BlackPictures."),
        ({"variant": "swap"}, "Suite variant: swap."),
    ],
)
def test_what_the_plan_gives_away(change, title):
    assert titles([episode(0), episode(1)], planned(**change)) == [title]


def test_a_protocol_that_is_not_kept_has_a_banner():
    values = {"num_wait_steps": 0, "image_size": 256, "clip_actions": True}
    protocol = Protocol("openvla_oft-1 with num_wait_steps=0, max_steps=60", values)
    tasks = point_mass_tasks(num_tasks=1, suite="libero_goal")
    wrong = "Not openvla_oft-1: num_wait_steps 0 instead of 10, max_steps 60 instead of 300."
    plan = planned(protocol=protocol, tasks=tuple(tasks))
    assert titles([episode(0), episode(1)], plan) == [wrong]
    perturbed = [dataclasses.replace(task, suite="libero_goal_swap") for task in tasks]
    plan = dataclasses.replace(plan, tasks=tuple(perturbed), variant="swap")
    assert titles([episode(0), episode(1)], plan)[0] == wrong
    ones_own = dataclasses.replace(plan, protocol=Protocol("mine-1", values), variant=None)
    assert titles([episode(0), episode(1)], ones_own) == []


def test_an_early_stop_has_its_verdict_and_the_interval_that_holds_then():
    plan, results = planned(500, stopping=RULE), [episode(i) for i in range(34)]
    stopped = {"verdict": "above", "num_success": 30, "num_trials": 31}
    (caveat,) = caveats(results, plan=plan, stopped=stopped)
    assert caveat["title"] == "Stopped early: the success rate is above 90 %."
    low, high = anytime_interval(30, 31)
    assert "after 31 of at most 500 episodes, 30 of them solved; the interval" in caveat["text"]
    assert f"{100 * low:.1f} – {100 * high:.1f} %" in caveat["text"] and "all 34 episodes" in caveat["text"]


def test_a_run_with_a_rule_but_no_verdict_is_incomplete():
    assert titles([episode(0)], planned(stopping=RULE)) == ["Incomplete: 1 of 2 episodes."]


def test_crashes_come_first_and_incompleteness_last():
    results = [episode(0), episode(1, error="RuntimeError: x"), episode(2, mujoco="3.3.0")]
    assert titles(results, planned(5)) == [
        "1 of 3 episodes crashed.",
        "Not one run.",
        "Incomplete: 3 of 5 episodes.",
    ]
    (mixture,) = [c for c in caveats(results, plan=planned(3), stopped=None) if c["title"] == "Not one run."]
    assert "(mujoco: 3.2.3, 3.3.0)" in mixture["text"]


def test_results_without_a_plan():
    assert titles([episode()], None) == ["The folder has no plan.json."]


def test_stamps_leave_out_what_old_results_do_not_say():
    assert stamps([episode()]) == {"protocol": ["openvla_oft-1"], "mujoco": ["3.2.3"]}
    assert stamps([EpisodeResult("s", 0, "do it", 0, 0, True, 10)]) == {}
