"""What numbers of demonstrations do over time: ranges, rest, gripper events, jumps, and how actions move the state.

Pure functions over one array an episode. What surprises first: nothing here knows units. What counts as rest or as a
jump is measured against the same dim in the same data set, and whether an action is a step or a goal is read off the
state that follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 32  # of a histogram
RESTS = 0.01  # of the 99 % quantile of a dim's movement, up to which it rests
JUMP_Q99 = 4.0  # times the 99 % quantile of a dim's steps, from which on one is a jump
JUMP_MEDIAN, JUMP_RANGE = 15.0, 0.5  # or so many medians, and more than this part of q01..q99
FOLLOWS = 0.5  # correlation, from which on the state is said to follow an action
IS_GOAL, SAME_UNIT = 0.9, (0.5, 2.0)  # correlation with the next state from which on an action is its goal, and slope
SURELY_GOAL = 0.99  # the same, of an action in another unit


def dim_figures(values: np.ndarray) -> list[dict[str, Any]]:
    """Range and histogram of each dim of all steps, [n, dims]; numbers that are not finite are counted and left out."""
    return [_one_dim(values[:, dim]) for dim in range(values.shape[1])]


def _one_dim(values: np.ndarray) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"num_bad": len(values)}
    low, q01, median, q99, high = np.quantile(finite, [0, 0.01, 0.5, 0.99, 1]).tolist()
    counts, edges = np.histogram(finite, BINS, (low, high if high > low else low + 1))
    return {
        "min": low,
        "q01": q01,
        "median": median,
        "q99": q99,
        "max": high,
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "distinct": len(np.unique(finite)),
        "num_bad": len(values) - len(finite),
        "histogram": {"counts": counts.tolist(), "low": float(edges[0]), "high": float(edges[-1])},
    }


def idle_steps(motion: Sequence[np.ndarray], grippers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which steps move nothing: every dim of the arm rests, and the gripper is as it was.

    Args:
        motion: Of the arm, [n, dims] an episode: actions that are steps, or differences of those that are goals.
        grippers: As recorded, [n, grippers] an episode.

    Returns:
        [n] an episode, bool; with no dims nothing is idle.
    """
    if not motion or not motion[0].shape[1]:
        return [np.zeros(len(one), dtype=bool) for one in motion]
    scale = np.quantile(np.abs(np.concatenate(motion)), 0.99, axis=0)  # [dims]
    idle = []
    for one, gripper in zip(motion, grippers, strict=True):
        changed = np.zeros(len(one), dtype=bool)
        if gripper.shape[1]:
            changed[1:] = (np.abs(np.diff(gripper, axis=0)) > 0).any(axis=1)
        idle.append((np.abs(one) <= RESTS * scale).all(axis=1) & ~changed)
    return idle


def idle_figures(idle: Sequence[np.ndarray]) -> dict[str, Any]:
    """Share of idle steps in all, and of each episode its share, and how many come before and after all movement."""
    starts, ends = [], []
    for one in idle:
        moves = np.flatnonzero(~one)
        starts.append(int(moves[0]) if len(moves) else len(one))
        ends.append(len(one) - 1 - int(moves[-1]) if len(moves) else 0)
    total = sum(map(len, idle))
    return {
        "share": float(sum(one.sum() for one in idle) / total) if total else 0.0,
        "per_episode": [float(one.mean()) if len(one) else 0.0 for one in idle],
        "at_start": starts,
        "at_end": ends,
        "inside": [int(one.sum()) - a - b for one, a, b in zip(idle, starts, ends, strict=True)],
    }


class Events(NamedTuple):
    """Steps at which a gripper has closed, and opened; and whether it is closed in the first one."""

    closings: list[int]
    openings: list[int]
    starts_closed: bool


def gripper_events(opening: np.ndarray) -> Events:
    """Of one episode.

    Args:
        opening: 1 open, 0 closed, [n]; the middle is the limit between them.
    """
    closed = opening < 0.5
    turns = np.flatnonzero(closed[1:] != closed[:-1]) + 1
    closings = [int(step) for step in turns if closed[step]]
    return Events(closings, [int(step) for step in turns if not closed[step]], bool(len(closed)) and bool(closed[0]))


def jumps(values: Sequence[np.ndarray], skip: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Steps at which a dim changes by far more than it otherwise does, largest first.

    Args:
        values: [n, dims] an episode.
        skip: Dims that jump by nature, such as grippers.

    Returns:
        {"episode" (place in `values`), "step", "dim", "change", "times": of the dim's usual change}.
    """
    changes = [np.diff(one, axis=0) for one in values]
    if not changes or not sum(map(len, changes)):
        return []
    sizes = np.abs(np.concatenate(changes))  # [n, dims]
    all_steps = np.concatenate(list(values))
    usual, median = np.quantile(sizes, 0.99, axis=0), np.median(sizes, axis=0)
    width = np.quantile(all_steps, 0.99, axis=0) - np.quantile(all_steps, 0.01, axis=0)
    found = []
    for episode, change in enumerate(changes):
        size = np.abs(change)
        outlier = (size > JUMP_Q99 * usual) & (usual > 0)
        outlier |= (size > JUMP_RANGE * width) & (size > JUMP_MEDIAN * median) & (median > 0)
        outlier[:, list(skip)] = False
        for step, dim in np.argwhere(outlier):
            scale = median[dim] if median[dim] > 0 else usual[dim]
            where = {"episode": episode, "step": int(step) + 1, "dim": int(dim)}
            found.append(where | {"change": float(change[step, dim]), "times": float(size[step, dim] / scale)})
    return sorted(found, key=lambda one: -one["times"])


def responses(actions: Sequence[np.ndarray], states: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """For each action dim: which dim of the state follows it, and whether as a step or as a goal.

    Returns:
        A record an action dim: "state_dim" that follows it most; "step" and "goal", the correlations of the action with
        that dim's next difference and with its next value; "early", the largest with a last difference, which an
        action should not know; "slope", the change of the state for an action of 1 (of a
        goal, the next value); "own", the correlation with the state dim of the same number, None where there is none;
        "kind": step, goal, or unclear.
    """
    num_dims = actions[0].shape[1] if actions else 0
    pairs = [(a[:-1], s[:-1], s[1:]) for a, s in zip(actions, states, strict=True) if len(a) == len(s) and len(a) > 1]
    if not pairs or not states[0].shape[1]:
        return []
    given, before, after = (np.concatenate(one) for one in zip(*pairs, strict=True))
    longer = [(a[1:], np.diff(s, axis=0)) for a, s in zip(actions, states, strict=True) if len(a) == len(s) > 1]
    early = correlations(*(np.concatenate(one) for one in zip(*longer, strict=True)))  # [A, P]
    step, goal = correlations(given, after - before), correlations(given, after)  # [A, P]
    found = []
    for dim in range(num_dims):
        best_step, best_goal = int(np.abs(step[dim]).argmax()), int(goal[dim].argmax())
        as_goal = _is_goal(goal[dim, best_goal], _slope(given[:, dim], after[:, best_goal]))
        as_goal &= goal[dim, best_goal] > abs(step[dim, best_step])
        state = best_goal if as_goal else best_step
        target = after[:, state] if as_goal else (after - before)[:, state]
        kind = "goal" if as_goal else "step" if abs(step[dim, state]) >= FOLLOWS else "unclear"
        own = (goal if as_goal else step)[dim, dim] if dim < step.shape[1] else None
        found.append(
            {
                "state_dim": state,
                "step": float(step[dim, state]),
                "goal": float(goal[dim, state]),
                "early": float(max(early[dim], key=abs)),
                "slope": _slope(given[:, dim], target),
                "own": None if own is None else float(own),
                "kind": kind,
            }
        )
    return found


def _is_goal(r: float, slope: float) -> bool:
    return bool(r >= SURELY_GOAL or (r >= IS_GOAL and SAME_UNIT[0] <= slope <= SAME_UNIT[1]))


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, of each dim of a, [n, A], with each of b, [n, P]: [A, P]; 0 where one of them is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = np.outer(np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0)))
    return np.divide(a.T @ b, norms, out=np.zeros(norms.shape), where=norms > 1e-12)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / max((x**2).sum(), 1e-12))
