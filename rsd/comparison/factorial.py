"""Two-level designs, and the effects of their factors on outcomes that are paired by episode.

Every cell does the same episodes, so a contrast of cells is taken inside each episode first, [E], and what is uncertain
is which episodes there are: intervals resample those, within their task. What surprises first: in a half fraction each
effect is one name for two things that the cells cannot tell apart (`alias`), and an interval of no width says that no
episode differed, not that none ever would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from rsd.errors import SettingError

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST, MOST = 2, 7  # factors
CLEAR = 5  # resolution from which main effects and two-factor interactions are not aliased with each other
LETTERS = "ABCDEFG"


def design(num_factors: int, *, half: bool) -> np.ndarray:
    """Cells of a two-level design, [N, k], -1 for the reference level and 1 for the other; the first cell is all -1.

    The half fraction keeps the cells whose number of changed factors is even: the last factor is the product of the
    others, or its negative where the first cell would be missing else (k odd). Its resolution is k.
    Source: Box & Hunter, Technometrics 3 (1961) 311.

    Raises:
        SettingError: too few or too many factors, or a half fraction that confounds what is asked for.
    """
    if not FEWEST <= num_factors <= MOST:
        raise SettingError(f"{num_factors} factors, expected {FEWEST} to {MOST}")
    if half and num_factors < CLEAR:
        raise SettingError(
            f"half of the cells of {num_factors} factors is a design of resolution {num_factors}, in which effects and "
            f"interactions of two factors are aliased with each other; expected {CLEAR} factors or more, or all cells "
            "(hydra.sweeper.fraction=full)"
        )
    cells = np.array([[2 * (number >> bit & 1) - 1 for bit in range(num_factors)] for number in range(2**num_factors)])
    return cells[(cells == 1).sum(axis=1) % 2 == 0] if half else cells


def label(signs: Sequence[int]) -> str:
    """A cell in Yates's notation: the letters of the factors that are changed, (1) for none."""
    return "".join(letter.lower() for letter, sign in zip(LETTERS, signs, strict=False) if sign > 0) or "(1)"


def terms(num_factors: int) -> list[tuple[int, ...]]:
    """Main effects and two-factor interactions, as numbers of factors."""
    return [one for order in (1, 2) for one in combinations(range(num_factors), order)]


def alias(term: Sequence[int], num_factors: int) -> str:
    """What a half fraction cannot tell apart from a term: "-BCDE" for A of five factors."""
    rest = "".join(LETTERS[one] for one in range(num_factors) if one not in term)
    return f"{'-' if num_factors % 2 else ''}{rest}"


@dataclass(frozen=True)
class Effect:
    """What changing a factor does to success, averaged over the others, a difference of rates; or how two interact.

    Attributes:
        factors: Numbers of one or two factors. Of two: half the difference of the first one's effect with the second
            changed and not.
        value, low, high: The effect and its 95 % interval, shares.
        all_low, all_high: The interval of the same confidence for all effects at once (Bonferroni).
    """

    factors: tuple[int, ...]
    value: float
    low: float
    high: float
    all_low: float
    all_high: float


def contrasts(outcomes: np.ndarray, cells: np.ndarray, wanted: Sequence[Sequence[int]]) -> np.ndarray:
    """Contrast of each term inside each episode, [E, terms], of outcomes [E, N]."""
    columns = np.stack([cells[:, list(term)].prod(axis=1) for term in wanted], axis=1)  # [N, terms]
    return outcomes @ columns * (2 / len(cells))


def estimate(
    outcomes: np.ndarray, cells: np.ndarray, tasks: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Effect]:
    """All main effects and two-factor interactions.

    Args:
        outcomes: Success of each episode in each cell, [E, N], 0 or 1.
        cells: The design, [N, k].
        tasks: Of each episode, [E]; a resample has as many episodes of each task as there are.

    Raises:
        ValueError: there is no episode.
    """
    if not len(outcomes):
        raise ValueError("no episode to estimate effects of")
    wanted = terms(cells.shape[1])
    own = contrasts(outcomes.astype(np.float64), cells, wanted)  # [E, terms]
    drawn = draws(tasks, seed=seed, resamples=resamples) @ own / len(own)  # [R, terms]
    tail = (1 - LEVEL) / 2
    places = [tail, 1 - tail, tail / len(wanted), 1 - tail / len(wanted)]
    bounds = np.quantile(drawn, places, axis=0)  # [4, terms]
    return [
        Effect(term, float(value), *(float(bound) for bound in bounds[:, number]))
        for number, (term, value) in enumerate(zip(wanted, own.mean(axis=0), strict=True))
    ]


def draws(groups: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """How much each of the episodes counts in each resample, [R, E], within groups [E].

    Of n episodes of a group n - 1 are drawn, each counting n / (n - 1), so that the variance is not too small where
    groups are (Rao & Wu, JASA 83 (1988) 231). A group of one cannot say how it varies: then all are drawn together.
    """
    random = np.random.default_rng(seed)
    names, sizes = np.unique(groups, return_counts=True)
    if sizes.min(initial=2) < 2:
        groups, names = np.zeros(len(groups)), np.zeros(1)
    counts = np.ones((resamples, len(groups)))
    for name in names:
        own = (groups == name).nonzero()[0]
        if (num := len(own)) > 1:
            drawn = random.multinomial(num - 1, np.full(num, 1 / num), size=resamples)
            counts[:, own] = drawn * (num / (num - 1))
    return counts


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's of each pair of rows, [R], of two arrays [R, n], ties at their mean rank; NaN where one of them is the
    same everywhere, or n is below 3.
    """
    if first.shape[1] < 3:
        return np.full(len(first), np.nan)
    ranks = [rankdata(one, axis=1) for one in (first, second)]
    left, right = (one - one.mean(axis=1, keepdims=True) for one in ranks)
    spread = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))  # [R]
    return np.where(spread > 0, (left * right).sum(axis=1) / np.where(spread > 0, spread, 1), np.nan)


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over cells with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    num_cells: int


def predicts(
    errors: np.ndarray,
    weights: np.ndarray,
    losses: np.ndarray,
    counts: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Correlation:
    """Rank correlation over cells of an error that was measured on some episodes and a loss on others.

    Both are means: sums over sums of each episode, which are drawn anew, the two sets by themselves.

    Args:
        errors, weights: Of each recorded episode and cell the sum of the error, and what it is divided by, [R, n].
        losses, counts: The same of each episode in closed loop, [E, n].
        groups: Within which episodes are drawn, [R] and [E].
    """
    (value,) = rank_correlation(_mean(errors, weights)[None], _mean(losses, counts)[None])
    drawn_errors = draws(groups[0], seed=seed, resamples=resamples)
    drawn_losses = draws(groups[1], seed=seed + 1, resamples=resamples)
    means = (
        (drawn_errors @ errors) / np.maximum(drawn_errors @ weights, 1e-12),  # [resamples, n]
        (drawn_losses @ losses) / np.maximum(drawn_losses @ counts, 1e-12),
    )
    found = rank_correlation(*means)
    found = found[~np.isnan(found)]
    if np.isnan(value) or not len(found):
        return Correlation(None if np.isnan(value) else float(value), None, None, errors.shape[1])
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Correlation(float(value), float(low), float(high), errors.shape[1])


def _mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return sums.sum(axis=0) / np.maximum(counts.sum(axis=0), 1e-12)
