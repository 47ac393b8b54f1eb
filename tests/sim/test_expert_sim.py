"""The scripted expert on the real simulator: it solves tasks, sees no evaluation state, and stores what was there."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from rsd.demos.demonstrations import LiberoExpert, record_demonstration
from rsd.demos.expert import CLOSE, GRASP_STEPS, OPEN
from rsd.demos.hand import fingers_open
from rsd.demos.schedule import Attempt
from rsd.envs.exchange import Exchange
from rsd.envs.libero import LiberoEnv
from rsd.envs.placements import SAME_M, nearest_init_state, object_columns
from rsd.envs.suites import load_task
from rsd.errors import SettingError

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
    ("suite", "task_id", "seed", "placement", "exchange"),
    [
        ("libero_object", 2, 77, 10, None),  # the hand came in 7 mm above the bottle, and tipped it over
        ("libero_spatial", 4, 43, 2, Exchange(share=1.0)),  # the bowl struck the front of the drawer that it was in
        ("libero_goal", 6, 77, 0, None),  # the box beside a bowl that is lower than the palm
    ],
)
def test_solves_what_it_once_did_not(suite, task_id, seed, placement, exchange):
    env = LiberoEnv(suite=suite, task_id=task_id, max_steps=280, exchange=exchange)
    try:
        attempt = Attempt(suite, task_id, seed, placement)
        demonstration = record_demonstration(
            env, LiberoExpert(env), seed=attempt.placement_seed, noise_scales=(0.0, 0.2, 0.4), render=False
        )
        assert demonstration.outcome == "success"
        assert demonstration.num_steps < 150
    finally:
        env.close()


@pytest.mark.parametrize(
    "task_id",
    [
        0,  # open the middle drawer
        3,  # open the top drawer and put the bowl inside
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
        assert demonstration.num_steps < 240
    finally:
        env.close()


def test_a_book_stays_in_the_caddy():
    """It leans: upright on the bottom it would be too low for LIBERO."""
    env = LiberoEnv(suite="libero_10", task_id=5, max_steps=520, end_at_success=False)
    try:
        demonstration = record_demonstration(
            env, LiberoExpert(env), seed=4, noise_scales=(0.15,), num_tail_steps=40, render=False
        )
        assert demonstration.outcome == "success"
    finally:
        env.close()


@pytest.mark.parametrize(
    "task_id",
    [
        1,  # a flat box beside a tall carton, and another one
        2,  # turn on the stove, and the moka pot on it
        3,  # the bowl into the drawer, and close it
        5,  # the book into the caddy
        8,  # one pot past the other
    ],
)
def test_solves_libero_10(task_id: int):
    env = LiberoEnv(suite="libero_10", task_id=task_id, max_steps=520)
    try:
        demonstration = record_demonstration(env, LiberoExpert(env), seed=3, noise_scales=(0.15,), render=False)
        assert demonstration.outcome == "success"
        assert demonstration.num_steps < 300
    finally:
        env.close()


class Watched(LiberoExpert):
    """Writes down, at every step, whether it holds something and how high the object has risen."""

    def __init__(self, env: LiberoEnv) -> None:
        super().__init__(env)
        self.seen: list[tuple[bool, float]] = []

    def act(self, observation):
        height = self._domain.sim.data.body_xpos[self._domain.obj_body_id[self._names[0]]][2]
        self.seen.append((self.holds_something(), float(height)))
        return super().act(observation)


def test_the_hand_is_known_to_hold_what_it_carries(env: LiberoEnv):
    expert = Watched(env)
    assert record_demonstration(env, expert, seed=3, noise_scales=(0.0,), render=False).outcome == "success"
    holds, heights = (np.array(column) for column in zip(*expert.seen, strict=True))
    risen = heights > heights[0] + 0.06
    assert risen.sum() > 10 and holds[risen].mean() > 0.9  # contacts flicker for a step at times
    assert not holds[:10].any()


def test_it_is_known_when_the_fingers_are_open(env: LiberoEnv):
    env.reset_random(3)
    for gripper in (OPEN, CLOSE, OPEN):
        for _ in range(GRASP_STEPS):
            env.step(np.array([0, 0, 0, 0, 0, 0, gripper]), observe=False)
        assert fingers_open(env.simulator.env) is (gripper == OPEN)


def test_goes_on_from_where_another_has_put_the_object(env: LiberoEnv):
    """The lead drops it half-way; the expert, seeing nothing of that, solves the task from there."""

    class Dropper(LiberoExpert):
        def act(self, observation):
            action, harmless = super().act(observation)
            self.held = getattr(self, "held", 0) + self.holds_something()
            return (np.array([0, 0, 0, 0, 0, 0, -1.0]) if self.held > 12 else action), harmless

    dropper = Dropper(env)
    options = {"seed": 3, "noise_scales": (0.0,), "render": False}
    demonstration = record_demonstration(env, LiberoExpert(env), lead=dropper, lead_steps=(70, 70), **options)
    assert demonstration.outcome == "success" and dropper.held > 12


def test_refuses_a_task_with_another_goal():
    env = LiberoEnv(suite="libero_10", task_id=9, max_steps=520)
    try:
        unreached = r"does not reach \['in', 'white_yellow_mug_1', 'microwave_1_heating_region'\]"
        with pytest.raises(SettingError, match=rf"{unreached}.*choose other tasks"):
            LiberoExpert(env)
    finally:
        env.close()


def test_stored_step_is_what_a_policy_would_see(env: LiberoEnv):
    env.task, task = dataclasses.replace(env.task, max_steps=10), env.task
    try:
        demonstration = record_demonstration(env, LiberoExpert(env), seed=5, noise_scales=(0.0,))
    finally:
        env.task = task
    assert len(demonstration.actions) == demonstration.num_steps == 10
    observation = env.reset_random(5)
    for step, action in enumerate(demonstration.actions):
        looked_at = step in (0, 4, 9)
        if looked_at:
            for view, pictures in demonstration.images.items():
                np.testing.assert_array_equal(pictures[step], observation.images[view])
            np.testing.assert_array_equal(demonstration.states[step], observation.proprio)
        observation = env.step(action, observe=step + 1 in (4, 9)).observation


def test_random_placements_are_no_evaluation_states(env: LiberoEnv):
    init_states = load_task(env.task.suite, env.task.task_id).init_states  # [N, 1 + positions + velocities]
    sim = env.simulator.sim
    columns = object_columns(sim.model)
    env.reset(0)
    number, distance = nearest_init_state(env.simulator.get_sim_state(), init_states, columns)
    assert number == 0 and distance < 0.01  # the columns are the right ones: only settled since
    for placement in range(10):
        env.reset_random(Attempt(env.task.suite, env.task.task_id, 0, placement).placement_seed)
        assert nearest_init_state(env.simulator.get_sim_state(), init_states, columns)[1] > SAME_M
