"""Demonstrations must not begin where the evaluation begins: is a placement one of the suite's init states?

Only the horizontal positions of free bodies count: heights and angles of the init states have settled a little, and the
robot begins alike everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rsd.errors import RSDError

SAME_M = 1e-3  # every object within this of where it is in an init state: the same placement
FREE_JOINT = 0  # MuJoCo's mjJNT_FREE
TIME = 1  # entries of a state before its positions


class PlacementError(RSDError, RuntimeError):
    """A demonstration would begin in an evaluation init state."""


def object_columns(model: Any) -> list[int]:
    """Where in a state [time, positions, velocities] the x of each free body of a MuJoCo model is; y follows."""
    return [TIME + int(model.jnt_qposadr[joint]) for joint in range(model.njnt) if model.jnt_type[joint] == FREE_JOINT]


def nearest_init_state(state: np.ndarray, init_states: np.ndarray, columns: Sequence[int]) -> tuple[int, float]:
    """The init state in which the objects are nearest to where they are in `state`.

    Args:
        state: [state].
        init_states: [N, state].
        columns: From `object_columns`; at least one.

    Returns:
        Its number, and the largest horizontal distance along x or y of any object, m.
    """
    horizontal = [column + axis for column in columns for axis in (0, 1)]
    distances = np.abs(init_states[:, horizontal] - state[horizontal]).max(axis=1)  # [N]
    nearest = int(distances.argmin())
    return nearest, float(distances[nearest])


def check_placement(
    state: np.ndarray, init_states: np.ndarray, columns: Sequence[int], *, task: str, seed: int
) -> None:
    """Refuse a random placement that is one of the evaluation's.

    Args:
        state, init_states, columns: See `nearest_init_state`.
        task, seed: Which placement this is, for the message.

    Raises:
        PlacementError: every object is within SAME_M of where it is in an init state.
    """
    number, distance = nearest_init_state(state, init_states, columns)
    if distance <= SAME_M:
        raise PlacementError(
            f"the random placement of {task} with seed {seed} is evaluation init state {number}: every object within "
            f"{1000 * distance:.2f} mm, expected more than {1000 * SAME_M:g} mm; begin with another seed"
        )
