"""A scripted expert for handles, knobs and rims: a phase machine that grips a part and moves it along its way.

A drawer and a plate slide, a knob turns the hand. What surprises first: while it moves, the hand aims a fixed lead
ahead of where the part is now, never at where the part should end. So a part that resists is pulled steadily, and one
that slips out of the hand is gripped again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.spatial.transform import Rotation

from rsd.demos.expert import (
    AT_GOAL_M,
    CLOSE,
    GRASP_STEPS,
    LOST_M,
    NEAR_RAD,
    NEAR_XY_M,
    NEAR_Z_M,
    OPEN,
    PATIENCE_STEPS,
    POINTING_DOWN,
    RELEASE_STEPS,
    STILL_M,
    motion,
)

LEAD_M = 0.06  # how far ahead of a sliding part the hand aims
LEAD_RAD = 0.5  # how far ahead of a turning part the hand aims


class OperationPhase(Enum):
    """What the expert is doing, in the order of a flawless episode."""

    REACH = "reach"
    ENGAGE = "engage"
    GRASP = "grasp"
    MOVE = "move"
    RELEASE = "release"
    RETREAT = "retreat"
    DONE = "done"

    @property
    def in_free_space(self) -> bool:
        """Whether nothing is near, so that a disturbance is harmless."""
        return self is OperationPhase.REACH

    @property
    def hand_is_free(self) -> bool:
        """Whether it is empty and away from the part."""
        return self in (OperationPhase.REACH, OperationPhase.DONE)


LETTING_GO = (OperationPhase.RELEASE, OperationPhase.RETREAT, OperationPhase.DONE)


@dataclass(frozen=True)
class OperationPlan:
    """How to take a part and how to move it. World axes.

    Attributes:
        travel: How far the part must have moved, m or rad.
        slide: Way of the grip point per unit of travel, [3]; zeros for a knob that is gripped at its axis.
        turns: Whether the hand turns with the part, about the vertical.
        tilt: Rotation vector of the hand from pointing down, rad; about +x it points towards +y, about +y towards -x.
        pushes: Whether the hand is a fist that pushes the part, instead of a grip.
        standoff: Distance from the grip, against the hand's pointing direction, from which the hand engages, m.
    """

    travel: float
    slide: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turns: bool = False
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pushes: bool = False
    standoff: float = 0.08


@dataclass(frozen=True)
class PartState:
    """The privileged state that the expert sees, world frame.

    Attributes:
        eef_pos: Grip point, [3], m.
        eef_quat: Orientation of the hand, [4], xyzw.
        grip_pos: Where the part is to be gripped, [3], m; moves with the part.
        travel: How far the part has moved along its way, m or rad.
        fingers_open: Whether they are wide apart.
    """

    eef_pos: np.ndarray
    eef_quat: np.ndarray
    grip_pos: np.ndarray
    travel: float
    fingers_open: bool


class OperationExpert:
    """One episode's expert: remembers the phase and little else.

    Attributes:
        phase: The phase of the last action.
    """

    def __init__(self, plan: OperationPlan) -> None:
        self.plan = plan
        self.phase = OperationPhase.REACH
        self._steps_in_phase = 0
        self._anchor = np.zeros(3)  # grip point at the start of the phase, [3]
        self._anchor_hand = Rotation.identity()  # the hand at the start of the phase
        self._last_pos: np.ndarray | None = None
        self._rest = Rotation.from_rotvec(plan.tilt) * POINTING_DOWN
        self._back = -plan.standoff * self._rest.apply([0.0, 0.0, 1.0])  # [3]

    def act(self, state: PartState) -> np.ndarray:
        """Move on to the next phase when this one is finished, and return its action.

        Returns:
            The undisturbed action, [7], float64, each in [-1, 1]: position and rotation deltas, gripper.
        """
        following = self._next_phase(state)
        if following is not self.phase:
            self.phase, self._steps_in_phase = following, 0
            self._anchor, self._anchor_hand = state.eef_pos.copy(), Rotation.from_quat(state.eef_quat)
        self._steps_in_phase += 1
        self._last_pos = state.eef_pos.copy()
        gripper = CLOSE if self.plan.pushes or self.phase in (OperationPhase.GRASP, OperationPhase.MOVE) else OPEN
        return motion(self._goal(state) - state.eef_pos, self._turn(state), gripper)

    def _goal(self, state: PartState) -> np.ndarray:
        """Where the grip point should be, [3]."""
        if self.phase is OperationPhase.REACH:
            return state.grip_pos + self._back
        if self.phase is OperationPhase.ENGAGE:
            return state.grip_pos
        if self.phase is OperationPhase.MOVE:
            return state.grip_pos + LEAD_M * np.array(self.plan.slide)
        if self.phase is OperationPhase.RETREAT:
            return self._anchor + self._back
        return self._anchor

    def _next_phase(self, state: PartState) -> OperationPhase:
        phase, steps = self.phase, self._steps_in_phase
        error = np.abs(self._goal(state) - state.eef_pos)  # [3]
        turned = float(np.linalg.norm(self._turn(state))) < NEAR_RAD
        impatient = steps >= PATIENCE_STEPS
        if phase is OperationPhase.REACH:
            there = error.max() < NEAR_XY_M or self._on_the_way(state)
            return OperationPhase.ENGAGE if there and turned else phase
        if phase is OperationPhase.ENGAGE:
            still = steps > 5 and float(np.linalg.norm(state.eef_pos - self._last_pos)) < STILL_M
            return OperationPhase.GRASP if error.max() < AT_GOAL_M or still or impatient else phase
        if phase is OperationPhase.GRASP:
            return OperationPhase.MOVE if steps >= GRASP_STEPS else phase
        if phase is OperationPhase.MOVE:
            if float(np.linalg.norm(state.eef_pos - state.grip_pos)) > LOST_M:
                return OperationPhase.RELEASE
            return OperationPhase.RELEASE if state.travel >= self.plan.travel else phase
        if phase is OperationPhase.RELEASE:
            return OperationPhase.RETREAT if steps >= RELEASE_STEPS else phase
        if phase is OperationPhase.RETREAT and error.max() >= NEAR_Z_M and not impatient:
            return phase
        return OperationPhase.DONE if state.travel >= self.plan.travel else OperationPhase.REACH  # or once more

    def _on_the_way(self, state: PartState) -> bool:
        """Whether the open hand is between the grip and where it engages from."""
        offset = state.eef_pos - state.grip_pos  # [3]
        share = float(offset @ self._back) / self.plan.standoff**2  # 1 where it engages from, 0 at the grip
        beside = float(np.abs(offset - share * self._back).max())
        return state.fingers_open and 0.0 < share < 1.0 and beside < NEAR_XY_M

    def _turn(self, state: PartState) -> np.ndarray:
        """Rotation vector from the hand's orientation to the wanted one, world axes, [3], rad."""
        wanted = self._rest
        if self.plan.turns and self.phase in LETTING_GO:  # a hand that turned back would take the knob with it
            wanted = self._anchor_hand
        elif self.plan.turns:
            lead = LEAD_RAD if self.phase is OperationPhase.MOVE else 0.0
            wanted = Rotation.from_euler("z", state.travel + lead) * wanted
        return (wanted * Rotation.from_quat(state.eef_quat).inv()).as_rotvec()
