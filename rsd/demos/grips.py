"""Where each object is gripped, and how the hand must turn for that and for putting it down.

What surprises first: most objects of LIBERO start in one orientation, so that offsets are along the world's axes. Those
of an object that starts turned are along its own, and it is put down along the world's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from rsd.demos.expert import GraspPlan
from rsd.demos.palm import Box, free_grip, height_over

SIDEWAYS = np.pi / 2  # rad: fingers open along x
FINGER_M = 0.055  # from the grip to the middle of an open finger
NEIGHBOUR_M = 0.05  # an object whose origin is nearer than this to a finger is in its way
WIDEST_M = 0.035  # half of what the hand can take
OPEN_M = 0.038  # half of the way between the open fingers
SURE_M = 0.004  # how exactly the hand can be brought over an object


@dataclass(frozen=True)
class Grip:
    """How to take an object, and what that means for putting it down.

    Attributes:
        offset: Grip point minus the object's origin, [3], m.
        yaw: Of the hand, rad; at 0 the fingers open along y.
        foot: Height of the object's origin above its base, m, where its place says nothing of it.
        own_axes: Whether offset and yaw are meant along the object's axes.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw: float = 0.0
    foot: float = 0.0
    own_axes: bool = False


GRIPS = {  # by category, for objects that are not taken at their centre
    "akita_black_bowl": Grip((-0.05, 0.0, 0.025), SIDEWAYS),  # at the rim; it is too wide for the hand
    "wine_bottle": Grip((0.0, 0.0, 0.12), SIDEWAYS),  # at the neck; its origin is its base
    "porcelain_mug": Grip((-0.040, -0.013, 0.090), SIDEWAYS),  # at the rim; it stands beside its origin
    "white_yellow_mug": Grip((-0.043, 0.018, 0.088), SIDEWAYS),
    "moka_pot": Grip((0.0, 0.001, 0.075), foot=0.066),  # at the knob of its lid; it is too wide for the hand
    "black_book": Grip((0.0, -0.012, 0.115), SIDEWAYS, own_axes=True),  # it stands upright; at the middle of its top
}


def grip_plan(domain: Any, name: str) -> dict[str, Any]:
    """What GraspPlan needs to know of an object in its present place, and the grip's `foot`."""
    body = domain.get_object(name)
    grip = GRIPS.get(body.category_name)
    if grip is None:
        return middle_plan(domain, name)
    if not grip.own_axes:
        return {"offset": grip.offset, "yaw": grip.yaw, "foot": grip.foot}
    wxyz = domain.object_states_dict[name].get_geom_state()["quat"]
    heading = Rotation.from_quat(np.roll(wxyz, -1)).as_euler("ZYX")[0]
    offset = Rotation.from_euler("z", heading).apply(grip.offset)
    yaw, turn = half_turn(heading + grip.yaw), half_turn(-heading)
    over = Rotation.from_euler("z", turn).apply(offset)  # once it is turned
    return {"offset": tuple(offset), "yaw": yaw, "turn": turn, "foot": grip.foot, "shift": tuple(-over[:2])}


def middle_plan(domain: Any, name: str) -> dict[str, Any]:
    """The same for an object that is taken at its middle, or as near to that as its neighbours permit."""
    boxes = {other: box_of(domain, other) for other in domain.objects_dict}
    box, neighbours = boxes.pop(name), list(boxes.values())
    shift, yaw = free_grip(box, free_yaw(domain, name), neighbours)
    over = height_over(box, shift, yaw, neighbours)
    across = float(np.abs([-np.sin(yaw), np.cos(yaw)]) @ box.half[:2])
    middle = (box.centre - domain.sim.data.body_xpos[domain.obj_body_id[name]])[:2]
    return {
        "offset": (*(middle + shift), 0.0),
        "yaw": yaw,
        "foot": 0.0,
        "hover_height": max(over, GraspPlan.hover_height),
        "lift_height": max(over, GraspPlan.lift_height),
        "near_grasp": float(np.clip(OPEN_M - across, SURE_M, GraspPlan.near_grasp)),
    }


def free_yaw(domain: Any, name: str) -> float:
    """The yaw at which fingers close on an object's narrow side, or on the other where a neighbour is in their way."""
    widths = half_widths(domain, domain.get_object(name).contact_geoms)  # along x and y
    yaw = SIDEWAYS if widths[0] < widths[1] else 0.0
    places = {other: domain.sim.data.body_xpos[domain.obj_body_id[other]][:2] for other in domain.objects_dict}
    here = places.pop(name)
    finger = FINGER_M * np.array([np.sin(yaw), np.cos(yaw)])  # [2], from the grip
    gaps = [np.linalg.norm(there - here - way) for there in places.values() for way in (finger, -finger)]
    in_the_way = min(gaps, default=np.inf) < NEIGHBOUR_M
    return SIDEWAYS - yaw if in_the_way and max(widths) < WIDEST_M else yaw


def half_turn(angle: float) -> float:
    """The same line, by an angle in [-pi/2, pi/2), rad; a hand turned by pi is the same hand."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def box_of(domain: Any, name: str) -> Box:
    """What an object takes up, by its box geoms."""
    model, data = domain.sim.model, domain.sim.data
    numbers = [model.geom_name2id(geom) for geom in domain.get_object(name).contact_geoms]
    extents = np.array([np.abs(data.geom_xmat[i].reshape(3, 3)) @ model.geom_size[i] for i in numbers])  # [n, 3]
    places = np.array([data.geom_xpos[i] for i in numbers])
    low, high = (places - extents).min(axis=0), (places + extents).max(axis=0)
    return Box((low + high) / 2, (high - low) / 2)


def half_widths(domain: Any, geoms: Sequence[str]) -> tuple[float, float]:
    """Largest half extents of these box geoms along the world's x and y, m."""
    model, data = domain.sim.model, domain.sim.data
    numbers = [model.geom_name2id(name) for name in geoms]
    extents = [np.abs(data.geom_xmat[i].reshape(3, 3)) @ model.geom_size[i] for i in numbers]  # each [3]
    x, y, _ = np.max(extents, axis=0)
    return float(x), float(y)
