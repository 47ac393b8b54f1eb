"""Demonstrations executed again, on the point mass: which can be, from where, and what the arms make of them."""

import dataclasses
import json
from contextlib import closing
from functools import partial

import numpy as np
import pytest

from rsd.demos.demonstrations import record_demonstration
from rsd.demos.rerun import MAX_START_OFF, ArmOutcome, Rerun, RerunError, execute, rerun, run_commands, start_off
from rsd.demos.schedule import Attempt
from rsd.demos.starts import Start, evenly, find_starts
from tests.scripts.point_mass import PointMassExpert, RandomPointMassEnv

FILES = {"pick_up_the_bowl": 4}
WHERE = {"suite": "toy", "recipes": {}, "task_files": FILES, "hdf5": None, "where": "/d/toy/1.0.0"}
SEED = 2  # a placement that its expert solves


@pytest.fixture
def job(tmp_path):
    """An episode of the point mass as it was recorded, and the same with half of every motion."""
    env = RandomPointMassEnv(task_id=1, marks=str(tmp_path), end_at_success=False)
    recorded = record_demonstration(env, PointMassExpert(env), seed=SEED, noise_scales=(0.0,))
    assert recorded.outcome == "success"
    actions = np.stack(recorded.actions)
    half = actions * np.array([0.5] * 6 + [1.0])
    return Rerun(0, 1, SEED, None, "image", recorded.images["image"][0], {"raw": actions, "half": half})


def test_recorded_actions_solve_their_episode_and_others_do_not(job, tmp_path):
    off, arms = execute(RandomPointMassEnv(task_id=1, marks=str(tmp_path)), job, num_still=2)
    assert off == 0 and arms == {
        "raw": ArmOutcome(True, len(job.arms["raw"])),
        "half": ArmOutcome(False, len(job.arms["half"]) + 2),
    }


def test_another_start_is_not_believed(job, tmp_path):
    env = RandomPointMassEnv(task_id=1, marks=str(tmp_path))
    off, arms = execute(env, dataclasses.replace(job, picture=255 - job.picture), num_still=0)
    assert off > MAX_START_OFF and arms == {}


def test_commands_are_clipped_and_what_is_falling_gets_time():
    class Falling:
        """Succeeds two steps behind the last command, and remembers what it was told."""

        task = type("Task", (), {"limits": (-1.0, 1.0)})()

        def __init__(self):
            self.told = []

        def step(self, action, observe=True):
            self.told.append(action.tolist())
            return type("Step", (), {"success": len(self.told) == 4})()

    env = Falling()
    assert run_commands(env, np.array([[2.0, -1.0], [0.5, 1.0]]), num_still=3) == ArmOutcome(True, 4)
    assert env.told == [[1.0, -1.0], [0.5, 1.0], [0.0, 1.0], [0.0, 1.0]]


def test_starts_are_compared_whatever_the_size():
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    moved = picture.copy()
    moved[8:16, 8:16] = 200  # one block of the eight by eight
    assert start_off(picture, np.zeros((128, 128, 3), dtype=np.uint8)) == 0
    assert start_off(picture, moved) == 200


def test_several_processes_do_all_episodes(job, tmp_path):
    jobs = [dataclasses.replace(job, episode=number) for number in range(3)]
    make = partial(RandomPointMassEnv, marks=str(tmp_path))
    with closing(rerun(jobs, make, num_still=0, num_workers=2, report=print)) as lines:
        found = {one.episode: arms for one, _, arms in lines}
    assert sorted(found) == [0, 1, 2] and all(
        arms["raw"].success and not arms["half"].success for arms in found.values()
    )


@pytest.mark.slow
def test_a_task_that_cannot_be_set_up_ends_it(job, tmp_path):
    make = partial(RandomPointMassEnv, marks=str(tmp_path), broken=1)
    with pytest.raises(RerunError, match="episode 0 cannot be executed again: ValueError: task 1 has another goal"):
        list(rerun([job], make, num_still=0, num_workers=1, report=print))


@pytest.mark.slow
def test_the_others_go_on_where_somebody_is_told_of_what_is_lost(job, tmp_path):
    make, told = partial(RandomPointMassEnv, marks=str(tmp_path), broken=2), []
    jobs = [job, dataclasses.replace(job, episode=5, task_id=2)]
    lost = lambda one, why: told.append((one.episode, why))  # noqa: E731
    found = [one.episode for one, _, _ in rerun(jobs, make, num_still=0, num_workers=1, report=print, lost=lost)]
    assert found == [0] and told == [(5, "ValueError: task 2 has another goal")]


def test_names_of_collected_episodes_tell_placement_and_disturbance():
    attempts = [Attempt("toy", 2, 7, number) for number in range(12)]
    recipes = {"toy/seed_7": {"settings": {"noise_scales": [0.0, 0.3], "make_lead": None}}}
    starts, notes = find_starts([one.name for one in attempts], **WHERE | {"recipes": recipes})
    assert notes == [] and [one.placement_seed for one in starts] == [one.placement_seed for one in attempts]
    drawn = [np.random.default_rng(one.placement_seed).choice([0.0, 0.3]) for one in attempts]
    assert [one.noise_scale for one in starts] == drawn and {*drawn} == {0.0, 0.3}
    assert find_starts([attempts[0].name], **WHERE)[0][0].noise_scale is None  # nobody knows how it was made


def test_names_that_tell_no_start_are_refused_with_the_remedy():
    published = ["/scratch/openvla/pick_up_the_bowl_demo.hdf5"] * 2
    with pytest.raises(RerunError) as error:
        find_starts(published, **WHERE)
    text = str(error.value)
    assert text.startswith(
        "/d/toy/1.0.0: no episode can be executed again in toy: 2 of 2 episodes have names that tell no"
    )
    assert "RLDS records hold no simulator state" in text and "hdf5=FOLDER" in text
    with pytest.raises(RerunError, match="they have no names"):
        find_starts([], **WHERE)
    with pytest.raises(RerunError, match="1 of 1 episodes are of other"):
        find_starts([Attempt("other", 0, 0, 0).name], **WHERE)
    led = {"toy/seed_0": {"settings": {"make_lead": {"_target_": "x"}}}}
    with pytest.raises(RerunError, match="begin where a policy has brought the scene to"):
        find_starts([Attempt("toy", 0, 0, 0).name], **WHERE | {"recipes": led})


def test_converted_sets_begin_in_the_states_of_their_files(tmp_path):
    name = "pick_up_the_bowl_demo/demo_3"
    with pytest.raises(RerunError, match="are of HDF5 files, whose folder hdf5= has to say"):
        find_starts([name], **WHERE)
    with pytest.raises(RerunError, match="are of HDF5 files that are not in"):
        find_starts([name], **WHERE | {"hdf5": tmp_path})
    with pytest.raises(RerunError, match="are of HDF5 files of other tasks"):
        find_starts(["open_the_drawer_demo/demo_3"], **WHERE | {"hdf5": tmp_path})
    (tmp_path / "pick_up_the_bowl_demo.hdf5").touch()
    (start,), _ = find_starts([name], **WHERE | {"hdf5": tmp_path})
    assert (start.task_id, start.demo, start.noise_scale) == (4, "demo_3", 0.0)
    with pytest.raises(RerunError, match=r"h5py|holds no data/demo_3/states"):
        start.state()


def test_a_state_comes_of_the_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data/demo_0/states"] = np.arange(6.0).reshape(2, 3)
    assert Start(0, 0, file=tmp_path / "a.hdf5", demo="demo_0").state().tolist() == [0, 1, 2]


def test_tasks_take_turns_and_more_begin_with_the_same():
    starts = [Start(episode, task) for episode, task in enumerate([0, 0, 0, 1, 2, 2])]
    assert [one.episode for one in evenly(starts, 4)] == [0, 3, 4, 1]
    assert [one.episode for one in evenly(starts, 99)] == [0, 3, 4, 1, 5, 2]


def test_json_of_a_result_is_one_line():
    assert json.loads(json.dumps(dataclasses.asdict(ArmOutcome(True, 3)))) == {"success": True, "num_steps": 3}
