"""The scripted expert on the real simulator: it solves tasks, sees no evaluation state, and stores what was there."""

from collections.abc import Iterator

import numpy as np
import pytest

from rsd.envs.demonstrations import LiberoExpert, record_demonstration
from rsd.envs.libero import LiberoEnv
from rsd.envs.placements import SAME_M, nearest_init_state, object_columns
from rsd.envs.schedule import Attempt
from rsd.envs.suites import load_task

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv(suite="libero_spatial", task_id=8, max_steps=220)
    yield env
    env.close()


def test_solves_libero_spatial(env: LiberoEnv):
    demonstration = record_demonstration(env, LiberoExpert(env), seed=3, noise_scales=(0.15,), render=False)
    assert demonstration.outcome == "success"
    assert demonstration.num_steps < 150


def test_solves_libero_object():
    env = LiberoEnv(suite="libero_object", task_id=0, max_steps=280)
    try:
        demonstration = record_demonstration(env, LiberoExpert(env), seed=3, noise_scales=(0.15,), render=False)
        assert demonstration.outcome == "success"
    finally:
        env.close()


@pytest.mark.parametrize(
    "task_id",
    [
        0,  # open the middle drawer
        5,  # push the plate
        7,  # turn on the stove
        9,  # put the wine bottle on the rack
    ],
)
def test_solves_libero_goal(task_id: int):
    env = LiberoEnv(suite="libero_goal", task_id=task_id, max_steps=300)
    try:
        demonstration = record_demonstration(env, LiberoExpert(env), seed=3, noise_scales=(0.15,), render=False)
        assert demonstration.outcome == "success"
        assert demonstration.num_steps < 200
    finally:
        env.close()


def test_refuses_a_task_with_another_goal():
    env = LiberoEnv(suite="libero_goal", task_id=3, max_steps=300)
    try:
        with pytest.raises(ValueError, match=r"akita_black_bowl_1.*choose other tasks"):
            LiberoExpert(env)
    finally:
        env.close()


def test_stored_step_is_what_a_policy_would_see(env: LiberoEnv):
    env.max_steps, limit = 10, env.max_steps
    try:
        demonstration = record_demonstration(env, LiberoExpert(env), seed=5, noise_scales=(0.0,))
    finally:
        env.max_steps = limit
    assert len(demonstration.actions) == demonstration.num_steps == 10
    observation = env.reset_random(5)
    for step, action in enumerate(demonstration.actions):
        looked_at = step in (0, 4, 9)
        if looked_at:
            for view, pictures in demonstration.images.items():
                np.testing.assert_array_equal(pictures[step], observation.images[view])
            np.testing.assert_array_equal(demonstration.states[step], observation.proprio)
        observation, _ = env.step(action, observe=step + 1 in (4, 9))


def test_random_placements_are_no_evaluation_states(env: LiberoEnv):
    init_states = load_task(env.suite, env.task_id).init_states  # [N, 1 + positions + velocities]
    sim = env.simulator.sim
    columns = object_columns(sim.model)
    env.reset(0)
    number, distance = nearest_init_state(env.simulator.get_sim_state(), init_states, columns)
    assert number == 0 and distance < 0.01  # the columns are the right ones: only settled since
    for placement in range(10):
        env.reset_random(Attempt(env.suite, env.task_id, 0, placement).placement_seed)
        assert nearest_init_state(env.simulator.get_sim_state(), init_states, columns)[1] > SAME_M
