"""The scripted expert's phases, against a point that moves exactly as told, and the pure functions of recording."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsd.demos.demonstrations import disturb, inside, is_no_op, record_demonstration
from rsd.demos.expert import CLOSE, OPEN, GraspPlan, Phase, PickAndPlaceExpert, SceneState
from tests import fakes
from tests.fakes import PointMassEnv

STEP_M = 0.0125  # what a LIBERO arm moves in a step at full command
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
PLAN = GraspPlan(offset=(0.0, 0.0, 0.0), yaw=0.0, release_height=0.02, carry_height=0.12)


class Scene:
    """A hand without inertia and an object that sticks to it while the gripper is closed upon it; falls otherwise."""

    def __init__(self, slips: int = 0) -> None:
        self.eef = np.array([-0.2, 0.0, 0.3])
        self.object, self.target = np.array([0.0, 0.1, 0.02]), np.array([0.2, -0.1, 0.0])
        self.slips = slips  # how many grasps will not hold
        self.offset: np.ndarray | None = None
        self.closed_steps = 0

    def state(self) -> SceneState:
        return SceneState(self.eef.copy(), DOWN, self.object.copy(), self.target.copy(), self.closed_steps == 0)

    def step(self, action: np.ndarray) -> None:
        self.eef = self.eef + STEP_M * action[:3]
        self.closed_steps = self.closed_steps + 1 if action[6] == CLOSE else 0
        if self.closed_steps == 10 and np.abs(self.eef - self.object).max() < 0.02:
            self.slips -= 1
            self.offset = self.object - self.eef if self.slips < 0 else None
        if action[6] == OPEN:
            self.offset = None
        if self.offset is not None:
            self.object = self.eef + self.offset
        else:
            self.object[2] = 0.02


def run(scene: Scene, plan: GraspPlan = PLAN, num_steps: int = 300) -> tuple[list[Phase], list[np.ndarray]]:
    """Phases without repetition, and all actions, until the object rests on the target."""
    expert, phases, actions = PickAndPlaceExpert(plan), [], []
    for _ in range(num_steps):
        action = expert.act(scene.state())
        actions.append(action)
        if not phases or phases[-1] is not expert.phase:
            phases.append(expert.phase)
        scene.step(action)
        if scene.offset is None and np.linalg.norm((scene.object - scene.target)[:2]) < 0.03:
            break
    return phases, actions


def test_flawless_episode_goes_through_the_phases_in_order():
    phases, actions = run(Scene())
    assert phases == [Phase.REACH, Phase.DESCEND, Phase.GRASP, Phase.LIFT, Phase.CARRY, Phase.LOWER, Phase.RELEASE]
    assert len(actions) < 150


def test_actions_are_in_robot_units():
    _, actions = run(Scene())
    stacked = np.array(actions)
    assert stacked.shape[1] == 7 and np.abs(stacked).max() <= 1
    assert set(stacked[:, 6]) == {OPEN, CLOSE}


def test_slipped_grasp_is_repeated():
    phases, _ = run(Scene(slips=1))
    assert phases[:6] == [Phase.REACH, Phase.DESCEND, Phase.GRASP, Phase.LIFT, Phase.REACH, Phase.DESCEND]
    assert phases[-1] is Phase.RELEASE


def test_object_lost_on_the_way_is_picked_up_again():
    scene, expert = Scene(), PickAndPlaceExpert(PLAN)
    while expert.phase is not Phase.CARRY:
        scene.step(expert.act(scene.state()))
    scene.offset, scene.object[2] = None, 0.02
    for _ in range(3):
        scene.step(expert.act(scene.state()))
    assert expert.phase is Phase.REACH


@pytest.mark.parametrize(
    ("place", "fingers_open", "phase"),
    [
        ((0.005, -0.005, 0.04), True, Phase.DESCEND),  # in the way that it comes down
        ((0.005, -0.005, 0.04), False, Phase.REACH),  # has closed beside the object, say
        ((0.02, 0.0, 0.04), True, Phase.REACH),  # would come down beside it
    ],
)
def test_hand_that_is_on_its_way_down_is_not_called_back(place, fingers_open, phase):
    scene, expert = Scene(), PickAndPlaceExpert(PLAN)
    scene.eef = scene.object + np.array(place)
    action = expert.act(replace(scene.state(), fingers_open=fingers_open))
    assert expert.phase is phase and np.sign(action[2]) == (-1 if phase is Phase.DESCEND else 1)


def test_hand_turns_to_the_yaw_of_the_plan_before_it_descends():
    expert = PickAndPlaceExpert(GraspPlan(offset=(0, 0, 0), yaw=np.pi / 2, release_height=0.02, carry_height=0.12))
    state = SceneState(np.array([0.0, 0.0, 0.1]), DOWN, np.array([0.0, 0.0, 0.02]), np.zeros(3), True)
    action = expert.act(state)
    assert expert.phase is Phase.REACH
    np.testing.assert_allclose(action[3:6], [0, 0, 1], atol=1e-12)


def test_tilted_plan_turns_the_hand_once_it_carries_and_lowers_only_when_it_is_turned():
    expert = PickAndPlaceExpert(replace(PLAN, tilt=(0.8, 0.0, 0.0)))
    scene = Scene()
    while expert.phase is not Phase.CARRY:
        action = expert.act(scene.state())
        scene.step(action)
        assert expert.phase is Phase.CARRY or np.abs(action[3:6]).max() < 1e-9
    np.testing.assert_allclose(action[3:6], [1, 0, 0], atol=1e-9)  # this hand does not turn
    for _ in range(60):
        scene.step(expert.act(scene.state()))
    assert expert.phase is Phase.CARRY
    turned = (Rotation.from_euler("x", 0.8) * Rotation.from_quat(DOWN)).as_quat()
    expert.act(replace(scene.state(), eef_quat=turned))
    assert expert.phase is Phase.LOWER


def test_a_tilt_is_about_the_worlds_axes_after_the_turn():
    plan = replace(PLAN, yaw=0.3, turn=0.7, tilt=(0.0, 0.4, 0.0))
    expert, scene = PickAndPlaceExpert(plan), Scene()
    scene.object = scene.eef.copy()  # in the hand
    wanted = Rotation.from_euler("y", 0.4) * Rotation.from_euler("z", 1.0) * Rotation.from_quat(DOWN)
    assert wanted.apply([0.0, 0.0, 1.0])[0] == pytest.approx(-np.sin(0.4))  # it points towards -x
    expert._enter(Phase.CARRY, scene.state())
    action = expert.act(replace(scene.state(), eef_quat=wanted.as_quat()))
    np.testing.assert_allclose(action[3:6], 0.0, atol=1e-12)


@pytest.mark.parametrize(("beside", "phase"), [(0.007, Phase.CARRY), (0.004, Phase.LOWER)])
def test_an_object_that_only_just_fits_is_lowered_when_it_is_nearer(beside, phase):
    scene, expert = Scene(), PickAndPlaceExpert(replace(PLAN, near_place=0.005))
    scene.object = scene.target + np.array([beside, 0.0, PLAN.carry_height])
    scene.eef = scene.object.copy()
    expert._enter(Phase.CARRY, scene.state())
    expert.act(scene.state())
    assert expert.phase is phase


@pytest.mark.parametrize(("beside", "phase"), [(0.007, Phase.REACH), (0.004, Phase.DESCEND)])
def test_a_hand_comes_down_on_a_wide_object_when_it_is_nearer(beside, phase):
    scene, expert = Scene(), PickAndPlaceExpert(replace(PLAN, near_grasp=0.005))
    scene.eef = scene.object + np.array([0.0, beside, PLAN.hover_height])
    expert.act(scene.state())
    assert expert.phase is phase


def test_object_that_turns_with_a_tilting_hand_is_not_lost():
    expert = PickAndPlaceExpert(replace(PLAN, offset=(0.0, 0.0, 0.12), tilt=(0.8, 0.0, 0.0)))
    held = np.array([0.0, 0.0, -0.12])  # the object hangs below the hand
    expert.phase = Phase.LIFT
    expert._enter(Phase.CARRY, SceneState(np.zeros(3), DOWN, held, np.ones(3), False))
    turn = Rotation.from_euler("x", 0.8)
    turned = (turn * Rotation.from_quat(DOWN)).as_quat()
    expert.act(SceneState(np.zeros(3), turned, turn.apply(held), np.ones(3), False))
    assert expert.phase is Phase.CARRY
    expert.act(SceneState(np.zeros(3), turned, held, np.ones(3), False))
    assert expert.phase is Phase.REACH


def test_a_plan_aside_comes_in_and_goes_out_low():
    """What stands below something is taken from beside it, and lifted there."""
    plan, scene = replace(PLAN, aside=(0.0, 0.13), shift=(0.02, 0.0)), Scene()
    expert, heights = PickAndPlaceExpert(plan), {Phase.DESCEND: [], Phase.LIFT: []}
    for _ in range(200):
        below = abs(scene.eef[1] - 0.1) < 0.07  # where it must be low
        action = expert.act(scene.state())
        if expert.phase in heights and below:
            heights[expert.phase].append(scene.eef[2] - scene.object[2] if scene.offset is None else scene.object[2])
        scene.step(action)
        if expert.phase is Phase.RETREAT:
            break
    assert expert.phase is Phase.RETREAT
    np.testing.assert_allclose(scene.object[:2], scene.target[:2] + np.array([0.02, 0.0]), atol=0.012)
    assert max(heights[Phase.DESCEND]) < 0.07 and max(heights[Phase.LIFT]) < 0.07


@pytest.mark.parametrize(
    ("motion", "gripper", "last_gripper", "expected"),
    [
        (0.0, -1.0, None, True),  # first step: only the norm counts
        (0.0, -1.0, -1.0, True),
        (0.0, 1.0, -1.0, False),  # the gripper changes
        (2e-4, -1.0, -1.0, False),
        (9e-5, -1.0, -1.0, True),
    ],
)
def test_no_op(motion, gripper, last_gripper, expected):
    action = np.array([motion, 0, 0, 0, 0, 0, gripper])
    assert is_no_op(action, last_gripper) is expected


def test_disturbance_is_for_motion_only_and_stays_within_the_limits():
    random, action = np.random.default_rng(0), np.array([1.0, -1.0, 0, 0, 0, 0, 1.0])
    disturbed = np.array([disturb(action, 0.3, random) for _ in range(1000)])
    changed = (disturbed != action).any(axis=1)
    assert 450 < changed.sum() < 550
    assert np.abs(disturbed).max() <= 1 and (disturbed[:, 6] == 1).all()
    assert disturb(action, 0.0, random) is action
    np.testing.assert_array_equal(action, [1, -1, 0, 0, 0, 0, 1])


def test_box_with_margin():
    box = (-0.1, 0.2, 0.0, 0.3)
    assert inside(np.array([0.02, 0.25]), box, 0.03)
    assert not inside(np.array([0.04, 0.25]), box, 0.03)


class PointMassExpert:
    """Goes straight for the goal; every third action is a no-op, and placement 13 is displaced."""

    def __init__(self, env: PointMassEnv) -> None:
        self.env = env
        self.calls = 0

    def begin(self) -> None:
        self.calls = 0

    def scene_is_as_described(self) -> bool:
        return self.env.placement != 13

    def act(self, observation) -> tuple[np.ndarray, bool]:
        self.calls += 1
        action = self.env.direction if self.calls % 3 else np.array([0, 0, 0, 0, 0, 0, -1.0])
        return action, True

    def joint_state(self) -> np.ndarray:
        return np.full(7, float(self.calls))

    def holds_something(self) -> bool:
        return False


class RandomPointMassEnv(PointMassEnv):
    placement = 0

    def reset_random(self, seed: int):
        self.placement = seed
        return self.reset(seed % self.task.num_init_states)


def record(seed: int, render: bool = True):
    env = RandomPointMassEnv()
    return env, record_demonstration(env, PointMassExpert(env), seed=seed, noise_scales=(0.1,), render=render)


def test_recording_drops_no_ops_and_keeps_what_was_seen_before_each_action():
    env, demonstration = record(2)
    kept, steps = len(demonstration.actions), demonstration.num_steps
    assert demonstration.outcome == "success"
    assert kept == steps - steps // 3
    assert [state[0] for state in demonstration.joint_states[:4]] == [0, 1, 3, 4]
    assert len(demonstration.states) == len(demonstration.images["image"]) == len(demonstration.images["wrist_image"])
    first = env.reset_random(2)
    np.testing.assert_array_equal(demonstration.images["image"][0], first.images["image"])
    np.testing.assert_array_equal(demonstration.states[0], first.proprio)


def test_labels_are_the_undisturbed_actions():
    env, demonstration = record(2)
    first = env.reset_random(2)
    np.testing.assert_array_equal(demonstration.actions[0], env.direction)
    env.step(demonstration.actions[0])
    assert first.instruction == demonstration.instruction


def test_same_seed_same_demonstration_with_or_without_pictures():
    (_, one), (_, other), (env, dry) = record(3), record(3), record(3, render=False)
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.states, other.states)
    assert (dry.outcome, dry.num_steps) == (one.outcome, one.num_steps)
    assert env.num_renders == 2 and dry.actions == []  # the reset's two views only


def test_displaced_placement_is_not_tried():
    _, demonstration = record(13)
    assert (demonstration.outcome, demonstration.num_steps) == ("displaced", 0)


def test_step_limit_is_a_failure():
    env = RandomPointMassEnv(max_steps=3)
    demonstration = record_demonstration(env, PointMassExpert(env), seed=1, noise_scales=(0.0,))
    assert (demonstration.outcome, demonstration.num_steps) == ("failure", 3)


class LastingExpert(PointMassExpert):
    """Goes straight for the goal and stays there, or leaves it after some calls."""

    leaves_after = 10**6

    def act(self, observation) -> tuple[np.ndarray, bool]:
        self.calls += 1
        return (self.env.direction if self.calls <= self.leaves_after else np.full(7, -1.0)), True


def test_the_tail_after_success_is_recorded_and_must_hold():
    env = RandomPointMassEnv(end_at_success=False)
    arguments = {"seed": 2, "noise_scales": (0.0,)}
    short = record_demonstration(env, LastingExpert(env), **arguments)
    long = record_demonstration(env, LastingExpert(env), num_tail_steps=5, **arguments)
    assert short.outcome == long.outcome == "success"
    assert long.num_steps == short.num_steps + 5
    leaver = LastingExpert(env)
    leaver.leaves_after = short.num_steps
    assert record_demonstration(env, leaver, num_tail_steps=5, **arguments).outcome == "failure"


class Lead(PointMassExpert):
    """Moves away from the goal, and holds something from the fourth step to the eighth."""

    closes_at = 10**6

    def begin(self) -> None:
        self.steps = 0

    def act(self, observation) -> tuple[np.ndarray, bool]:
        assert observation is not None
        self.steps += 1
        return np.array([-1.0, 0, 0, 0, 0, 0, 1.0 if self.steps >= self.closes_at else -1.0]), True

    def holds_something(self) -> bool:
        return 4 <= self.steps <= 8


def led(lead: PointMassExpert, lead_steps: tuple[int, int], **options):
    arguments = {"seed": 2, "noise_scales": (0.0,), "lead": lead, "lead_steps": lead_steps, **options}
    return record_demonstration(lead.env, PointMassExpert(lead.env), **arguments)


def test_a_demonstration_begins_where_a_lead_has_brought_the_scene():
    env = RandomPointMassEnv()
    start = env.reset_random(2)
    demonstration = led(Lead(env), (2, 2))
    assert demonstration.outcome == "success"
    assert demonstration.states[0][0] == pytest.approx(max(0.0, start.proprio[0] - 2 * fakes.STEP_M))


@pytest.mark.parametrize(("num_steps", "acted"), [(0, 0), (3, 3), (4, 20), (8, 20), (19, 20), (21, 21)])
def test_a_lead_goes_on_until_its_hand_has_been_empty(num_steps: int, acted: int):
    env = RandomPointMassEnv()
    lead = Lead(env)
    assert led(lead, (num_steps, num_steps)).outcome == "success"
    assert lead.steps == acted


@pytest.mark.parametrize(("num_steps", "acted"), [(2, 2), (3, 15), (9, 15), (15, 15), (16, 16)])
def test_a_lead_goes_on_until_its_fingers_have_closed_upon_nothing(num_steps: int, acted: int):
    lead = Lead(RandomPointMassEnv())
    lead.closes_at, lead.holds_something = 3, lambda: False
    assert led(lead, (num_steps, num_steps)).outcome == "success"
    assert lead.steps == acted


def test_what_the_lead_solves_or_never_lets_go_is_skipped():
    solver = RandomPointMassEnv()
    assert led(PointMassExpert(solver), (60, 60)).outcome == "skipped"
    env = RandomPointMassEnv()
    lead = Lead(env)
    lead.holds_something = lambda: True
    skipped = led(lead, (1, 1))
    assert (skipped.outcome, skipped.num_steps, skipped.actions) == ("skipped", 0, [])


def test_lead_steps_are_drawn_between_the_two():
    counts = set()
    for seed in range(14, 50):
        lead = Lead(RandomPointMassEnv())
        led(lead, (21, 23), seed=seed)
        counts.add(lead.steps)
    assert counts == {21, 22, 23}
