"""Statistics of a data set ↔ [-1, 1], and the gripper's three conventions, written down once.

norm_stats of one data set is the published JSON layout: {"action": {q01, q99, min, max, mean, std, mask}, "proprio":
{...}, "num_transitions", "num_trajectories"}. A file of statistics maps data set names (unnorm keys) to such entries.

The gripper: RLDS stores robosuite's command (-1 open, +1 close); models see 1 open, 0 close; the environment wants
robosuite's command again. Source of all formulas: openvla-oft @ 213c5ff (prismatic/vla/datasets/rlds, experiments/robot).
"""

from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 1e-8  # openvla-oft's guard against an empty range, in normalising and un-normalising alike


class UnknownKeyError(KeyError):
    """An unnorm_key that the statistics do not hold."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return self.args[0]


def resolve_unnorm_key(norm_stats: dict[str, Any], key: str | None) -> str:
    """Name of the statistics to use: `key` itself, or `key` + "_no_noops", or the only one when key is None.

    Raises:
        UnknownKeyError: no such entry; the message lists the available ones.
    """
    if key is None and len(norm_stats) == 1:
        return next(iter(norm_stats))
    for candidate in (key, f"{key}_no_noops"):
        if candidate in norm_stats:
            return candidate
    raise UnknownKeyError(
        f"unnorm_key {key!r} not in norm_stats; available: {sorted(norm_stats)}; set data.unnorm_key to one of them"
    )


def _range(stats: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low = np.asarray(stats["q01"], dtype=np.float64)
    high = np.asarray(stats["q99"], dtype=np.float64)
    mask = np.asarray(stats.get("mask", np.ones_like(low, dtype=bool)), dtype=bool)
    return low, high, mask


def normalize(values: np.ndarray, stats: dict[str, Any], zero_constant: bool = True) -> np.ndarray:
    """Map [q01, q99] to [-1, 1] and clip; dims outside the mask pass unchanged.

    Args:
        values: [..., dims], in robot units.
        stats: One entry ("action" or "proprio") of the statistics.
        zero_constant: Set dims with min == max to 0, as training does; the reference's evaluation does not.

    Returns:
        [..., dims], float32.
    """
    low, high, mask = _range(stats)
    scaled = np.clip(2 * (values - low) / (high - low + EPSILON) - 1, -1, 1)
    result = np.where(mask, scaled, values)
    if zero_constant:
        result = np.where(np.asarray(stats["min"]) == np.asarray(stats["max"]), 0.0, result)
    return result.astype(np.float32)


def unnormalize(values: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """Inverse of `normalize` inside [q01, q99]; values are not clipped. [..., dims], float64."""
    low, high, mask = _range(stats)
    values = np.asarray(values, dtype=np.float64)
    return np.where(mask, 0.5 * (values + 1) * (high - low + EPSILON) + low, values)


def standardize_gripper(raw: np.ndarray) -> np.ndarray:
    """RLDS gripper command (-1 open, +1 close) → 1 open, 0 close."""
    return 1 - np.clip(raw, 0, 1)


def robot_actions(actions: np.ndarray) -> np.ndarray:
    """Un-normalised model actions [..., A], gripper in [0, 1] → what the environment executes (gripper ±1, +1 close).

    A gripper of exactly 0.5 becomes 0, as in the reference.
    """
    result = np.array(actions, dtype=np.float64)
    result[..., -1] = -np.sign(2 * result[..., -1] - 1)
    return result
