"""How the hand gets between an object's neighbours: over them, beside the object's middle, or turned a little.

What surprises first: the fingers find room where the palm does not. It is 20 cm wide and so low that it comes down on
whatever stands 3 cm above the grip. What stands little higher, as a bowl does, gives way, and a hand that turned for it
would only be harder to learn from. Fingers that close on a box from a slant turn the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PALM_M = np.array([0.032, 0.102])  # half of it, across the way in which the fingers open and along it
FINGERS_M = np.array([0.013, 0.067])  # half of both, wide open, in the same way
LOW_M = 0.045  # what rises no higher above the grip, as a bowl beside a flat box, gives way to the palm
PUSHED_M = 0.03  # that the fingers may overlap the box around something so low: a bowl does not fill its corners
ROOM_M = 0.006  # to be left to a neighbour
PASSED_M = 0.05  # a neighbour nearer than this to the palm is passed over
CLEAR_M = 0.03  # the grip point above what it passes over
OPENING_M = 0.036  # half of what the open hand is put over, turned or not
END_M = 0.018  # from the grip to an end of the object, at least
TURNS = np.deg2rad([0, 8, -8, 16, -16, 24, -24])
SHIFTS_M = np.array([0.0, 0.01, -0.01, 0.02, -0.02])


@dataclass(frozen=True)
class Box:
    """What an object takes up, its sides along the world's axes.

    Attributes:
        centre, half: [3] each, m, world frame.
    """

    centre: np.ndarray
    half: np.ndarray


def free_grip(box: Box, yaw: float, neighbours: Sequence[Box]) -> tuple[np.ndarray, float]:
    """The nearest grip to the middle of an object at which hand and neighbours have room, or most of it.

    Args:
        box: The object.
        yaw: Of the hand, rad, so that the fingers close on a side of the object; at 0 they open along y.
        neighbours: What else stands there.

    Returns:
        Way of the grip from the middle, [2], m, and the yaw that the hand should have, rad.
    """
    along = np.array([np.cos(yaw), np.sin(yaw)])  # [2], of the side that the fingers close on
    length, width = (float(np.abs(axis) @ box.half[:2]) for axis in (along, np.array([-along[1], along[0]])))
    best, most = (np.zeros(2), yaw), -np.inf
    for turn, shift in sorted(((t, s) for t in TURNS for s in SHIFTS_M), key=lambda ts: abs(ts[0]) + 10 * abs(ts[1])):
        across = width * np.cos(turn) + length * abs(np.sin(turn))  # of the object, as the turned hand meets it
        if (shift and abs(shift) > length - END_M) or (turn and across > OPENING_M):
            continue
        room = min((room_to(box, shift * along, yaw + turn, other) for other in neighbours), default=np.inf)
        if room > most:
            best, most = (shift * along, yaw + turn), room
        if room > ROOM_M:
            break
    return best


def height_over(box: Box, shift: np.ndarray, yaw: float, neighbours: Sequence[Box]) -> float:
    """How high above the middle of a box a hand that has come to grip it is over the box and what is near by, m."""
    ways = [(other, (other.centre - box.centre)[:2] - shift) for other in neighbours]
    near = [other for other, way in ways if gap(way, yaw, PALM_M, other.half[:2]) < PASSED_M]
    return max(float((other.centre + other.half - box.centre)[2]) for other in (box, *near)) + CLEAR_M


def room_to(box: Box, shift: np.ndarray, yaw: float, other: Box) -> float:
    """Between a hand that grips a box, `shift` [2] from its middle, and another box, m; below 0 that is in the way.

    Of a low one the palm does not count, and PUSHED_M is added.
    """
    way = (other.centre - box.centre)[:2] - shift
    room = gap(way, yaw, FINGERS_M, other.half[:2])
    if (other.centre + other.half)[2] > box.centre[2] + LOW_M:
        return min(room, gap(way, yaw, PALM_M, other.half[:2]))
    return room + PUSHED_M


def gap(way: np.ndarray, yaw: float, half: np.ndarray, other: np.ndarray) -> float:
    """Between two rectangles, m: the widest along a side of either; below 0 where they overlap.

    Args:
        way: From the middle of the one to the middle of the other, [2], m.
        yaw: Rotation of the one against the other, rad.
        half, other: Half of their sides, [2] each, m.
    """
    axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])  # [side, 2]
    own = np.abs(axes @ way) - half - np.abs(axes) @ other
    others = np.abs(way) - other - half @ np.abs(axes)
    return float(max(own.max(), others.max()))
