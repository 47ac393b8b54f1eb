"""The benchmark of picture tokens: what it reports, not how long anything takes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.errors import SettingError
from rsd.models.openvla.visual_tokens import Scorer, save_scorer
from scripts import benchmark_tokens
from scripts.benchmark_tokens import benchmark, interval, selections
from scripts.recorded import recorded_observations

RELEASED = Path(__file__).parents[2] / "released"


def test_distances_grow_as_tokens_go_and_all_of_them_are_the_model(monkeypatch):
    observations = recorded_observations()[:4]
    monkeypatch.setattr(benchmark_tokens, "recorded_observations", lambda: observations)
    monkeypatch.setattr(benchmark_tokens, "WARMUP", 1)
    result = benchmark(RELEASED, selections([32, 4], []), chunks=1, threads=1, device="cpu")
    assert list(result) == ["all", "grid 32", "random 32", "grid 4", "random 4"]
    assert [one["visual_tokens"] for one in result.values()] == [64, 64, 64, 8, 8]
    assert [result[name]["l1"] for name in ("all", "grid 32", "random 32")] == [0, 0, 0]
    assert min(result[name]["l1"] for name in ("grid 4", "random 4")) > 0.05
    assert result["all"]["ratio"] == 1 and all(one["base_ms"] < one["median_ms"] for one in result.values())


def test_a_scorer_brings_its_own_number(tmp_path):
    with torch.random.fork_rng():
        scorer = Scorer(width=256, num_views=2, num_patches=32, hidden=8)
    save_scorer(scorer, tmp_path, num_tokens=9, provenance={"base": {}})
    assert list(selections([], [tmp_path])) == ["all", "learned 9"]


def test_more_tokens_than_the_policy_has_are_refused():
    with pytest.raises(SettingError, match=r"num_tokens is 33, and the model has 32 tokens a view"):
        benchmark(RELEASED, selections([33], []), chunks=1, threads=1, device="cpu")


def test_an_interval_holds_the_median():
    low, high = interval(np.array([0.8, 0.9, 0.9, 0.9, 1.4]))
    assert 0.8 <= low <= 0.9 <= high <= 1.4
