"""The robot's hand as the simulator has it: where it is, whether it is open, and whether it holds anything."""

from __future__ import annotations

from typing import Any

import numpy as np

WIDE_OPEN_M = 0.07  # between the fingers; at most 0.08


def hand_pose(domain: Any) -> tuple[np.ndarray, np.ndarray]:
    """Grip point, [3], m, and orientation of the hand, [4], xyzw, world frame."""
    data, robot = domain.sim.data, domain.robots[0]
    wxyz = data.get_body_xquat(robot.robot_model.eef_name)
    return np.array(data.site_xpos[robot.eef_site_id]), np.roll(wxyz, -1)


def fingers_open(domain: Any) -> bool:
    """Whether the fingers are wide apart; they close within GRASP_STEPS steps."""
    robot = domain.robots[0]
    fingers = domain.sim.data.qpos[robot._ref_gripper_joint_pos_indexes]  # [2], m, of opposite signs
    return bool(np.abs(fingers).sum() > WIDE_OPEN_M)


def holds_something(domain: Any) -> bool:
    """Whether both finger pads touch the same body."""
    model, data, pads = domain.sim.model, domain.sim.data, domain.robots[0].gripper.important_geoms
    touched = []
    for side in ("left_fingerpad", "right_fingerpad"):
        own = {model.geom_name2id(name) for name in pads[side]}
        pairs = [(contact.geom1, contact.geom2) for contact in data.contact[: data.ncon]]
        others = [b if a in own else a for a, b in pairs if (a in own) != (b in own)]
        touched.append({int(model.geom_bodyid[geom]) for geom in others})
    return bool(touched[0] & touched[1])
