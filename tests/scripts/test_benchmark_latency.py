"""The latency benchmark at tiny size on the CPU, so that GPU time is not spent on finding typing errors."""

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.models.openvla import segments
from scripts.benchmark_latency import made_up_observation
from scripts.latency.arms import PARTS, arms_of, embed_some, halves
from scripts.latency.budget import best_rung, budget, projected
from scripts.latency.table import goals, ratio, table
from scripts.latency.timing import Marks, Race
from tests.models.openvla_tiny import build_base, observation

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_latency.py"
CPU = torch.device("cpu")


def run(*options, cwd):
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, cwd=cwd)


def arm(execution, depth, tokens, language, pictures="device", passed=True):
    """A record of latency.json: 1 ms for each part but the language model's, 10 for preparing on the CPU."""
    parts = dict.fromkeys(PARTS, 1.0) | {"language model": language}
    parts |= {"preparation": 10.0 if pictures == "cpu" else 1.0}
    whole = sum(parts.values())
    return {
        "execution": execution, "depth": depth, "tokens": tokens, "pictures": pictures,
        "precision": "fp8" if execution == "fp8" else "bf16", "wall_ms": {"median": whole, "p90": whole},
        "parts_ms": {name: {"median": value} for name, value in parts.items()}, "parts_sum": True,
        "check": {"max_rel": 0.1, "limit": 0.15, "passed": passed},
    }  # fmt: skip


RESULTS = {
    "label": "shape only", "device": "a card", "torch": "2", "size": "7b", "rounds": 200, "whole": [32, 256],
    "refused": {}, "failed": {"c": "Traceback\nZeroDivisionError: x"}, "vision": {},
    "arms": {
        "slow": arm("eager", 32, 256, 46.0), "best": arm("compiled", 32, 256, 16.0),
        "today": arm("compiled", 32, 256, 16.0, "cpu"), "half": arm("compiled", 16, 256, 8.0),
        "few": arm("compiled", 32, 128, 10.0), "small": arm("fp8", 16, 128, 4.0), "eight": arm("fp8", 32, 128, 6.0),
    },
}  # fmt: skip


def test_ratios_are_over_the_best_rung_and_none_stands_where_a_check_failed():
    assert best_rung(RESULTS, "device") == "best" and best_rung(RESULTS, "cpu") == "today"
    assert ratio(RESULTS, "small", "best") == 20 / 8 and ratio(RESULTS, "small", "today") == 29 / 8
    wrong = copy.deepcopy(RESULTS)
    wrong["arms"]["small"]["check"]["passed"] = False
    assert ratio(wrong, "small", "best") is None and "0.1 FAILED (limit 0.15)" in table(wrong)
    assert ratio(RESULTS, "best", None) is None
    wrong["arms"]["small"]["check"]["max_rel"] = None
    assert "not checked" in table(wrong)


def test_goals_are_said_to_be_met_or_missed():
    said = list(goals(RESULTS))
    assert said[0] == "fp8, 16 layers, 128 tokens, at least 2.5× over the best bf16 call: 2.50×, met"
    assert said[1] == "compiled, 16 layers, 256 tokens, at least 1.6× over the best bf16 call: 1.67×, met"
    assert said[2:] == ["vision, at most 2.0 ms: 1.00 ms, met", "preparation, at most 1.0 ms: 1.00 ms, met"]
    assert next(iter(goals(RESULTS | {"arms": {}}))).endswith("not measured")


def test_the_budget_sums_measured_parts():
    assert projected(RESULTS, depth=16, tokens=128, execution="fp8") == 4 + 4
    assert projected(RESULTS, depth=8, tokens=128, execution="fp8") is None
    text = budget(RESULTS, exit_share=0.5, skip_share=0.5)
    assert text.startswith("Projected from measured parts (shape only); 1.00 is best, 20.00 ms")
    assert "16 | 128 | fp8 | 8.00 | 2.50× | 2.22× | 4.44×" in text  # (8 + 10) / 2 = 9
    assert "16 | 128 | bf16 | not measured" in text
    assert "no budget" in budget(RESULTS | {"arms": {}})


def test_shapes_and_arms():
    assert halves(32) == [32, 16, 8] and halves(2) == [2, 1] and halves(1) == [1]
    arms = list(arms_of(halves(32), halves(256)))
    assert len({one.name for one in arms}) == len(arms) == 6 + 1 + 8 * 4
    assert {(one.depth, one.tokens) for one in arms if one.precision == "fp8"} == {
        (depth, tokens) for depth in (32, 16, 8) for tokens in (256, 128, 64)
    }


def test_the_first_patches_of_each_view_reach_the_language_model():
    base = build_base()
    inputs = base.on_device(base.prepare([observation()]))
    everything = segments.embed(base.model, inputs, chunk_length=8)
    number = base.model.architecture.num_patches
    for tokens in (number, 2):
        some = embed_some(base.model, inputs, chunk_length=8, tokens=tokens)
        kept = [0, *range(1, 1 + tokens), *range(1 + number, 1 + number + tokens)]
        kept += range(1 + 2 * number, everything["x"].shape[1])
        assert torch.equal(some["x"], everything["x"][:, kept])
        assert torch.equal(everything["slots"] - some["slots"], torch.full_like(some["slots"], 2 * (number - tokens)))


def test_an_arm_that_fails_loses_no_other():
    said = []
    race = Race(CPU, [made_up_observation(0)], said.append)

    def good(seen, mark):
        for part in PARTS:
            mark(part)
        return np.ones((1, 8, 7))

    def bad(seen, mark):
        if not said[0].endswith("go"):
            raise ZeroDivisionError("later")
        return good(seen, mark)

    said.append("go")
    race.enter("good", lambda: good)
    race.enter("late", lambda: bad)
    race.enter("early", lambda: partial(lambda *_: 1 / 0))
    said[0] = "stop"
    for number in range(3):
        race.round(number, timed=True)
    assert set(race.failed) == {"early", "late"} and "ZeroDivisionError: later" in race.failed["late"]
    assert list(race.calls) == ["good"] and len(race.times["good"].whole) == 3
    assert race.times["good"].to_json()["wall_ms"]["calls"] == 3


def test_parts_sum_to_the_whole():
    marks = Marks(CPU)
    for part in PARTS:
        sum(range(100_000))
        marks(part)
    whole, parts = marks.stop()
    assert list(parts) == list(PARTS) and sum(parts.values()) == pytest.approx(whole, rel=0.05)


def test_what_it_cannot_do_is_said_in_a_line(tmp_path):
    process = run("--budget", str(tmp_path / "latency.json"), cwd=tmp_path)
    assert process.returncode == 2 and "no such file; run the benchmark first" in process.stderr


@pytest.mark.slow
def test_the_whole_script_at_tiny_size(tmp_path):
    options = ["--device", "cpu", "--size", "tiny", "--warmup", "1", "--calls", "3", "--out", str(tmp_path)]
    process = run(*options, cwd=tmp_path)  # not from the repository
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "latency.json").read_text())
    assert results["failed"] == {} and len(results["arms"]) == 7
    assert all(one["check"] == {"max_rel": 0.0, "limit": 0.01, "passed": True} for one in results["arms"].values())
    assert {name.split(",")[0] for name in results["refused"]} == {"captured", "compiled", "fp8"}
    assert (
        "arms (fp8, 2 layers, 16 tokens, pictures on device …): execution 'fp8' needs a CUDA device" in process.stdout
    )
    assert (tmp_path / "latency.md").read_text() in process.stdout
    again = run("--budget", str(tmp_path / "latency.json"), cwd=tmp_path)
    assert again.returncode == 0 and "1 | 8 | bf16 | " in again.stdout and "1 | 8 | fp8 | not measured" in again.stdout


@pytest.mark.gpu
def test_the_smoke_on_a_gpu(tmp_path):
    process = run("--smoke", "--out", str(tmp_path), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "latency.json").read_text())
    assert results["failed"] == results["refused"] == {} and len(results["arms"]) == 19
