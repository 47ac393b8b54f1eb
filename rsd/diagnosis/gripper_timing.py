"""When does the demonstration close its gripper, and when the policy: missed, late and early closings, in steps.

Grippers are standard: 1 open, 0 closed. The policy's are those that it would execute on the demonstration's pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIDDLE = 0.5


@dataclass(frozen=True)
class Timing:
    """Of one gripper in one episode.

    Attributes:
        delays: Steps from each demonstrated closing to the policy's, below 0 where it is early; None: missed, it is
            not closed within the window behind the demonstrated one.
        num_closings: The policy's.
        open_share: Share of the steps with a demonstrated open gripper at which the policy's is open; None without any.
        closed_share: The same of closed ones.
        num_steps: Steps that were looked at.
    """

    delays: list[int | None]
    num_closings: int
    open_share: float | None
    closed_share: float | None
    num_steps: int


def closings(gripper: np.ndarray) -> list[int]:
    """Steps [n] at which it is closed and was open one step before; no step where it is closed from the start."""
    closed = np.asarray(gripper) < MIDDLE
    return [int(step) + 1 for step in np.flatnonzero(closed[1:] & ~closed[:-1])]


def timing(demonstrated: np.ndarray, executed: np.ndarray, window: int) -> Timing:
    """Hold the policy's gripper to the demonstration's, [n] each.

    Args:
        window: Steps around a demonstrated closing in which the policy's may be.
    """
    own, wanted = closings(executed), closings(demonstrated)
    closed, is_closed = np.asarray(demonstrated) < MIDDLE, np.asarray(executed) < MIDDLE
    free, delays = list(own), list[int | None]()
    for step in wanted:
        near = [one for one in free if abs(one - step) <= window]
        if near:
            nearest = min(near, key=lambda one: (abs(one - step), one))
            free.remove(nearest)
            delays.append(nearest - step)
        elif is_closed[step : step + window + 1].all():  # since before the window
            delays.append(-window)
        else:
            delays.append(None)
    return Timing(
        delays=delays,
        num_closings=len(own),
        open_share=float((~is_closed[~closed]).mean()) if (~closed).any() else None,
        closed_share=float(is_closed[closed].mean()) if closed.any() else None,
        num_steps=len(closed),
    )


def opening_width(proprio: np.ndarray) -> np.ndarray | None:
    """How far two fingers are apart, [n], of proprio [n, P] that ends in two joints with opposite signs; else None."""
    if proprio.shape[1] < 2:
        return None
    left, right = proprio[:, -2], proprio[:, -1]
    if min(left.std(), right.std()) == 0 or np.corrcoef(left, right)[0, 1] > OPPOSITE:
        return None
    return np.abs(left - right)


def fingers_agree(grippers: Sequence[np.ndarray], widths: Sequence[np.ndarray], lag: int) -> float:
    """Correlation of the commands, an array [n] an episode, with how far the fingers are apart `lag` steps later.

    Above 0 where "open" opens; below 0 where the data set's gripper rule is inverted. 0 where nothing moves.
    """
    pairs = [(one[:-lag], width[lag:]) for one, width in zip(grippers, widths, strict=True) if len(one) > lag]
    if not pairs:
        return 0.0
    commands, apart = (np.concatenate(values) for values in zip(*pairs, strict=True))
    if commands.std() == 0 or apart.std() == 0:
        return 0.0
    return float(np.corrcoef(commands, apart)[0, 1])


OPPOSITE = -0.9  # correlation of two finger joints that move against each other
