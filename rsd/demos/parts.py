"""Move a part of the scene along its way: drag a plate, turn a knob."""

from __future__ import annotations

from typing import Any

import numpy as np

from rsd.demos.articulated import OperationExpert, OperationPlan, PartState
from rsd.demos.hand import fingers_open, hand_pose

DRAGS = {  # flat objects that are dragged to a place on the table: grip point, at the rim, minus origin, m
    ("plate_1", "main_table_stove_front_region"): (0.0, 0.058, 0.004),
}
DRAG_TOLERANCE_M = 0.015  # short of the centre of the region; LIBERO accepts 0.04
KNOB_ON_RAD = 0.8  # LIBERO calls the stove on from 0.5
KNOB_TILT = (0.0, 0.5, 0.0)  # rad: towards the robot; so near its base, a hand that points down is singular
KNOB_GRIP_M = 0.035  # grip point above the knob's origin


class Drag:
    """Drag one flat object by its rim over the table to a region.

    Args:
        domain: See skill_for.
        name: The object.
        region: The region; together they are one of DRAGS.
    """

    _expert: OperationExpert

    def __init__(self, domain: Any, name: str, region: str) -> None:
        self._domain, self._object, self._region = domain, name, region
        self._start = np.zeros(3)

    def begin(self) -> None:
        _, self._start, way = self._look()
        distance = float(np.linalg.norm(way))
        self._expert = OperationExpert(OperationPlan(travel=distance - DRAG_TOLERANCE_M, slide=tuple(way / distance)))

    def act(self) -> tuple[np.ndarray, bool]:
        (eef_pos, eef_quat), object_pos, _ = self._look()
        travel = float((object_pos - self._start) @ np.array(self._expert.plan.slide))
        grip_pos = object_pos + np.array(DRAGS[self._object, self._region])
        action = self._expert.act(PartState(eef_pos, eef_quat, grip_pos, travel, fingers_open(self._domain)))
        return action, self._expert.phase.in_free_space

    @property
    def hand_is_free(self) -> bool:
        return self._expert.phase.hand_is_free

    def _look(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
        """The hand, the object, [3], and its way to the region over the table, [3], m."""
        states = self._domain.object_states_dict
        here, there = (np.array(states[name].get_geom_state()["pos"]) for name in (self._object, self._region))
        return hand_pose(self._domain), here, (there - here) * np.array([1.0, 1.0, 0.0])


class TurnOn:
    """Turn a stove on by its knob.

    Args:
        domain: See skill_for.
        stove: The stove, which has one joint.
    """

    _expert: OperationExpert

    def __init__(self, domain: Any, stove: str) -> None:
        self._domain = domain
        self._joint = domain.sim.model.joint_name2id(domain.get_object(stove).joints[0])

    def begin(self) -> None:
        self._expert = OperationExpert(OperationPlan(travel=KNOB_ON_RAD, turns=True, tilt=KNOB_TILT))

    def act(self) -> tuple[np.ndarray, bool]:
        model, data = self._domain.sim.model, self._domain.sim.data
        eef_pos, eef_quat = hand_pose(self._domain)
        grip_pos = np.array(data.xanchor[self._joint]) + np.array([0.0, 0.0, KNOB_GRIP_M])
        angle = float(data.qpos[model.jnt_qposadr[self._joint]])
        action = self._expert.act(PartState(eef_pos, eef_quat, grip_pos, angle, fingers_open(self._domain)))
        return action, self._expert.phase.in_free_space

    @property
    def hand_is_free(self) -> bool:
        return self._expert.phase.hand_is_free
