"""Intervals by resampling episodes: frames of one episode are no independent witnesses.

Every figure here is a ratio of two sums over frames (a mean is a sum over a count), so an episode is its two sums.
What surprises first: of a single episode its frames are drawn instead; that interval is too narrow, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
SMALLEST = 1e-12  # of a denominator


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value, low, high: The figure, and the bounds of its 95 % interval.
        num_episodes: Episodes that it rests on; 1: `low` and `high` are of frames.
    """

    value: float
    low: float
    high: float
    num_episodes: int

    def __str__(self) -> str:
        return f"{self.value:.2g} (95 %: {self.low:.2g} – {self.high:.2g})"

    @property
    def percent(self) -> str:
        """A share, in words."""
        return f"{100 * self.value:.0f} % (95 %: {100 * self.low:.0f} – {100 * self.high:.0f} %)"


def ratio(above: np.ndarray, below: np.ndarray, episodes: np.ndarray, *, seed: int = 0) -> Estimate:
    """Sum of `above` over sum of `below`, [N] each, with frames' episodes [N]."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    names, group = np.unique(np.asarray(episodes), return_inverse=True)
    num_episodes = len(names)
    if num_episodes == 1:
        group = np.arange(len(above))
    tops, bottoms = (np.bincount(group, weights=values) for values in (above, below))
    num_groups = len(tops)
    random = np.random.default_rng(seed)
    draws = random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=NUM_RESAMPLES)  # [R, G]
    values = (draws @ tops) / np.maximum(draws @ bottoms, SMALLEST)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Estimate(float(tops.sum() / max(bottoms.sum(), SMALLEST)), float(low), float(high), num_episodes)


def mean(values: np.ndarray, episodes: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean of values [N] with their episodes [N]."""
    return ratio(values, np.ones(len(values)), episodes, seed=seed)


def explained(predicted: np.ndarray, truth: np.ndarray, episodes: np.ndarray, *, seed: int = 0) -> Estimate:
    """R²: the share of the variance of `truth` [N, dims] around its mean that `predicted` [N, dims] explains.

    A prediction worse than the mean is below 0.
    """
    missed = ((truth - predicted) ** 2).sum(axis=1)  # [N]
    there = ((truth - truth.mean(axis=0)) ** 2).sum(axis=1)  # [N]
    share = ratio(missed, there, episodes, seed=seed)
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.num_episodes)
