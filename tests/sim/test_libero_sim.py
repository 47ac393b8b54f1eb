"""LiberoEnv keeps the Env contract and equals LIBERO's own environment bit for bit, in pictures and in physics."""

from collections.abc import Callable

import numpy as np
import pytest

from rsd.envs import suites
from rsd.envs.gl import SimulatorError, check_simulator
from rsd.envs.libero import LiberoEnv, libero_tasks
from rsd.envs.placements import PlacementError
from rsd.envs.reference import ReferenceEnv
from rsd.envs.scene_trials import run_scene_trials
from rsd.errors import SettingError
from tests.envs.contract import EnvContract

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def build():
    """Environments by their arguments, built once (8 s) and closed at the end; a closed one is built anew."""
    built = {}

    def get(**arguments) -> LiberoEnv:
        key = tuple(sorted(arguments.items()))
        if key not in built or built[key].simulator is None:
            built[key] = LiberoEnv(max_steps=220, **arguments)
        built[key]._ready = False  # as before the first reset
        return built[key]

    yield get
    for env in built.values():
        env.close()


class TestLiberoEnv(EnvContract):
    @pytest.fixture
    def env(self, build):
        return build(suite="libero_spatial", task_id=0)

    def succeed(self, env):
        """Hold the bowl over the plate and let go."""
        domain, data = env.simulator.env, env.simulator.sim.data
        x, y, z = data.body_xpos[domain.obj_body_id["plate_1"]]
        bowl = domain.get_object("akita_black_bowl_1")
        data.set_joint_qpos(bowl.joints[-1], np.array([x, y, z + 0.03, 1, 0, 0, 0]))
        for _ in range(30):
            if env.step(np.zeros(7), observe=False).success:
                return True
        return False


@pytest.mark.parametrize(("suite", "task_id"), [("libero_spatial", 4), ("libero_10", 2)])
def test_pictures_and_physics_equal_the_reference(build: Callable, suite: str, task_id: int):
    env = build(suite=suite, task_id=task_id)
    reference = ReferenceEnv(suite, task_id)
    random = np.random.default_rng(0)
    episodes = [(0, 0), (7, 0), (None, 11)]  # init state, seed: the second and third follow resets that did not compile
    for init_state_id, seed in episodes:
        seen = env.reset_random(seed) if init_state_id is None else env.reset(init_state_id)
        expected = reference.reset(init_state_id, seed=seed)
        EnvContract.assert_equal(seen, expected)
        for gripper in (-1.0, 1.0):
            for step in range(8):
                action = np.append(random.uniform(-1, 1, 6), gripper)
                taken = env.step(action, observe=step == 7)
                expected, expected_success = reference.step(action)
                np.testing.assert_array_equal(env.simulator.get_sim_state(), reference.env.get_sim_state())
                assert taken.success == expected_success
            EnvContract.assert_equal(taken.observation, expected)
    reference.close()


def test_a_reset_forgets_that_the_stove_was_on(build: Callable):
    env = build(suite="libero_10", task_id=2)
    first = env.reset(0)
    domain = env.simulator.env
    on = domain.get_object("flat_stove_1").object_properties["articulation"]["default_turnon_ranges"]
    domain.object_states_dict["flat_stove_1"].set_joint(max(on))
    lit = env.step(np.zeros(7)).observation
    assert not np.array_equal(lit.images["image"], first.images["image"])
    EnvContract.assert_equal(env.reset(0), first)


def test_random_resets_depend_on_the_seed_alone_and_are_no_init_states(build: Callable):
    env = build(suite="libero_spatial", task_id=4)
    first = env.reset_random(3)
    state = env.simulator.get_sim_state()
    assert not np.array_equal(env.reset_random(4).images["image"], first.images["image"])
    EnvContract.assert_equal(env.reset_random(3), first)
    assert np.abs(env._init_states[:, 1:] - state[1:]).max(axis=1).min() > 1e-3


def test_a_random_placement_that_is_an_init_state_is_refused():
    env = LiberoEnv(suite="libero_spatial", task_id=4, max_steps=220, num_wait_steps=0, image_size=64)
    env.reset_random(3)
    placed = env.simulator.get_sim_state()
    env._init_states = np.stack([env.init_state(7), placed])
    env.reset_random(4)
    with pytest.raises(PlacementError, match=r"libero_spatial task 4 with seed 3 is evaluation init state 1"):
        env.reset_random(3)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        env.step(np.zeros(7))
    env.close()


def test_fewer_views_render_fewer_pictures():
    env = LiberoEnv(suite="libero_spatial", task_id=4, max_steps=220, views=("image",))
    assert set(env.reset(0).images) == {"image"}
    env.close()


def test_without_waiting_steps_the_first_picture_is_the_init_states():
    env = LiberoEnv(suite="libero_spatial", task_id=4, max_steps=220, num_wait_steps=0, image_size=64)
    assert env.reset(0).images["image"].max() > 0
    env.close()


def test_unknown_suite_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'libero_space' is unknown; available: .*'libero_spatial'"):
        LiberoEnv(suite="libero_space", task_id=0, max_steps=220)


def test_task_id_out_of_range():
    with pytest.raises(IndexError, match=r"task_id 10 is not in suite 'libero_spatial'; expected 0\.\.9"):
        LiberoEnv(suite="libero_spatial", task_id=10, max_steps=220)
    with pytest.raises(SettingError, match="task_id is -1, expected a whole number of at least 0"):
        LiberoEnv(suite="libero_spatial", task_id=-1, max_steps=220)


def test_missing_init_states_are_named(monkeypatch: pytest.MonkeyPatch):
    def nothing_there(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(suites, "load_init_states", nothing_there)
    with pytest.raises(SimulatorError, match=r"init states of libero_spatial task 2 is missing: .*pip"):
        suites.load_task("libero_spatial", 2)


def test_unknown_views_and_a_waiting_action_of_another_robot():
    with pytest.raises(ValueError, match=r"views \['front'\] are not known"):
        LiberoEnv(suite="libero_spatial", task_id=0, max_steps=220, views=("front",))
    with pytest.raises(ValueError, match=r"waiting_action is \(0, 0, .* of 7 entries"):
        LiberoEnv(suite="libero_spatial", task_id=0, max_steps=220, waiting_action=(0,) * 6)


def test_a_protocol_is_its_values_and_its_name(build: Callable):
    usual = build(suite="libero_spatial", task_id=4).reset(0)
    env = LiberoEnv(suite="libero_spatial", task_id=4, max_steps=220, rotate_images=False, protocol="mine-3")
    assert env.task.protocol == "mine-3" and env.task.versions["mujoco"]
    upside_down = env.reset(0)
    np.testing.assert_array_equal(upside_down.images["image"][::-1, ::-1], usual.images["image"])
    env.close()


def test_a_suites_tasks_are_known_before_an_environment_is_built(build: Callable):
    tasks = libero_tasks(suite="libero_spatial", variant=None, num_tasks=10, max_steps=220, protocol="openvla_oft-1")
    assert [task.task_id for task in tasks] == list(range(10))
    env = build(suite="libero_spatial", task_id=4)
    assert tasks[4] == env.task and env.simulator.env.control_freq == env.task.control_hz
    assert {(low, high) for low, high in zip(*env.simulator.env.action_spec, strict=True)} == {env.task.limits}


def test_actions_beyond_the_range_are_clipped_by_robosuite(build: Callable):
    env = build(suite="libero_spatial", task_id=4)
    ends = []
    for scale in (1.0, 3.0):
        env.reset(0)
        for _ in range(3):
            env.step(scale * np.array([1, -1, 1, 0, 0, 0, -1.0]), observe=False)
        ends.append(env.simulator.get_sim_state())
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize(
    ("variant", "instruction", "goal"),
    [
        ("swap", "pick up the black bowl next to the ramekin and place it on the plate", "akita_black_bowl_1"),
        ("object", "pick up the black bowl next to the ramekin and place it on the plate", "black_bowl_1"),
        ("lan", "take black bowl next to ramekin and place on plate", "akita_black_bowl_1"),
        ("task", "pick the akita black bowl next to the cookie box and place it on the plate", "akita_black_bowl_2"),
    ],
)
def test_perturbed_suites_run_with_their_own_words_and_goals(variant: str, instruction: str, goal: str):
    env = LiberoEnv(suite="libero_spatial", variant=variant, task_id=1, max_steps=220, views=("image",), image_size=64)
    assert (env.task.suite, env.task.instruction) == (f"libero_spatial_{variant}", instruction)
    if variant in ("lan", "task"):
        assert env.simulator.language_instruction == instruction  # as LIBERO's own parser reads it
    assert env.simulator.env.parsed_problem["goal_state"][0][1] == goal
    assert env.reset(49).images["image"].max() > 0
    step = env.step(np.zeros(7))
    assert step.observation.instruction == instruction and step.success is False
    env.close()


def test_the_scene_trials_pass():
    trials = list(run_scene_trials())
    assert [trial.name for trial in trials] == ["objects come to rest", "pictures drawn"]
    assert all(trial.passed for trial in trials), trials


def test_nothing_reaches_the_terminal(capfd: pytest.CaptureFixture):
    env = LiberoEnv(suite="libero_object", task_id=0, max_steps=280, image_size=64)
    env.reset(0)
    env.close()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "macro" not in captured.err


def test_check_simulator_says_what_it_found():
    assert set(check_simulator()) == {"mujoco", "robosuite", "gl_backend"}
