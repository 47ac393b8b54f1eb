"""A scripted expert for pick-and-place: a phase machine from the simulator's state to actions, without the simulator.

There are no way-points in time. Every phase is a goal for the grip point and a condition for leaving it, so the expert
corrects disturbances, and the label of a step is right whatever was executed before it. What surprises first: phases
also go backwards. When the object is not in the hand after a grasp, or is lost on the way, it reaches for it again. A
hand that is on its way down when the expert takes over goes on down, and is not called back to where that begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.spatial.transform import Rotation

POSITION_GAIN = 15.0  # action per metre of position error; an action of 1 moves OSC_POSE's goal by 5 cm
ROTATION_GAIN = 4.0  # action per radian of orientation error; an action of 1 turns OSC_POSE's goal by 0.5 rad
OPEN, CLOSE = -1.0, 1.0  # robosuite's gripper convention
GRASP_STEPS = 12  # the fingers need 11 steps from wide open to closed
RELEASE_STEPS = 10
PATIENCE_STEPS = 40  # a phase that makes no progress is left after this many steps
OVERSHOOT_M = 0.03  # aim this far beyond a height that only has to be passed, so that the hand does not slow down
NEAR_XY_M, NEAR_Z_M, NEAR_RAD = 0.012, 0.03, 0.15  # when the hand counts as above its goal
AT_GOAL_M = 0.008
OVER_M = 0.025  # a hand that comes in or goes out low may rise or sink when it is as near as this
CREEP_M = 0.03  # how much higher than at the grasp such a hand is on its way
STILL_M = 0.0008  # movement in one step below which the hand counts as standing
LIFTED_M = 0.03  # rise of the object that proves the grasp
LOST_M = 0.03  # change of the grip-to-object offset that proves that the object was lost
UP = np.array([0.0, 0.0, 1.0])
POINTING_DOWN = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])  # the hand in its rest pose; the fingers open along y


class Phase(Enum):
    """What the expert is doing, in the order of a flawless episode."""

    REACH = "reach"
    DESCEND = "descend"
    GRASP = "grasp"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    RELEASE = "release"
    RETREAT = "retreat"

    @property
    def in_free_space(self) -> bool:
        """Whether nothing is near, so that a disturbance is harmless."""
        return self in (Phase.REACH, Phase.CARRY)


@dataclass(frozen=True)
class GraspPlan:
    """How to take an object and where to let it go. Lengths in metres, world axes.

    Attributes:
        offset: Grip point minus the object's origin at the grasp.
        yaw: Rotation of the hand about the vertical, rad; at 0 the fingers open along y, as in the rest pose.
        release_height: Height of the object's origin above the target's at which the gripper opens.
        carry_height: The same while carrying.
        hover_height: Height of the grip point above its grasp from which the hand descends vertically.
        lift_height: Rise of the hand before it carries.
        retreat_height: Rise of the empty hand before it goes elsewhere.
        tilt: Rotation vector of the hand from pointing down, rad, from carrying on; about +x it points towards +y,
            about +y towards -x.
        turn: Rotation of the hand about the vertical from carrying on, rad.
        aside: Way over the table, [2], from below what stands in the way above the object; the hand comes in and goes
            out along it, low.
        shift: Where the object is to stand, over the table from the target's origin, [2].
        near_grasp: How far from above its grasp, along x and y, the hand may be when it begins to descend.
        near_place: How far from over its place, along x and y, the object may be when it begins to be lowered.
    """

    offset: tuple[float, float, float]
    yaw: float
    release_height: float
    carry_height: float
    hover_height: float = 0.08
    lift_height: float = 0.12
    retreat_height: float = 0.08
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: float = 0.0
    aside: tuple[float, float] = (0.0, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)
    near_grasp: float = NEAR_XY_M
    near_place: float = NEAR_XY_M

    @property
    def turns(self) -> bool:
        """Whether the hand turns on the way."""
        return any(self.tilt) or self.turn != 0.0


@dataclass(frozen=True)
class SceneState:
    """The privileged state that the expert sees, world frame.

    Attributes:
        eef_pos: Grip point, [3], m.
        eef_quat: Orientation of the hand, [4], xyzw.
        object_pos: Origin of the object to move, [3], m.
        target_pos: Origin of the place to move it to, [3], m.
        fingers_open: Whether they are wide apart.
    """

    eef_pos: np.ndarray
    eef_quat: np.ndarray
    object_pos: np.ndarray
    target_pos: np.ndarray
    fingers_open: bool


class PickAndPlaceExpert:
    """One episode's expert: remembers the phase and little else.

    Attributes:
        phase: The phase of the last action.
    """

    def __init__(self, plan: GraspPlan) -> None:
        self.plan = plan
        self.phase = Phase.REACH
        self._steps_in_phase = 0
        self._anchor = np.zeros(3)  # grip point at the start of the phase, [3]
        self._anchor_object = np.zeros(3)  # object at the start of the phase, [3]
        self._last_pos: np.ndarray | None = None
        self._anchor_hand = Rotation.identity()  # the hand at the start of the phase
        self._hand = Rotation.from_euler("z", plan.yaw) * POINTING_DOWN
        self._turned = Rotation.from_rotvec(plan.tilt) * Rotation.from_euler("z", plan.turn) * self._hand

    def act(self, state: SceneState) -> np.ndarray:
        """Move on to the next phase when this one is finished, and return its action.

        Returns:
            The undisturbed action, [7], float64, each in [-1, 1]: position and rotation deltas, gripper.
        """
        following = self._next_phase(state)
        if following is not self.phase:
            self._enter(following, state)
        self._steps_in_phase += 1
        self._last_pos = state.eef_pos.copy()
        goal, gripper = self._goal(state)
        return motion(goal - state.eef_pos, self._turn(state), gripper)

    def _goal(self, state: SceneState) -> tuple[np.ndarray, float]:
        """Where the grip point should be, [3], and the gripper's command."""
        plan = self.plan
        grasp = state.object_pos + np.array(plan.offset)
        place = state.target_pos + np.array([*plan.shift, 0.0])
        over_target = place + (state.eef_pos - state.object_pos)  # wherever the object sits in the hand
        if self.phase is Phase.REACH:
            return grasp + np.array([*plan.aside, plan.hover_height]), OPEN
        if self.phase is Phase.DESCEND:
            return self._creep(grasp, state, floor=grasp[2]), OPEN
        if self.phase is Phase.GRASP:
            return self._anchor, CLOSE
        if self.phase is Phase.LIFT:
            away = self._anchor + np.array([*plan.aside, plan.lift_height + OVERSHOOT_M])
            return self._creep(away, state, floor=self._anchor[2]), CLOSE
        if self.phase is Phase.CARRY:
            return over_target + plan.carry_height * UP, CLOSE
        if self.phase is Phase.LOWER:
            return over_target + (plan.release_height - OVERSHOOT_M) * UP, CLOSE
        if self.phase is Phase.RELEASE:
            return self._anchor, OPEN
        return self._anchor + plan.retreat_height * UP, OPEN

    def _creep(self, goal: np.ndarray, state: SceneState, floor: float) -> np.ndarray:
        """The goal, [3]; for a plan that goes aside, first straight below or above it, little higher than the floor."""
        if not any(self.plan.aside) or np.abs(goal - state.eef_pos)[:2].max() < OVER_M:
            return goal
        return np.array([*goal[:2], floor + CREEP_M])

    def _next_phase(self, state: SceneState) -> Phase:
        plan, steps = self.plan, self._steps_in_phase
        offset = state.eef_pos - self._goal(state)[0]  # [3]
        error = np.abs(offset)
        over = bool(error[:2].max() < (plan.near_place if self.phase is Phase.CARRY else plan.near_grasp))
        above = over and error[2] < NEAR_Z_M
        impatient = steps >= PATIENCE_STEPS
        if self.phase is Phase.REACH:
            turned = float(np.linalg.norm(self._turn(state))) < NEAR_RAD
            on_the_way_down = over and offset[2] < 0 and state.fingers_open
            return Phase.DESCEND if (above or on_the_way_down) and turned else Phase.REACH
        if self.phase is Phase.DESCEND:
            still = steps > 5 and float(np.linalg.norm(state.eef_pos - self._last_pos)) < STILL_M
            return Phase.GRASP if error.max() < AT_GOAL_M or still or impatient else Phase.DESCEND
        if self.phase is Phase.GRASP:
            return Phase.LIFT if steps >= GRASP_STEPS else Phase.GRASP
        if self.phase is Phase.LIFT:
            if state.eef_pos[2] - self._anchor[2] < plan.lift_height and not impatient:
                return Phase.LIFT
            return Phase.CARRY if state.object_pos[2] - self._anchor_object[2] > LIFTED_M else Phase.REACH
        if self.phase in (Phase.CARRY, Phase.LOWER):
            held, anchor = state.eef_pos - state.object_pos, self._anchor - self._anchor_object
            if plan.turns:  # the object turns with the hand
                anchor = (Rotation.from_quat(state.eef_quat) * self._anchor_hand.inv()).apply(anchor)
            if float(np.linalg.norm(held - anchor)) > LOST_M:
                return Phase.REACH
        if self.phase is Phase.CARRY:
            turned = not plan.turns or float(np.linalg.norm(self._turn(state))) < NEAR_RAD
            return Phase.LOWER if above and turned else Phase.CARRY
        if self.phase is Phase.LOWER:
            low = state.object_pos[2] - state.target_pos[2] < plan.release_height
            return Phase.RELEASE if low or impatient else Phase.LOWER
        if self.phase is Phase.RELEASE:
            return Phase.RETREAT if steps >= RELEASE_STEPS else Phase.RELEASE
        return Phase.REACH if error.max() < NEAR_Z_M else Phase.RETREAT  # no success yet: once more

    def _enter(self, phase: Phase, state: SceneState) -> None:
        self.phase = phase
        self._steps_in_phase = 0
        self._anchor, self._anchor_object = state.eef_pos.copy(), state.object_pos.copy()
        self._anchor_hand = Rotation.from_quat(state.eef_quat)

    def _turn(self, state: SceneState) -> np.ndarray:
        """Rotation vector from the hand's orientation to the wanted one, world axes, [3], rad."""
        carrying = self.phase in (Phase.CARRY, Phase.LOWER, Phase.RELEASE, Phase.RETREAT)
        wanted = self._turned if carrying else self._hand
        return (wanted * Rotation.from_quat(state.eef_quat).inv()).as_rotvec()


def motion(error: np.ndarray, turn: np.ndarray, gripper: float) -> np.ndarray:
    """The action that goes towards a goal, as fast as is allowed.

    Args:
        error: From the grip point to where it should be, [3], m.
        turn: Rotation vector from the hand's orientation to the wanted one, world axes, [3], rad.
        gripper: OPEN or CLOSE.

    Returns:
        [7], float64, each in [-1, 1].
    """
    delta = POSITION_GAIN * error  # [3]
    delta = delta / max(1.0, float(np.abs(delta).max()))  # keeps the direction
    return np.concatenate([delta, np.clip(ROTATION_GAIN * turn, -1.0, 1.0), [gripper]])
