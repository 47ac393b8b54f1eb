"""The phases of gripping and moving a part, against a hand that moves exactly as told and a part that follows it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsd.demos.articulated import LEAD_M, LEAD_RAD, OperationExpert, OperationPhase, OperationPlan, PartState
from rsd.demos.expert import CLOSE, OPEN, POINTING_DOWN, POSITION_GAIN, ROTATION_GAIN

STEP_M, STEP_RAD = 0.0125, 0.05  # what the hand moves in a step at full command
DRAWER = OperationPlan(travel=0.15, slide=(0.0, 1.0, 0.0), tilt=(-1.3, 0.0, 0.0))
KNOB = OperationPlan(travel=0.8, turns=True)
FLAWLESS = [phase for phase in OperationPhase if phase is not OperationPhase.DONE]


class Part:
    """A part on a joint that moves with the hand while the gripper is closed upon it."""

    def __init__(self, plan: OperationPlan, slips: int = 0) -> None:
        self.plan, self.slips = plan, slips  # how often the part escapes when it is half way
        self.eef, self.hand, self.rest = np.array([-0.2, 0.0, 0.3]), POINTING_DOWN, np.array([0.1, 0.1, 0.1])
        self.travel, self.closed_steps, self.held = 0.0, 0, False

    def state(self) -> PartState:
        grip = self.rest + self.travel * np.array(self.plan.slide)
        return PartState(self.eef.copy(), self.hand.as_quat(), grip, self.travel, self.closed_steps == 0)

    def step(self, action: np.ndarray) -> None:
        self.closed_steps = self.closed_steps + 1 if action[6] == CLOSE else 0
        if self.closed_steps == 10:
            self.held = np.abs(self.eef - self.state().grip_pos).max() < 0.02
        self.held = self.held and action[6] == CLOSE
        if self.held and self.slips and self.travel > self.plan.travel / 2:
            self.held, self.slips = False, self.slips - 1
        self.eef = self.eef + STEP_M * action[:3]
        self.hand = Rotation.from_rotvec(STEP_RAD * action[3:6]) * self.hand
        if self.held:
            self.travel += STEP_M * float(action[:3] @ np.array(self.plan.slide))
            self.travel += STEP_RAD * float(action[5]) * self.plan.turns


def run(part: Part, num_steps: int = 300) -> tuple[list[OperationPhase], np.ndarray]:
    """Phases without repetition, and all actions, [n, 7], until the expert is done."""
    expert, phases, actions = OperationExpert(part.plan), [], []
    for _ in range(num_steps):
        actions.append(expert.act(part.state()))
        if not phases or phases[-1] is not expert.phase:
            phases.append(expert.phase)
        if expert.phase is OperationPhase.DONE:
            break
        part.step(actions[-1])
    return phases, np.array(actions)


@pytest.mark.parametrize("plan", [DRAWER, KNOB])
def test_flawless_episode_goes_through_the_phases_in_order(plan):
    part = Part(plan)
    phases, actions = run(part)
    assert phases == [*FLAWLESS, OperationPhase.DONE]
    assert part.travel >= plan.travel
    assert len(actions) < 150


@pytest.mark.parametrize("plan", [DRAWER, KNOB])
def test_actions_are_in_robot_units(plan):
    _, actions = run(Part(plan))
    assert actions.shape[1] == 7 and np.abs(actions).max() <= 1
    assert set(actions[:, 6]) == {OPEN, CLOSE}


def test_handle_that_slips_out_of_the_hand_is_gripped_again():
    part = Part(DRAWER, slips=1)
    phases, _ = run(part)
    assert phases == [*FLAWLESS, *FLAWLESS, OperationPhase.DONE]
    assert part.travel >= DRAWER.travel


def test_hand_turns_to_the_tilt_before_it_engages_and_comes_against_its_pointing_direction():
    expert = OperationExpert(replace(DRAWER, tilt=(-np.pi / 2, 0.0, 0.0)))  # level, pointing towards -y
    state = PartState(np.array([0.0, 0.08, 0.0]), POINTING_DOWN.as_quat(), np.zeros(3), 0.0, True)
    action = expert.act(state)  # it is where it starts to engage, 8 cm before the grip, but not turned yet
    assert expert.phase is OperationPhase.REACH
    np.testing.assert_allclose(action, [0, 0, 0, -1, 0, 0, OPEN], atol=1e-12)
    turned = Rotation.from_euler("x", -np.pi / 2) * POINTING_DOWN
    action = expert.act(replace(state, eef_quat=turned.as_quat()))
    assert expert.phase is OperationPhase.ENGAGE
    np.testing.assert_allclose(action, [0, -1, 0, 0, 0, 0, OPEN], atol=1e-12)


@pytest.mark.parametrize(
    ("share", "aside", "fingers_open", "phase"),
    [
        (0.5, 0.005, True, OperationPhase.ENGAGE),
        (0.5, 0.005, False, OperationPhase.REACH),
        (0.5, 0.02, True, OperationPhase.REACH),
        (-0.5, 0.005, True, OperationPhase.REACH),  # behind the handle
    ],
)
def test_hand_that_is_on_its_way_to_the_grip_is_not_called_back(share, aside, fingers_open, phase):
    expert = OperationExpert(DRAWER)
    hand = Rotation.from_rotvec(DRAWER.tilt) * POINTING_DOWN
    back = -DRAWER.standoff * hand.apply([0.0, 0.0, 1.0])
    expert.act(PartState(share * back + [aside, 0.0, 0.0], hand.as_quat(), np.zeros(3), 0.0, fingers_open))
    assert expert.phase is phase


def test_hand_leads_the_part_by_a_fixed_distance_or_angle():
    drawer, knob = OperationExpert(DRAWER), OperationExpert(KNOB)
    drawer.phase = knob.phase = OperationPhase.MOVE
    tilted = (Rotation.from_rotvec(DRAWER.tilt) * POINTING_DOWN).as_quat()
    pulled = drawer.act(PartState(np.zeros(3), tilted, np.zeros(3), 0.1, False))
    np.testing.assert_allclose(pulled, [0, POSITION_GAIN * LEAD_M, 0, 0, 0, 0, CLOSE], atol=1e-12)
    hand = (Rotation.from_euler("z", 0.3 + LEAD_RAD - 0.1) * POINTING_DOWN).as_quat()  # 0.1 rad short of the lead
    turned = knob.act(PartState(np.zeros(3), hand, np.zeros(3), 0.3, False))
    np.testing.assert_allclose(turned, [0, 0, 0, 0, 0, ROTATION_GAIN * 0.1, CLOSE], atol=1e-12)


def test_hand_does_not_turn_a_knob_back_while_it_lets_go():
    expert = OperationExpert(KNOB)
    expert.phase = OperationPhase.MOVE
    hand = (Rotation.from_euler("z", 1.2) * POINTING_DOWN).as_quat()  # ahead of the knob, which is at 0.8
    action = expert.act(PartState(np.zeros(3), hand, np.zeros(3), 0.8, False))
    assert expert.phase is OperationPhase.RELEASE
    np.testing.assert_allclose(action, [0, 0, 0, 0, 0, 0, OPEN], atol=1e-12)


def test_only_reaching_is_free_space():
    assert [phase for phase in OperationPhase if phase.in_free_space] == [OperationPhase.REACH]


def test_a_fist_pushes_what_a_hand_would_grip():
    part = Part(replace(DRAWER, pushes=True))
    phases, actions = run(part)
    assert phases[:4] == FLAWLESS[:4] and set(actions[:, 6]) == {CLOSE}
