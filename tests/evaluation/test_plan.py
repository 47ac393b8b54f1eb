"""plan.json: what is written, read back, refused, and held against a resume."""

import dataclasses
import json

import pytest

from rsd.evaluation.plan import CheckpointName, Plan, PlanError, Stopping, keep_plan
from tests.evaluation.folders import plan_of
from tests.fakes import point_mass_tasks


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "checkpoint.json").write_text('{"sha256": "ab12"}')
    policy = {
        "model": "oft_small", "decoding": "speculative", "options": {"_target_": "x.y", "num_draft_stages": 2},
        "base": {"_target_": "x.load", "checkpoint": "a/b", "unnorm_key": "u", "robot": {"_target_": "x", "hand": "g"}},
        "checkpoints": {"base": "models/oft", "head": str(tmp_path / "head"), "draft": None},
    }  # fmt: skip
    environment = {
        "_target_": "x.Env", "suite": "s", "variant": None, "max_steps": 60, "protocol": "p", "num_wait_steps": 10
    }  # fmt: skip
    made = plan_of(
        point_mass_tasks(num_tasks=3), task_ids=[2, 0], policy=policy, environment=environment,
        allowed_versions={"mujoco": "3.3.0", "robosuite": None}, save_videos=1,
    )  # fmt: skip
    return dataclasses.replace(made, stopping=Stopping("StopWhenDecided", {"rate": 0.9}))


def test_a_plan_says_what_is_known_and_each_thing_once(plan):
    assert plan.suite == "point_mass" and [task.task_id for task in plan.tasks] == [0, 2]
    assert [one.task_id for one in plan.episodes] == [2] * 4 + [0] * 4 and plan.episodes[0].record
    assert plan.protocol.values == {"num_wait_steps": 10, "clip_actions": True}
    assert plan.policy.options == {"num_draft_stages": 2} and plan.policy.base == {"robot": {"hand": "g"}}
    assert plan.policy.checkpoints == {"base": CheckpointName("oft", None), "head": CheckpointName("head", "ab12")}
    assert plan.allowed_versions == {"mujoco": "3.3.0"}


def test_what_is_read_back_equals_what_was_written(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_settings_leave_out_episodes_and_what_the_policy_does_not_tell(plan):
    settings = plan.settings()
    assert (settings["num_tasks"], settings["max_steps"], settings["num_trials"]) == (2, 60, 4)
    assert "episodes" not in settings and "tasks" not in settings and "target" not in settings["policy"]
    first, second = plan.tasks
    plan = dataclasses.replace(plan, tasks=(first, dataclasses.replace(second, max_steps=80)))
    assert plan.settings()["max_steps"] == [60, 80]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, r"plan\.json has schema 9, expected 1; read it with the version that wrote it"),
        ({"episodes": [{"task_id": 0}]}, r"plan\.json lacks entry 'episodes\.0\.init_state_id'"),
        ({"policy": {}}, r"plan\.json lacks entry 'policy\.checkpoints'; restore it as eval\.py wrote it"),
        ({"more": 1}, r"plan\.json: entry 'more' is unknown; restore"),
        ({"tasks": 5}, r"plan\.json: entry 'tasks' is 5, expected a list; restore"),
        ({"tasks": []}, r"plan\.json: entry 'tasks' is empty; restore"),
        ({"episodes": []}, r"plan\.json: entry 'episodes' is empty; restore"),
        ({"num_trials": 10**9}, r"'episodes' has 8, expected num_trials \(1000000000\) of each of the 2 tasks, from"),
        ({"num_trials": 10**10}, r"entry 'num_trials' is 10000000000, expected a whole number"),
        ({"num_trials": 0}, r"entry 'num_trials' is 0, expected a whole number of at least 1; restore"),
        ({"stopping": {"name": "x", "values": {}}}, r"plan\.json lacks entry 'stopping\.values\.rate'; restore"),
        ({"stopping": {"name": "x", "values": {"rate": 5}}}, r"'stopping\.values\.rate' is 5, expected a number from"),
        ({"seed": -1}, r"entry 'seed' is -1, expected a whole number from 0 to 4294967295; restore"),
        ({"num_workers": 0}, r"entry 'num_workers' is 0, expected a whole number from 1 to 1024; restore"),
        ({"max_batch": -3}, r"entry 'max_batch' is -3, expected a whole number of at least 1; restore"),
    ],
)
def test_a_damaged_plan_names_what_is_wrong(plan, change, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(plan.to_json() | change)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (("episodes", 0), {"seed": -1}),
        (("episodes", 0), {"init_state_id": -1}),
        (("tasks", 1), {"max_steps": 0}),
        (("tasks", 1), {"control_hz": 0}),
        (("tasks", 1), {"limits": [-1e308, 1.0]}),
        (("policy",), {"num_open_loop_steps": 0}),
    ],
)
def test_a_number_out_of_range_inside_of_a_plan_is_named(plan, place, change):
    record = plan.to_json()
    inside = record
    for name in place:
        inside = inside[name]
    inside |= change
    (entry,) = change
    with pytest.raises(PlanError, match=rf"entry '{'.'.join(map(str, place))}\.{entry}.* is .*, expected .*restore"):
        Plan.from_json(record)


@pytest.mark.parametrize("change", [{"init_state_id": 4}, {"init_state_id": 1}, {"task_id": 1}])
def test_episodes_are_those_of_the_trials(plan, change):
    record = plan.to_json()
    record["episodes"][0] |= change
    with pytest.raises(PlanError, match=r"'episodes' has 8, expected num_trials \(4\) of each of the 2 tasks"):
        Plan.from_json(record)


def test_a_task_that_no_plan_can_hold_is_named_before_anything_is_run():
    with pytest.raises(PlanError, match=r"task 0 of the suite: entry 'max_steps' is 0, expected .*; correct what env"):
        plan_of(point_mass_tasks(num_tasks=1, max_steps=0))


@pytest.mark.parametrize("record", [{}, [], "plan"])
def test_something_else_is_no_plan(record):
    with pytest.raises(PlanError, match="is no plan of an evaluation: it has no 'schema'"):
        Plan.from_json(record)


def test_a_missing_field_is_named(plan):
    record = plan.to_json()
    del record["seed"]
    with pytest.raises(PlanError, match=r"plan\.json lacks entry 'seed'; restore"):
        Plan.from_json(record)


def test_a_resume_is_held_to_the_stored_plan(plan, tmp_path):
    keep_plan(tmp_path, plan)
    written = (tmp_path / "plan.json").read_text()
    elsewhere = tuple(dataclasses.replace(task, versions={"gl_backend": "egl"}) for task in plan.tasks)
    keep_plan(tmp_path, dataclasses.replace(plan, num_workers=4, tasks=elsewhere))
    checkpoints = plan.policy.checkpoints | {"head": CheckpointName("head", "cd34")}
    other = dataclasses.replace(plan, policy=dataclasses.replace(plan.policy, checkpoints=checkpoints))
    with pytest.raises(PlanError, match=r"planned otherwise: policy\.checkpoints\.head\.sha256: ab12 → cd34\. Put"):
        keep_plan(tmp_path, other)
    with pytest.raises(PlanError, match=r"planned otherwise: episodes: .*; seed: 0 → 1"):
        keep_plan(tmp_path, dataclasses.replace(plan, seed=1, episodes=plan.episodes[:1]))
    assert (tmp_path / "plan.json").read_text() == written
