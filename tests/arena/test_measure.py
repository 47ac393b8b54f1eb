"""Millimetres, degrees, bits and perplexity against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rsd.arena.blocks import Blocks
from rsd.arena.contract import Written
from rsd.arena.measure import alphabet_use, bound_distances, distances, measure
from rsd.arena.report import as_csv, as_markdown, cells_of, page, plot, rows_of
from rsd.arena.timing import in_turn, throughput
from rsd.space import Space
from rsd.tokenizer import BinTokenizer, TransformTokenizer
from tests.tokenizer.contract import random_chunks

ACTION = {"q01": [-0.5] * 6 + [0.0], "q99": [0.5] * 6 + [1.0], "min": [-1.0] * 6 + [0.0], "max": [1.0] * 7}
SPACE = Space.from_statistics("toy", {"action": ACTION | {"mask": [True] * 6 + [False]}})


def test_an_action_of_one_is_five_centimetres_and_half_a_radian():
    meant, said = np.zeros((1, 7)), np.array([[0.6, 0.0, 0.8, 0.0, 1.0, 0.0, 0.0]])
    millimetres, degrees = distances(said, meant)
    assert millimetres == pytest.approx([50.0]) and degrees == pytest.approx([math.degrees(0.5)])


def test_a_bound_is_in_the_same_units():
    bound = torch.zeros(2, 7)
    bound[1, :2] = torch.tensor([0.6, 0.8])  # of half a range of 1
    bound[0, 4] = 1.0
    assert bound_distances(bound, SPACE) == pytest.approx((25.0, math.degrees(0.25)))


def test_use_of_an_alphabet_by_hand():
    tokens = torch.tensor([[0, 1, 0], [1, 1, 3], [0, 1, 0], [1, 1, 3]])
    written = Written(tokens, torch.tensor([0, 0, 1]), torch.tensor([2, 4, 8]))
    first = alphabet_use(written, 0)  # a fair coin, and a constant
    assert first == {"tokens": 2.0, "longest": 2.0, "bits": 3.0, "entropy": 1.0, "perplexity": 1.5}
    pairs = Written(torch.tensor([[0, 1], [0, -1]]), torch.tensor([0, 0]), torch.tensor([4, 4]), aligned=False)
    use = alphabet_use(pairs, 0)
    entropy = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert (use["tokens"], use["longest"], use["bits"]) == (1.5, 2.0, 3.0)
    assert use["entropy"] == pytest.approx(1.5 * entropy) and use["perplexity"] == pytest.approx(2**entropy)


@pytest.fixture(scope="module")
def records():
    chunks = random_chunks(300, 8)
    bins = Blocks("bins256", "256 bins", BinTokenizer(chunk_length=8, action_dim=7, num_bins=256), 0)
    made = TransformTokenizer(chunk_length=8, action_dim=7, num_stages=3, num_levels=7, ratio=7.0, margin=1.05)
    transform = Blocks("dct_d3", "transform", made, 0)
    found = {}
    for one in (bins, transform):
        one.fit(chunks, seed=0, max_steps=None)
        timed = throughput(one, chunks[:16], rounds=3)
        found[one.name] = {"idea": one.idea, "depths": measure(one, chunks, SPACE), "throughput": timed}
    return found


def test_errors_of_bins_are_half_a_bin_and_tails_stay_within_their_bounds(records):
    (bins,) = records["bins256"]["depths"]
    assert bins["max_mm"] <= 50 * 0.5 / 255 * math.sqrt(3) + 1e-4 and bins["max_mm"] > bins["mean_mm"] > 0
    assert (bins["total_tokens"], bins["tail_mm"], bins["bound_mm"], bins["gripper_errors"]) == (56, 0, 0, 0)
    assert bins["total_bits"] == pytest.approx(56 * math.log2(255))
    transform = records["dct_d3"]["depths"]
    assert [one["depth"] for one in transform] == [1, 2, 3]
    means = [one["mean_mm"] for one in transform]
    assert means == sorted(means, reverse=True)
    for one in transform:
        assert one["tail_mm"] <= one["bound_mm"] + 1e-4 and one["tail_deg"] <= one["bound_deg"] + 1e-4
        assert one["entropy"] <= one["bits"]


def test_arms_are_timed_in_turn():
    calls = []
    taken = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4)
    assert calls == ["a", "b"] * 7 and {name: len(ms) for name, ms in taken.items()} == {"a": 4, "b": 4}


def report_of(records):
    solved = {"num_episodes": 4, "num_success": 3, "success_rate": 0.75, "success_low": 0.3, "success_high": 0.95}
    part = {"num_fit_episodes": 6, "num_held_episodes": 6, "num_fit_chunks": 500, "num_held_chunks": 480}
    part |= {"num_disturbed": 2, "num_other_starts": 1, "replay_failures": ["episode 3, fast 1/1: it died"]}
    part |= {"normalised": {"mean_mm": 0.1}, "contestants": records}
    pairs = {"num_pairs": 4, "lost": 1, "gained": 0, "difference": -0.25, "difference_low": -0.6}
    part["replays"] = [{"arm": "raw", **solved}, {"arm": "dct_d3 3/3", **solved}]
    part["left_out"] = {"rvq": "the package <vector> is not installed"}
    pooled = [{"arm": "raw", **solved}, {"arm": "dct_d3 3/3", **solved, **pairs, "difference_high": 0.3}]
    plan = {"seed": 0, "data": {"toy": "abc"}}
    return {"plan": plan, "suites": {"libero_spatial": part}, "pooled": pooled}


def test_one_table_says_what_was_measured_and_what_was_not(records):
    report = report_of(records)
    rows = rows_of(report)
    depths = [("bins256", 1), *(("dct_d3", q) for q in (1, 2, 3)), ("rvq", None)]
    assert [(row["contestant"], row["depth"]) for row in rows] == depths
    assert rows[3]["num_success"] == 3 and rows[0]["num_success"] is None
    assert "3/4 (30–95 %)" in cells_of(rows[3]) and cells_of(rows[0])[-1] == "–"
    assert cells_of(rows[4])[:3] == ["rvq", "left out", "–"] and rows[4]["left_out"].endswith("is not installed")
    assert len(as_csv(rows).splitlines()) == 6
    text = as_markdown(report)
    assert "raw 3/4" in text and "6 demonstrations, 2 of them disturbed (500 chunks)" in text
    assert "* rvq is left out: the package <vector>" in text and "* not replayed: episode 3, fast 1/1: it died" in text
    assert "* 1 demonstrations begin otherwise" in text
    assert "| dct_d3 3/3 | 3/4 (30–95 %) | −25.0 | −60.0 … +30.0 | 1 | 0 |" in text
    first, all_suites = text.split("**all suites**")
    for part in (first, all_suites):
        assert len({line.count("|") for line in part.splitlines() if line[:1] == "|"}) == 1


def test_a_contestant_that_is_not_timed_yet_has_a_row(records):
    untimed = {"bins256": records["bins256"] | {"throughput": None}}
    (row, _) = rows_of(report_of(untimed))
    assert row["encode_per_s"] is None and cells_of(row)[-3:-1] == ["–", "–"]


def test_the_page_holds_the_table_the_plot_and_what_was_left_out(records):
    report = report_of(records)
    html = page(report)
    assert "rvq is left out: the package &lt;vector&gt;" in html and html.count("<svg") == 1
    assert html.count("<tr>") == 6 + 3 and "width=device-width" in html
    svg = plot(rows_of(report), "libero_spatial")
    assert svg.count("<title>") == 4 and svg.count("<polyline") == 2 and "nan" not in svg
