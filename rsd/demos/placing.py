"""Put one object on, or in, another, from a height above its place that is right for that place.

What surprises first: a region of LIBERO is a site that may lie inside the furniture; its height is not where things
stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rsd.demos.expert import GraspPlan, Phase, PickAndPlaceExpert, SceneState
from rsd.demos.grips import grip_plan
from rsd.demos.hand import fingers_open, hand_pose

APART = {"flat_stove_1_cook_region": (0.05, 0.0)}  # target of two objects: way from the first to the middle, [2], m
OUT_OF_A_DRAWER_M = 0.08  # how much higher than else what begins in a drawer is carried: over the drawer's front
OVER_ANOTHER_M = 0.06  # how much higher than else one of two objects is lifted and carried: over the other one
ON_PLAN: dict[str, Any] = {
    "release_height": 0.02,
    "carry_height": 0.12,
}  # target: origin of the object below
IN_PLAN = {"release_height": 0.05, "carry_height": 0.20, "retreat_height": 0.20}  # target: centre of a region; a basket
PLACES: dict[str, dict[str, Any]] = {  # targets whose origin is not where the object will stand, or that are high
    "akita_black_bowl_1": {"release_height": 0.055, "carry_height": 0.12},  # let go at the rim, not pressed into it
    "flat_stove_1_cook_region": {"release_height": 0.035, "carry_height": 0.12},  # the burner is 2.6 cm above it
    "wooden_cabinet_1_top_side": {"release_height": 0.015, "carry_height": 0.05, "lift_height": 0.26},
    "living_room_table_plate_right_region": {"release_height": 0.05, "carry_height": 0.12, "shift": (0.0, 0.03)},
    # the bowl stands before the middle drawer's handle
    "white_cabinet_1_bottom_region": {"release_height": -0.015, "carry_height": 0.14, "shift": (0.0, -0.018)},
    "wooden_cabinet_1_top_region": {
        "release_height": -0.015,  # above the centre of the open drawer
        "carry_height": 0.08,
        "aside": (0.0, 0.13),  # the bowl stands half below the drawer
        "lift_height": 0.27,
        "shift": (0.0, 0.015),  # the back of the drawer is still in the cabinet
    },
    # upright on the bottom a book is not in the caddy, says LIBERO: too low. It is leant over the partition before it,
    # which also keeps the fingers clear of the wall behind; its base has 4 mm of room to either side, its ends 9 mm
    "desk_caddy_1_back_contain_region": {
        "release_height": -0.065,
        "carry_height": 0.15,
        "lift_height": 0.24,
        "near_place": 0.003,
        "shift": (-0.0075, -0.003),
        "tilt": (0.0, 0.3, 0.0),
    },
    # a bottle that is leant back 46 degrees falls onto the rack's slope, its base against the lip
    "wine_rack_1_top_region": {
        "release_height": 0.03,
        "carry_height": 0.10,
        "lift_height": 0.30,
        "tilt": (0.8, 0.0, 0.0),
    },
}


class PickAndPlace:
    """Put one object on, or in, another.

    Args:
        domain: See skill_for.
        name: The object to move.
        target: An object or a region.
        relation: "on" or "in".
        others: What else is to be put there; two objects stand apart where the target is in APART.
    """

    _expert: PickAndPlaceExpert  # of the scene that `begin` has looked at

    def __init__(self, domain: Any, name: str, target: str, relation: str, others: Sequence[str] = ()) -> None:
        self._domain, self._object, self._target, self._others = domain, name, target, others
        self._heights = PLACES.get(target, ON_PLAN if relation == "on" else IN_PLAN)

    def begin(self) -> None:
        grip = grip_plan(self._domain, self._object)
        foot, shift, plan = grip.pop("foot"), np.array(grip.pop("shift", (0.0, 0.0))), grip | self._heights
        if self._target in APART and self._others:
            shift += np.array(APART[self._target]) * (1 if self._object < min(self._others) else -1)
            plan |= {
                "lift_height": GraspPlan.lift_height + OVER_ANOTHER_M,
                "carry_height": plan["carry_height"] + OVER_ANOTHER_M,
            }
        if any(fact[:2] == ["in", self._object] for fact in self._domain.parsed_problem["initial_state"]):
            plan["carry_height"] += OUT_OF_A_DRAWER_M
        plan |= {"release_height": plan["release_height"] + foot, "carry_height": plan["carry_height"] + foot}
        plan["shift"] = tuple(shift + plan.get("shift", (0.0, 0.0)))
        self._expert = PickAndPlaceExpert(GraspPlan(**plan))

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

    @property
    def hand_is_free(self) -> bool:
        return self._expert.phase is Phase.REACH
