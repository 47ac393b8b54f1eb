"""From one chunk to the next: jumps of actions, and "cognitive jerk", how far states turn while pictures change.

A jump is the next chunk's first action against what the last chunk would have done there; the measure is how far a
demonstration itself moves in one step, and how wrong the policy is anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rsd.diagnosis.replay import Replay
from rsd.types import Observation

WHITE = 255


def jumps(one: Replay) -> np.ndarray:
    """Mean |next chunk's first action - the last chunk's for that step|, model space, [n - 1].

    Where chunks have one step, the last chunk's action itself is the expectation.
    """
    expected = one.chunks[:-1, min(one.stride, one.chunks.shape[1] - 1)]  # [n - 1, A]
    return np.abs(one.chunks[1:, 0] - expected).mean(axis=1)


def steps_of(one: Replay, demonstrated: np.ndarray) -> np.ndarray:
    """How far the demonstration moves from an action to the next at the same places, model space, [n - 1].

    Args:
        demonstrated: The demonstration's chunks in model space, [n, T, A].
    """
    if demonstrated.shape[1] == 1:
        return np.abs(demonstrated[1:, 0] - demonstrated[:-1, 0]).mean(axis=1)
    return np.abs(demonstrated[1:, 1] - demonstrated[1:, 0]).mean(axis=1)


def turned(states: np.ndarray, others: np.ndarray) -> np.ndarray:
    """1 - cosine of states [N, ...] and others [N, ...]: 0 where they point the same way, [N]."""
    a, b = (np.asarray(one, dtype=np.float64).reshape(len(one), -1) for one in (states, others))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return 1 - (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(float).tiny)


def picture_change(own: Sequence[Observation], others: Sequence[Observation], views: Sequence[str]) -> np.ndarray:
    """Mean change of a pixel as a share of white, over all views, [N]."""
    return np.array(
        [
            np.mean([np.abs(a.images[view].astype(np.int16) - b.images[view]).mean() for view in views]) / WHITE
            for a, b in zip(own, others, strict=True)
        ]
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's; None where one of them is constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    first, second = (np.argsort(np.argsort(one)).astype(float) for one in (a, b))
    return float(np.corrcoef(first, second)[0, 1])
