"""Fewer steps of a trajectory: every k-th, and those that move. Pure functions.

What surprises first: leaving steps out changes what an action means. Deltas of the steps in between are summed, and
absolute values are those at the end of the interval; so which dims are deltas must be known. Axis-angle deltas are
summed, too, which is right for the small rotations of a control step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def downsample(actions: np.ndarray, every: int, relative: np.ndarray) -> np.ndarray:
    """Actions [n, A] of n steps → those of steps 0, k, 2k, …: [ceil(n / k), A], in the same units.

    Args:
        every: k.
        relative: Which dims are deltas, [A], bool: they are summed; of the others the last one of an interval counts.
    """
    if every == 1 or not len(actions):
        return actions
    starts = np.arange(0, len(actions), every)  # [m]
    ends = np.minimum(starts + every, len(actions)) - 1  # [m]
    return np.where(relative, np.add.reduceat(actions, starts, axis=0), actions[ends])


def moving_steps(actions: np.ndarray, relative: np.ndarray, grippers: Sequence[int], idle: float) -> np.ndarray:
    """Numbers of the steps that do something, [m], int64.

    As OpenVLA drops no-ops: a step is idle when the norm of its motion is below `idle` and no gripper differs from that
    of the last step that was kept. Of absolute dims the motion is what changed since then; the first step is kept.

    Args:
        actions: Standard, [n, A].
        relative: Which dims are deltas, [A], bool.
        idle: In the units of the motions.
    """
    if not len(actions):
        return np.arange(0)
    motions = np.ones(actions.shape[1], dtype=bool)
    motions[list(grippers)] = False
    kept: list[int] = []
    for step, action in enumerate(actions):
        before = actions[kept[-1]] if kept else None
        change = np.where(relative, action, 0 if before is None else action - before)[motions]
        first = before is None and not relative[motions].all()
        grasps = before is not None and (action != before)[~motions].any()
        if first or grasps or np.linalg.norm(change) >= idle:
            kept.append(step)
    return np.array(kept, dtype=np.int64)
