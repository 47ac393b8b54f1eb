"""Put one object on, or in, another: how each object is gripped, and how high above its place it is let go.

What surprises first: a region of LIBERO is a site that may lie inside the furniture; its height is not where things
stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rsd.demos.expert import GraspPlan, Phase, PickAndPlaceExpert, SceneState
from rsd.demos.hand import fingers_open, hand_pose

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
    "wooden_cabinet_1_top_region": {
        "release_height": -0.015,  # above the centre of the open drawer
        "carry_height": 0.08,
        "aside": (0.0, 0.13),  # the bowl stands half below the drawer
        "lift_height": 0.27,
        "shift": (0.0, 0.015),  # the back of the drawer is still in the cabinet
    },
    # a bottle that is leant back 46 degrees falls onto the rack's slope, its base against the lip
    "wine_rack_1_top_region": {"release_height": 0.03, "carry_height": 0.10, "lift_height": 0.30, "tilt": 0.8},
}


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

    @property
    def hand_is_free(self) -> bool:
        return self._expert.phase is Phase.REACH

    def _half_widths(self, geoms: Sequence[str]) -> tuple[float, float]:
        """Largest half extents of these box geoms along the world's x and y, m."""
        model, data = self._domain.sim.model, self._domain.sim.data
        numbers = [model.geom_name2id(name) for name in geoms]
        extents = [np.abs(data.geom_xmat[i].reshape(3, 3)) @ model.geom_size[i] for i in numbers]  # each [3]
        x, y, _ = np.max(extents, axis=0)
        return float(x), float(y)
