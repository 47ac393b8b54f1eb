"""Trajectories as pure functions: standardise, take statistics, cut into chunks.

Formulas of openvla-oft @ 213c5ff (prismatic/vla/datasets/rlds), in numpy. What surprises first: the quantiles are taken
in float64, but mean, standard deviation and extremes in the data's own float32; the reference's statistics show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rsd.data import DataError
from rsd.space import Range, standardize_gripper

HARDLY_MOVES = 0.01  # mean magnitude of a dim, in robot units of at most 1, below which it counts as unused


def standardize_actions(
    recorded: np.ndarray,
    gripper: Callable[[np.ndarray], np.ndarray] = standardize_gripper,
    grippers: Sequence[int] = (-1,),
) -> np.ndarray:
    """Recorded actions [n, A] → the same with the grippers as 1 open, 0 close; [n, A], float32.

    Args:
        gripper: Recorded gripper → 1 open, 0 close; robosuite's command unless said otherwise.
        grippers: Their dims.
    """
    standard, dims = recorded.astype(np.float32), list(grippers)
    standard[:, dims] = gripper(recorded[:, dims])
    return standard


def standardize_proprio(state: np.ndarray) -> np.ndarray:
    """observation/state [n, 8] → end-effector pose (6) and gripper joints (the last 2), [n, 8], float32."""
    return np.concatenate([state[:, :6], state[:, -2:]], axis=1, dtype=np.float32)


def binarize_gripper(gripper: np.ndarray) -> np.ndarray:
    """Absolute gripper positions, [n], 1 open → 1 above 0.95, 0 below 0.05; between them what comes next decides.

    The reference uses it for data sets other than LIBERO. Undecided values at the very end take the last value itself.
    """
    decided = np.where(gripper > 0.95, 1, np.where(gripper < 0.05, 0, np.nan))
    result, following = np.empty_like(gripper), gripper[-1]
    for step in reversed(range(len(gripper))):
        following = following if np.isnan(decided[step]) else decided[step]
        result[step] = following
    return result


def check_finite(values: np.ndarray, feature: str, episode: str) -> None:
    """Raise DataError, with episode and step, if any of `values` [n, dims] is NaN or infinite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, dim = bad[0]
        raise DataError(
            f"{episode}: {feature} is {values[step, dim]} at step {step}, dim {dim} ({len(bad)} such values in this "
            "episode); expected finite numbers; remove or collect this episode again"
        )


def _column_statistics(values: np.ndarray) -> dict[str, list[float]]:
    exact = values.astype(np.float64)
    return {
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "min": values.min(axis=0).tolist(),
        "q01": np.quantile(exact, 0.01, axis=0).tolist(),
        "q99": np.quantile(exact, 0.99, axis=0).tolist(),
    }


def compute_statistics(
    actions: Sequence[np.ndarray], proprios: Sequence[np.ndarray], grippers: Sequence[int] = (-1,)
) -> dict[str, Any]:
    """norm_stats of one data set, in the published layout.

    Args:
        actions: Per trajectory [n, A], float32, standardised, not normalised.
        proprios: Per trajectory [n, P], float32; with P = 0 the statistics have no "proprio".
        grippers: Dims of the actions that are grippers, which are not normalised.
    """
    flat, proprio = np.concatenate(actions), np.concatenate(proprios)
    own = {dim % flat.shape[1] for dim in grippers}
    return {
        "action": _column_statistics(flat) | {"mask": [dim not in own for dim in range(flat.shape[1])]},
        **({"proprio": _column_statistics(proprio)} if proprio.shape[1] else {}),
        "num_transitions": len(flat),
        "num_trajectories": len(actions),
    }


def clipped_motion(actions: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """How much of what these actions move is beyond the statistics' bounds, and therefore cut off by normalisation.

    Quantiles are of the whole data set: what few of its tasks need, and those only now and then, lies outside.

    Args:
        actions: Of one task, [n, A], standardised, not normalised.
        statistics: norm_stats["action"] of the data set.

    Returns:
        Share of each dim's total movement, [A], in 0..1; 0 for dims that are not normalised or hardly move.
    """
    bounds = Range.from_entry(statistics)
    inside = np.clip(actions, bounds.low, bounds.high)
    total = np.abs(actions).sum(axis=0)
    share = np.abs(actions - inside).sum(axis=0) / np.maximum(total, HARDLY_MOVES * len(actions))
    return np.where(bounds.mask, share, 0.0)


def lost_motion(values: np.ndarray, bounds: Range) -> np.ndarray:
    """How much of the movement around each dim's median normalisation cuts off.

    Args:
        values: Of a whole data set, actions or proprio, [n, dims], standard.

    Returns:
        Share of each dim's movement, [dims], in 0..1; 0 for dims that never move or are not normalised.
    """
    if not len(values):
        return np.zeros(len(bounds))
    moved = np.abs(values - np.median(values, axis=0)).sum(axis=0, dtype=np.float64)
    lost = np.abs(values - np.clip(values, bounds.low, bounds.high)).sum(axis=0, dtype=np.float64)
    share = np.minimum(lost / np.where(moved > 0, moved, 1.0), 1.0)
    return np.where(np.asarray(bounds.mask) & (values.min(axis=0) < values.max(axis=0)), share, 0.0)


def chunk_starts(num_steps: int, chunk_length: int) -> int:
    """How many chunks a trajectory gives: its last chunk_length - 1 steps start none."""
    return max(num_steps - chunk_length + 1, 0)


def chunk_actions(actions: np.ndarray, chunk_length: int) -> np.ndarray:
    """Every window of `chunk_length` consecutive actions, OpenVLA-OFT's way: nothing is padded.

    Args:
        actions: [n, A].

    Returns:
        [max(n - T + 1, 0), T, A]; entry i starts at step i.
    """
    count = chunk_starts(len(actions), chunk_length)
    steps = np.arange(count)[:, None] + np.arange(chunk_length)  # [chunks, T]
    return actions[steps]


def chunk_actions_padded(actions: np.ndarray, chunk_length: int, absolute: Sequence[bool]) -> np.ndarray:
    """Original OpenVLA's chunks: one for every step; past the end relative dims are 0, absolute ones repeat the last.

    Args:
        actions: [n, A].
        absolute: Which dims are absolute (the gripper), [A].

    Returns:
        [n, T, A].
    """
    steps = np.arange(len(actions))[:, None] + np.arange(chunk_length)  # [n, T]
    past = (steps >= len(actions))[:, :, None] & ~np.asarray(absolute, dtype=bool)  # [n, T, A]
    chunks = actions[np.minimum(steps, len(actions) - 1)]  # [n, T, A]
    return np.where(past, np.zeros((), actions.dtype), chunks)


def require_chunks(lengths: Sequence[int], chunk_length: int, name: str) -> int:
    """Number of trajectories too short for a single chunk.

    Raises:
        DataError: all of them are.
    """
    short = sum(length < chunk_length for length in lengths)
    if short == len(lengths):
        raise DataError(
            f"{name}: all {len(lengths)} episodes are shorter than the chunk of {chunk_length} steps (the longest has "
            f"{max(lengths, default=0)}); use a shorter chunk (chunk=...) or collect longer episodes"
        )
    return short
