"""Statistics of a data set ↔ [-1, 1], and the gripper's three conventions, written down once.

norm_stats of one data set is the published JSON layout: {"action": {q01, q99, min, max, mean, std, mask}, "proprio":
{...}, "num_transitions", "num_trajectories"}. A file of statistics maps data set names (unnorm keys) to such entries.
Which two of its numbers stand for -1 and 1 is part of an entry, as "bounds": a name in BOUNDS. Published entries do not
say it, and mean "quantiles" unless their robot says otherwise (conf/robot).

The gripper: RLDS stores robosuite's command (-1 open, +1 close); models see 1 open, 0 close; the environment wants
robosuite's command again. That is LIBERO's rule; robots other than LIBERO's execute what the model says, and their
configuration names the rule (conf/robot). Source of all formulas: openvla-oft @ 213c5ff (prismatic/vla/datasets/rlds,
experiments/robot).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rsd.errors import RSDError, SettingError

EPSILON = 1e-8  # openvla-oft's guard against an empty range, in normalising and un-normalising alike
QUANTILES = "quantiles"  # "bounds_q99" of the reference: the LIBERO policies
EXTREMES = "extremes"  # "bounds" of the reference: nothing that was demonstrated is cut off
BOUNDS = {QUANTILES: ("q01", "q99"), EXTREMES: ("min", "max")}
NO_NOOPS = "_no_noops"
LIBERO_GRIPPER = "inverted_sign"


class UnknownKeyError(RSDError, KeyError):
    """An unnorm_key that the statistics do not hold."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return self.args[0]


def resolve_unnorm_key(norm_stats: dict[str, Any], key: str | None) -> str:
    """Name of the statistics to use: `key` itself, or with or without "_no_noops", or the only one when key is None.

    The reference asks for the suite's name and takes "<suite>_no_noops" where that is not there: published checkpoints
    have the one or the other. Our data sets carry the longer name, so it works both ways here.

    Raises:
        UnknownKeyError: no such entry; the message lists the available ones.
    """
    if key is None and len(norm_stats) == 1:
        return next(iter(norm_stats))
    if key is not None:
        for candidate in (key, f"{key}{NO_NOOPS}", key.removesuffix(NO_NOOPS)):
            if candidate in norm_stats:
                return candidate
    raise UnknownKeyError(
        f"unnorm_key {key!r} not in norm_stats; available: {sorted(norm_stats)}; set data.unnorm_key to one of them"
    )


def with_bounds(norm_stats: dict[str, Any], bounds: str) -> dict[str, Any]:
    """The same statistics, to be normalised with these bounds; "quantiles" are not written down.

    Args:
        norm_stats: {"action", "proprio", ...} of one data set.
        bounds: A name in BOUNDS.

    Raises:
        ValueError: no such bounds.
    """
    if bounds not in BOUNDS:
        raise SettingError(f"bounds {bounds!r}, expected one of {sorted(BOUNDS)}")
    said = {} if bounds == QUANTILES else {"bounds": bounds}
    parts = {
        part: {name: value for name, value in norm_stats[part].items() if name != "bounds"} | said
        for part in ("action", "proprio")
        if part in norm_stats
    }
    return norm_stats | parts


def bounds_of(stats: dict[str, Any]) -> str:
    """Name of the bounds that one entry ("action" or "proprio") is normalised with."""
    return stats.get("bounds", QUANTILES)


def bounded_range(stats: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What -1 and 1 stand for, [dims] each, float64; for one entry ("action" or "proprio")."""
    low, high = (np.asarray(stats[name], dtype=np.float64) for name in BOUNDS[bounds_of(stats)])
    return low, high


def quantile_units(stats: dict[str, Any]) -> np.ndarray:
    """Factors that turn differences of normalised values into parts of half of q01..q99, [dims], float32.

    Ones where the bounds are the quantiles, in dims that are not normalised, and in those whose quantiles are equal.
    """
    low, high = bounded_range(stats)
    width = np.asarray(stats["q99"]) - np.asarray(stats["q01"])
    scaled = _mask(stats) & (width > EPSILON)
    return np.where(scaled, (high - low) / np.where(scaled, width, 1.0), 1.0).astype(np.float32)


def _mask(stats: dict[str, Any]) -> np.ndarray:
    """Which dims are normalised at all, [dims], bool; statistics without a mask normalise every dim."""
    return np.asarray(stats.get("mask", np.ones_like(stats["q01"])), dtype=bool)


def normalize(values: np.ndarray, stats: dict[str, Any], zero_constant: bool = True) -> np.ndarray:
    """Map the statistics' bounds to [-1, 1] and clip; dims outside the mask pass unchanged.

    Args:
        values: [..., dims], in robot units.
        stats: One entry ("action" or "proprio") of the statistics.
        zero_constant: Set dims with min == max to 0, as training does; the reference's evaluation does not.

    Returns:
        [..., dims], float32.
    """
    low, high = bounded_range(stats)
    scaled = np.clip(2 * (values - low) / (high - low + EPSILON) - 1, -1, 1)
    result = np.where(_mask(stats), scaled, values)
    if zero_constant:
        result = np.where(np.asarray(stats["min"]) == np.asarray(stats["max"]), 0.0, result)
    return result.astype(np.float32)


def normalize_gaussian(values: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """Zero mean, unit variance ("normal" of the reference, training only); dims outside the mask pass. [..., dims]."""
    mean, std = (np.asarray(stats[name], dtype=np.float64) for name in ("mean", "std"))
    return np.where(_mask(stats), (values - mean) / (std + EPSILON), values).astype(np.float32)


def unnormalize(values: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """Inverse of `normalize` inside the bounds; values are not clipped. [..., dims], float64."""
    low, high = bounded_range(stats)
    values = np.asarray(values, dtype=np.float64)
    return np.where(_mask(stats), 0.5 * (values + 1) * (high - low + EPSILON) + low, values)


def standardize_gripper(raw: np.ndarray) -> np.ndarray:
    """RLDS gripper command (-1 open, +1 close) → 1 open, 0 close."""
    return 1 - np.clip(raw, 0, 1)


def robot_actions(actions: np.ndarray, gripper: str = LIBERO_GRIPPER) -> np.ndarray:
    """Un-normalised model actions → what the robot executes.

    Args:
        actions: [..., A].
        gripper: Name of the rule in GRIPPERS.

    Returns:
        [..., A], float64.
    """
    return GRIPPERS[gripper](np.array(actions, dtype=np.float64))


def _inverted_sign(actions: np.ndarray) -> np.ndarray:
    """Gripper in [0, 1], 1 open → robosuite's ±1, +1 close; exactly 0.5 becomes 0, as in the reference."""
    actions[..., -1] = -np.sign(2 * actions[..., -1] - 1)
    return actions


def _unchanged(actions: np.ndarray) -> np.ndarray:
    """WidowX and ALOHA: the reference hands the model's actions to the robot as they are."""
    return actions


GRIPPERS = {LIBERO_GRIPPER: _inverted_sign, "unchanged": _unchanged}
