"""Numbers computed by hand."""

import math

import pytest

from rsd.evaluation.latency import summarize_latency
from rsd.evaluation.statistics import (
    summarize_decoding,
    summarize_seeds,
    summarize_success,
    summarize_tasks,
    summarize_work,
    wilson_interval,
)
from rsd.types import EpisodeResult


def episode(task_id: int, init_state_id: int, success: bool, **values) -> EpisodeResult:
    return EpisodeResult("s", task_id, "do it", init_state_id, 0, success, values.pop("num_steps", 10), **values)


@pytest.mark.parametrize(("num_success", "num_trials"), [(0, 10), (7, 10), (10, 10), (48, 50), (1, 2)])
def test_wilson_interval_is_the_formula(num_success, num_trials):
    z, p, n = 1.959963984540054, num_success / num_trials, num_trials
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson_interval(num_success, num_trials) == pytest.approx((center - half, center + half), abs=1e-9)


def test_wilson_interval_of_seven_in_ten():
    assert wilson_interval(7, 10) == pytest.approx((0.39678, 0.89221), abs=1e-5)


def test_wilson_interval_of_nothing_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_a_crashed_episode_is_not_a_failure():
    summary = summarize_success([episode(0, 0, True), episode(0, 1, False), episode(0, 2, False, error="E: x")])
    assert (summary["num_episodes"], summary["num_errors"], summary["num_success"]) == (3, 1, 1)
    assert summary["success_rate"] == 0.5
    assert (summary["success_low"], summary["success_high"]) == wilson_interval(1, 2)


def test_nothing_but_crashes_has_no_rate():
    assert summarize_success([episode(0, 0, False, error="E: x")])["success_rate"] is None


def test_tasks():
    tasks = summarize_tasks([episode(2, 0, True, num_steps=4), episode(2, 1, True, num_steps=8), episode(1, 0, False)])
    assert [task["task_id"] for task in tasks] == [1, 2]
    assert tasks[1]["mean_steps_of_successes"] == 6 and tasks[0]["mean_steps_of_successes"] is None


def test_seeds_have_a_spread_of_their_own():
    """Rates 0.8, 0.6, 1.0: mean 0.8, standard deviation 0.2, and 4.3027 = Student's quantile at 2 degrees."""
    runs = [(seed, [episode(0, i, i < good) for i in range(5)]) for seed, good in ((7, 4), (8, 3), (9, 5))]
    summary = summarize_seeds(runs)
    assert [seed["seed"] for seed in summary["seeds"]] == [7, 8, 9] and summary["seeds"][1]["success_rate"] == 0.6
    assert (summary["mean"], summary["std"]) == (pytest.approx(0.8), pytest.approx(0.2))
    assert summary["mean_low"] == pytest.approx(0.8 - 4.302653 * 0.2 / math.sqrt(3)) and summary["mean_high"] == 1.0
    assert summary["pooled"]["num_success"] == 12 and summary["pooled"]["num_episodes"] == 15


def test_one_seed_has_no_spread_and_crashes_do_not_count():
    summary = summarize_seeds([(7, [episode(0, 0, True)]), (8, [episode(0, 0, False, error="E: x")])])
    assert (summary["mean"], summary["std"], summary["mean_low"]) == (1.0, None, None)
    assert summary["pooled"]["num_errors"] == 1


def test_acceptance_from_counts():
    totals = {
        "num_chunks": 10,
        "target_passes": 14,
        "draft_passes": 10,
        "proposed_stages": 20,
        "accepted_stages": 9,
        "accept_counts": [4, 3, 3, 0],
        "accepted_tokens": [90, 50, 0],
        "checked_tokens": [100, 100, 0],
    }
    summary = summarize_decoding(totals)
    assert summary["acceptance_rate"] == 0.45 and summary["target_passes_per_chunk"] == 1.4
    assert summary["stages"] == [
        {"stage": 1, "reached": 10, "accepted": 6, "rate": 0.6, "token_rate": 0.9},
        {"stage": 2, "reached": 6, "accepted": 3, "rate": 0.5, "token_rate": 0.5},
    ]
    unchecked = summarize_decoding(totals | {"checked_tokens": [0, 100, 0]})["stages"]
    assert [stage["token_rate"] for stage in unchecked] == [None]


def test_a_decoding_without_tokens_or_draft():
    assert summarize_decoding({"num_chunks": 3}) == {"has_tokens": False, "num_chunks": 3}
    idle = {"num_chunks": 3, "target_passes": 0, "draft_passes": 0, "accept_counts": [], "base_layers": 18}
    assert summarize_decoding(idle) == {"has_tokens": False, "num_chunks": 3}
    names = ("draft_passes", "proposed_stages", "accepted_stages")
    totals = {"num_chunks": 2, "target_passes": 6, "accept_counts": [0, 0, 0], **dict.fromkeys(names, 0)}
    summary = summarize_decoding(totals)
    assert summary["acceptance_rate"] is None and summary["stages"] == [] and summary["target_passes_per_chunk"] == 3


def test_work_counts_every_episode_and_divides_by_the_solved_ones():
    stats = {"num_chunks": 4, "base_layers": 24, "early_exits": 1}
    results = [
        episode(0, 0, True, stats=stats, model_ms=8.0),
        episode(0, 1, False, stats=stats | {"num_chunks": 6, "base_layers": 21}, model_ms=2.0),
        episode(0, 2, False, stats={"num_chunks": 0}, error="E: before the first chunk"),
    ]
    work = summarize_work(results)
    assert (work["num_chunks"], work["num_success"], work["early_exit_share"]) == (10, 1, 0.2)
    counters = {counter.pop("counter"): counter for counter in work["counters"]}
    assert counters["base_layers"] | {"label": ""} == {
        "label": "", "total": 45, "per_chunk": 4.5, "per_solved_episode": 45.0
    }  # fmt: skip
    assert counters["model_ms"]["per_chunk"] == 1.0 and counters["vision_calls"]["total"] is None


def test_work_that_some_episode_did_not_record_has_no_sum():
    told, silent = {"num_chunks": 2, "base_layers": 12}, {"num_chunks": 2}
    results = [episode(0, 0, True, stats=told), episode(0, 1, True, stats=silent)]
    assert all(counter["total"] is None for counter in summarize_work(results)["counters"])
    assert summarize_work([])["num_chunks"] == 0 and summarize_work([])["early_exit_share"] is None


def test_latency_percentiles_and_throughput():
    values = [float(value) for value in range(1, 102)]  # 1..101 ms: p50 51, p90 91, p99 100
    latency = summarize_latency([episode(0, 0, True, latency_ms={"llm": values, "total": values})], actions_per_chunk=8)
    assert latency["total"] | {"share": 1.0} == {
        "part": "total", "num_chunks": 101, "mean": 51.0, "p50": 51.0, "p90": 91.0, "p99": 100.0, "share": 1.0
    }  # fmt: skip
    assert latency["chunks_per_s"] == pytest.approx(1000 / 51) and latency["actions_per_s"] == pytest.approx(8000 / 51)
    assert latency["parts_sum_ratio"] == 1.0 and latency["parts_explain_total"]


@pytest.mark.parametrize(("part", "explained"), [(9.6, True), (9.4, False), (10.6, False)])
def test_parts_must_sum_to_the_total_within_five_per_cent(part, explained):
    results = [episode(0, 0, True, latency_ms={"a": [part / 2], "b": [part / 2], "total": [10.0]})]
    assert summarize_latency(results, 8)["parts_explain_total"] is explained


def test_no_latency_is_no_latency():
    latency = summarize_latency([episode(0, 0, True)], None)
    assert latency["total"] is None and latency["actions_per_s"] is None and latency["parts_explain_total"] is None
