"""Arms of the same episodes: rates of each, and differences to one of them."""

import pytest

from rsd.comparison.arms import summarize_arms
from rsd.evaluation.statistics import wilson_interval


def test_rates_and_paired_differences_by_hand():
    outcomes = (
        [{"raw": True, "a": True}] * 6 + [{"raw": True, "a": False}] * 2 + [{"raw": False, "a": True}, {"raw": True}]
    )
    raw, arm = summarize_arms(outcomes, "raw")
    assert (raw["num_success"], raw["num_episodes"], raw["success_low"]) == (9, 10, wilson_interval(9, 10)[0])
    assert "difference" not in raw
    assert (arm["num_pairs"], arm["lost"], arm["gained"]) == (9, 2, 1)
    assert arm["difference"] == pytest.approx(-1 / 9) and arm["p"] == 1.0
    assert -1 < arm["difference_low"] < -1 / 9 < arm["difference_high"] < 1


def test_without_pairs_there_is_no_difference():
    (arm,) = summarize_arms([{"a": True}], "raw")
    assert arm["num_pairs"] == 0 and arm["difference"] is None and arm["p"] is None
