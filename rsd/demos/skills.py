"""What the scripted expert can do in LIBERO: from a task's goal and the simulator's state to a phase machine's input.

The phase machines know no simulator; here is what they must be told: where things are gripped and where they go. What
surprises first: a region of LIBERO is a site that may lie inside the furniture; its height is not where things stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rsd.demos.articulated import OperationExpert, OperationPlan, PartState
from rsd.demos.expert import GraspPlan, PickAndPlaceExpert, SceneState
from rsd.errors import SettingError

SIDEWAYS = np.pi / 2  # rad: fingers open along x
CENTRE_GRASP = (0.0, 0.0, 0.0)
GRASPS = {  # category: (grip point minus origin, m; yaw, rad), for objects that are not taken at their centre
    "akita_black_bowl": ((-0.05, 0.0, 0.025), SIDEWAYS),  # at the rim; it is too wide for the hand
    "wine_bottle": ((0.0, 0.0, 0.12), SIDEWAYS),  # at the neck; its origin is its base
}
ON_PLAN = {"release_height": 0.02, "carry_height": 0.12}  # target: the origin of the object to put it on
IN_PLAN = {"release_height": 0.05, "carry_height": 0.20}  # target: the centre of the region to put it in
PLACES = {  # targets whose origin is not where the object will stand, or that are high
    "akita_black_bowl_1": {"release_height": 0.055, "carry_height": 0.12},  # let go at the rim, not pressed into it
    "flat_stove_1_cook_region": {"release_height": 0.035, "carry_height": 0.12},  # the burner is 2.6 cm above it
    "wooden_cabinet_1_top_side": {"release_height": 0.015, "carry_height": 0.05, "lift_height": 0.26},
    # a bottle that is leant back 46 degrees falls onto the rack's slope, its base against the lip
    "wine_rack_1_top_region": {"release_height": 0.03, "carry_height": 0.10, "lift_height": 0.30, "tilt": 0.8},
}
DRAGS = {  # flat objects that are dragged to a place on the table: grip point, at the rim, minus origin, m
    ("plate_1", "main_table_stove_front_region"): (0.0, 0.058, 0.004),
}
DRAG_TOLERANCE_M = 0.015  # short of the centre of the region; LIBERO accepts 0.04
DRAWER_OPEN_M = 0.145  # LIBERO calls a drawer open above 0.14; it stops at 0.16
HANDLE_TILT = (-1.35, 0.0, 0.0)  # rad: nearly level, into the cabinet; the fingers close above and below the bar
HANDLE_OFFSET_M = 0.004  # grip point in front of the bar's centre
WIDE_OPEN_M = 0.07  # between the fingers; at most 0.08
KNOB_ON_RAD = 0.8  # LIBERO calls the stove on from 0.5
KNOB_TILT = (0.0, 0.5, 0.0)  # rad: towards the robot; so near its base, a hand that points down is singular
KNOB_GRIP_M = 0.035  # grip point above the knob's origin


class Skill(Protocol):
    """Something that the expert can do in one scene, again and again."""

    def begin(self) -> None:
        """Look at the scene just after a reset."""

    def act(self) -> tuple[np.ndarray, bool]:
        """The right action now, [A], and whether a disturbance would be harmless."""


def skill_for(goal_state: Sequence[Sequence[str]], domain: Any) -> Skill:
    """The skill that reaches a parsed goal such as [["on", "akita_black_bowl_1", "plate_1"]].

    Args:
        goal_state: The task's goals; each a relation and its arguments.
        domain: The simulated task, a BDDLBaseDomain of LIBERO.

    Raises:
        SettingError: several goals, or one that no skill reaches.
    """
    match goal_state:
        case [["on", name, region]] if (name, region) in DRAGS:
            return Drag(domain, name, region)
        case [["on" | "in" as relation, name, target]] if not is_drawer(target, domain):
            return PickAndPlace(domain, name, target, relation)
        case [["open", region]]:
            return OpenDrawer(domain, region)
        case [["turnon", stove]]:
            return TurnOn(domain, stove)
    raise SettingError(
        f"the task's goal is {[list(goal) for goal in goal_state]}; the scripted expert reaches one goal out of: "
        "on, in (not in a drawer), open, turnon; choose other tasks with tasks=[...]"
    )


def is_drawer(region: str, domain: Any) -> bool:
    """Whether a region is inside a part of a fixture that moves."""
    site = domain.object_sites_dict.get(region)
    return site is not None and site.parent_name in domain.fixtures_dict and bool(site.joints)


class PickAndPlace:
    """Put one object on, or in, another.

    Args:
        domain: See skill_for.
        name: The object to move.
        target: An object or a region.
        relation: "on" or "in".
    """

    _expert: PickAndPlaceExpert  # of the scene that `begin` has looked at

    def __init__(self, domain: Any, name: str, target: str, relation: str) -> None:
        self._domain, self._object, self._target, self._relation = domain, name, target, relation

    def begin(self) -> None:
        body = self._domain.get_object(self._object)
        heights = PLACES.get(self._target, ON_PLAN if self._relation == "on" else IN_PLAN)
        if body.category_name in GRASPS:
            offset, yaw = GRASPS[body.category_name]
        else:
            x, y = self._half_widths(body.contact_geoms)
            offset, yaw = CENTRE_GRASP, SIDEWAYS if x < y else 0.0
        self._expert = PickAndPlaceExpert(GraspPlan(offset=offset, yaw=yaw, **heights))

    def act(self) -> tuple[np.ndarray, bool]:
        states = self._domain.object_states_dict
        eef_pos, eef_quat = hand_pose(self._domain)
        state = SceneState(
            eef_pos=eef_pos,
            eef_quat=eef_quat,
            object_pos=np.array(states[self._object].get_geom_state()["pos"]),
            target_pos=np.array(states[self._target].get_geom_state()["pos"]),
            fingers_open=fingers_open(self._domain),
        )
        action = self._expert.act(state)
        return action, self._expert.phase.in_free_space

    def _half_widths(self, geoms: Sequence[str]) -> tuple[float, float]:
        """Largest half extents of these box geoms along the world's x and y, m."""
        model, data = self._domain.sim.model, self._domain.sim.data
        numbers = [model.geom_name2id(name) for name in geoms]
        extents = [np.abs(data.geom_xmat[i].reshape(3, 3)) @ model.geom_size[i] for i in numbers]  # each [3]
        x, y, _ = np.max(extents, axis=0)
        return float(x), float(y)


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

    def _look(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
        """The hand, the object, [3], and its way to the region over the table, [3], m."""
        states = self._domain.object_states_dict
        here, there = (np.array(states[name].get_geom_state()["pos"]) for name in (self._object, self._region))
        return hand_pose(self._domain), here, (there - here) * np.array([1.0, 1.0, 0.0])


class OpenDrawer:
    """Pull a drawer open by its handle, the hand level.

    Args:
        domain: See skill_for.
        region: The space in the drawer, whose joint is the drawer's.
    """

    _expert: OperationExpert

    def __init__(self, domain: Any, region: str) -> None:
        self._domain = domain
        self._joint = domain.sim.model.joint_name2id(domain.object_sites_dict[region].joints[0])

    def begin(self) -> None:
        plan = OperationPlan(travel=DRAWER_OPEN_M, slide=tuple(self._way_out()), tilt=HANDLE_TILT)
        self._expert = OperationExpert(plan)

    @property
    def opening(self) -> float:
        """How far the drawer is open, m."""
        model, data = self._domain.sim.model, self._domain.sim.data
        return float(abs(data.qpos[model.jnt_qposadr[self._joint]]))

    def act(self) -> tuple[np.ndarray, bool]:
        eef_pos, eef_quat = hand_pose(self._domain)
        grip_pos = self._handle() + HANDLE_OFFSET_M * self._way_out()
        action = self._expert.act(PartState(eef_pos, eef_quat, grip_pos, self.opening, fingers_open(self._domain)))
        return action, self._expert.phase.in_free_space

    def _way_out(self) -> np.ndarray:
        """Unit vector along which the drawer opens, [3]."""
        low, high = self._domain.sim.model.jnt_range[self._joint]
        return np.array(self._domain.sim.data.xaxis[self._joint]) * (1.0 if high > -low else -1.0)

    def _handle(self) -> np.ndarray:
        """Centre of the handle's bar, the drawer's foremost geom, [3], m."""
        model, data = self._domain.sim.model, self._domain.sim.data
        solid = model.geom_contype + model.geom_conaffinity > 0
        geoms = np.flatnonzero((model.geom_bodyid == model.jnt_bodyid[self._joint]) & solid)
        return np.array(data.geom_xpos[geoms[np.argmax(data.geom_xpos[geoms] @ self._way_out())]])


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
