"""The benchmark of decodings: what it reports, not how long anything takes."""

from pathlib import Path

import numpy as np
import pytest

from rsd.errors import RSDError
from scripts.benchmark_decodings import benchmark, interval

RELEASED = Path(__file__).parents[2] / "released"


def test_every_decoding_is_compared_with_the_first():
    result = benchmark(RELEASED, ["l1", "exit"], chunks=2, threads=1, device="cpu")
    assert list(result) == ["l1", "exit"]
    assert result["l1"]["ratio"] == 1 and result["l1"]["interval"] == [1, 1]
    assert [result[name]["base_layers"] for name in result] == [6, 3]
    assert [result[name]["early_exits"] for name in result] == [0, 1]
    low, high = result["exit"]["interval"]
    assert low <= result["exit"]["ratio"] <= high


def test_a_decoding_that_the_policy_does_not_have_is_named():
    with pytest.raises(RSDError, match="exits"):
        benchmark(RELEASED, ["l1", "exits"], chunks=1, threads=1, device="cpu")


def test_an_interval_holds_the_median():
    low, high = interval(np.array([0.8, 0.9, 0.9, 0.9, 1.4]))
    assert 0.8 <= low <= 0.9 <= high <= 1.4
