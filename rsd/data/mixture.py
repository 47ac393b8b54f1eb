"""Sampling from several data sets by weight: what weights mean, and which row of which data set comes when.

A weight multiplies the size of its data set, as in Octo and OpenVLA: with weights of 1 every frame of all data sets is
drawn equally often, with 0.5 those of one half as often (balance_weights=true). Without balancing the weights alone are
the shares of the batches. Sizes are counted in chunks of the training split.

An epoch is as long as it takes until every data set of weight 1 was seen whole, in expectation, as in the reference;
where none has weight 1, those of the largest weight. What surprises first: the order of an epoch depends on (seed,
epoch) alone, and a data set that is drawn less often than it has rows shows another part of them in each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rsd.data.shuffle import EpochShuffle
from rsd.errors import SettingError

LARGEST_EPOCH = 2**31  # rows
APART = 2**32  # between the seeds of epochs, so that they share none with other shuffles


def check_weights(weights: Mapping[str, object]) -> dict[str, float]:
    """Weights of a mixture's members; those of weight 0 are left out.

    Raises:
        SettingError: there are none, one is no number of at least 0, or they sum to zero.
    """
    if not weights:
        raise SettingError("data.members is empty; name data sets and their weights: data.members={a: 1.0, b: 0.5}")
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= float(weight) < math.inf:  # type: ignore[arg-type]
            raise SettingError(
                f"data.members.{name} is {weight!r}, expected a weight of at least 0; set data.members.{name}=1.0, or "
                "leave the data set out"
            )
    kept = {name: float(weight) for name, weight in weights.items() if weight}  # type: ignore[arg-type]
    if not kept:
        raise SettingError(
            f"the weights in data.members ({', '.join(weights)}) sum to zero, so nothing can be drawn; give at least "
            "one data set a weight above 0"
        )
    return kept


def shares(sizes: Sequence[int], weights: Sequence[float], balance: bool = True) -> np.ndarray:
    """Share of each data set in what is drawn, [K], float64, sum 1.

    Args:
        sizes: Rows of each.
        weights: All above 0.
        balance: Whether a weight multiplies the size.
    """
    parts = np.asarray(weights, dtype=np.float64) * (np.asarray(sizes) if balance else 1)  # [K]
    return parts / parts.sum()


def epoch_length(sizes: Sequence[int], weights: Sequence[float], balance: bool = True) -> int:
    """Rows until every data set of weight 1, or else of the largest weight, was seen whole, in expectation."""
    needed = np.asarray(sizes) / shares(sizes, weights, balance)  # [K]
    primary = 1.0 if 1.0 in weights else max(weights)
    return int(min(needed[np.asarray(weights) == primary].max().round(), LARGEST_EPOCH))


class EpochMixture(EpochShuffle):
    """The order of the rows in each epoch; rows of all data sets are numbered one after another.

    Args:
        orders: Of each data set; a number of rows stands for all of them, shuffled.
        weights: Of each, above 0.
        seed: Of the order.
        balance: See `shares`.

    Attributes:
        shares: Of each data set, [K].
        starts: Number of the first row of each data set, and behind the last, [K + 1].
    """

    def __init__(
        self, orders: Sequence[int | EpochShuffle], weights: Sequence[float], seed: int, balance: bool = True
    ) -> None:
        self.orders = [
            EpochShuffle(one, seed + (member + 1) * APART) if isinstance(one, int) else one
            for member, one in enumerate(orders)
        ]
        self.sizes = [one.length for one in self.orders]
        super().__init__(epoch_length(self.sizes, weights, balance), seed)
        self.shares = shares(self.sizes, weights, balance)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def order(self) -> np.ndarray:
        """Rows in the order of the current epoch; no row of a data set comes again before all of them came."""
        random = np.random.default_rng((self.seed, self.epoch))
        members = random.choice(len(self.sizes), size=self.length, p=self.shares)  # [length]
        rows = np.empty(self.length, dtype=np.int64)
        for member, (start, own) in enumerate(zip(self.starts[:-1], self.orders, strict=True)):
            places = np.flatnonzero(members == member)
            for number, first in enumerate(range(0, len(places), own.length)):
                own.set_epoch(self.epoch + number * APART)
                drawn = places[first : first + own.length]
                rows[drawn] = start + own.order()[: len(drawn)]
        return rows

    def split(self, rows: Sequence[int]) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Rows by data set: which one, their places in `rows`, and their numbers in that data set."""
        numbers = np.asarray(rows, dtype=np.int64)
        members = np.searchsorted(self.starts, numbers, side="right") - 1  # [B]
        found = [(member, np.flatnonzero(members == member)) for member in np.unique(members).tolist()]
        return [(member, places, numbers[places] - self.starts[member]) for member, places in found]
