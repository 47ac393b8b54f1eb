"""Paired comparisons: published examples, hand-computed limits, coverage by enumeration."""

import math

import pytest
from scipy.stats import multinomial

from rsd.comparison.paired import (
    PairedCounts,
    difference_interval,
    independent_difference_interval,
    mcnemar,
    noninferiority,
)
from rsd.evaluation.statistics import wilson_interval


def test_a_published_example():
    """Airway hyper-responsiveness before and after transplantation, Fagerland et al. 2014, table IV."""
    counts = PairedCounts(both=1, only_first=7, only_second=1, neither=12)
    assert counts.num_pairs == 21 and counts.difference == pytest.approx(-6 / 21)
    assert difference_interval(counts) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert mcnemar(counts) == pytest.approx(2 * (1 + 8) / 2**8)  # P(at most 1 of 8 coins), both tails


def test_exchanging_the_runs_mirrors_the_interval():
    low, high = difference_interval(PairedCounts(80, 3, 9, 8))
    mirrored = difference_interval(PairedCounts(80, 9, 3, 8))
    assert mirrored == pytest.approx((-high, -low))
    assert mcnemar(PairedCounts(80, 3, 9, 8)) == mcnemar(PairedCounts(80, 9, 3, 8))


def test_no_discordant_pair_still_leaves_room_for_a_difference():
    z2 = 1.959963984540054**2
    assert difference_interval(PairedCounts(90, 0, 0, 10)) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    assert mcnemar(PairedCounts(90, 0, 0, 10)) == 1.0


def test_against_a_reference_that_never_fails_it_is_wilsons_interval_of_the_failures():
    low, high = wilson_interval(12, 40)
    assert difference_interval(PairedCounts(28, 12, 0, 0)) == pytest.approx((-high, -low))


def test_extreme_and_empty_counts():
    low, high = difference_interval(PairedCounts(0, 0, 5, 0))
    assert 0 < low < 0.2 and high == 1.0
    assert difference_interval(PairedCounts(0, 0, 0, 0)) == (-1.0, 1.0)
    assert PairedCounts(0, 0, 0, 0).difference is None


@pytest.mark.parametrize("p", [(0.70, 0.10, 0.05, 0.15), (0.90, 0.05, 0.05, 0.00), (0.5, 0.02, 0.20, 0.28)])
def test_the_interval_covers_the_true_difference_about_95_times_in_100(p):
    """All outcomes of 30 pairs, weighted by their probability."""
    n, truth, covered = 30, p[2] - p[1], 0.0
    law = multinomial(n, p)
    for first in range(n + 1):
        for second in range(n + 1 - first):
            low, high = difference_interval(PairedCounts(n - first - second, first, second, 0))
            if low <= truth <= high:
                covered += sum(
                    law.pmf((n - first - second - q, first, second, q)) for q in range(n + 1 - first - second)
                )
    assert 0.935 <= covered <= 0.985


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.019, 0.01), "non-inferior"),
        ((-0.019, -0.001), "non-inferior"),  # worse, but within the margin
        ((-0.02, 0.05), "undecided"),
        ((-0.08, -0.02), "undecided"),
        ((-0.08, -0.021), "inferior"),
    ],
)
def test_verdict_about_a_margin_of_two_points(interval, verdict):
    assert noninferiority(*interval, 0.02) == verdict


@pytest.mark.parametrize("margin", [2, 0, -0.02])
def test_a_margin_in_points_is_refused(margin):
    with pytest.raises(ValueError, match=rf"the margin is {margin}, expected a share between 0 and 1"):
        noninferiority(-0.1, 0.1, margin)


def test_independent_rates_newcombe_table_ii():
    assert independent_difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert independent_difference_interval(10, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)
    assert math.isclose(sum(independent_difference_interval(5, 10, 5, 10)), 0, abs_tol=1e-12)
