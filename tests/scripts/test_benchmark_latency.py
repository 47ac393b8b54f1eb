"""The latency benchmark at tiny size on the CPU, so that GPU time is not spent on finding typing errors."""

import copy
import json
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.models.openvla import segments
from rsd.models.openvla.visual_tokens import Grid
from rsd.policy.folder import read_record
from rsd.types import Chunk, Memory
from scripts.benchmark_latency import on_cores
from scripts.latency.arms import PARTS, Arm, arms_of, halves, selection_of
from scripts.latency.budget import best_rung, budget, projected
from scripts.latency.policies import Policies, chosen
from scripts.latency.replay import in_turn, mean_ratio
from scripts.latency.runs import Group, LatencyError, groups, store, stored_runs
from scripts.latency.shapes import Shapes, made_up_observation
from scripts.latency.table import policy_goals, ratio, shapes_goals, table
from scripts.latency.timing import Marks, Race, distance
from scripts.recorded import recorded_episodes
from tests.models.openvla_tiny import build_base, observation

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "benchmark_latency.py"
CPU = torch.device("cpu")
WHOLE = [32, 256]


def arm(execution, depth, tokens, language, pictures="device", passed=True, calls=200):
    """A record of latency.json: 1 ms for each part but the language model's, 10 for preparing on the CPU."""
    parts = dict.fromkeys(PARTS, 1.0) | {"language model": language}
    parts |= {"preparation": 10.0 if pictures == "cpu" else 1.0}
    ms = sum(parts.values())
    return {
        "execution": execution, "depth": depth, "tokens": tokens, "pictures": pictures,
        "precision": "fp8" if execution == "fp8" else "bf16", "wall_ms": {"median": ms, "p90": ms, "calls": calls},
        "parts_ms": {name: {"median": value} for name, value in parts.items()}, "parts_sum": True,
        "check": {"off": 0.1, "limit": 0.15, "passed": passed},
    }  # fmt: skip


RUN = {
    "section": "shapes", "what": "7b shapes", "label": "random weights, shape only", "device": "a card", "torch": "2",
    "rounds": 200, "warmup": 20, "whole": WHOLE, "refused": {}, "failed": {"c": "Traceback\nZeroDivisionError: x"},
    "postponed": ["late", "best"],
    "arms": {
        "slow": arm("eager", 32, 256, 46.0), "best": arm("compiled", 32, 256, 16.0),
        "today": arm("compiled", 32, 256, 16.0, "cpu"), "half": arm("compiled", 16, 256, 8.0),
        "few": arm("compiled", 32, 128, 10.0), "small": arm("fp8", 16, 128, 4.0), "eight": arm("fp8", 32, 128, 6.0),
    },
}  # fmt: skip


def decoded(decoding, mean, *, share=0.0, early=None, ratio=1.0, passed=True):
    """A record of a decoding."""
    early_ms = {} if early is None else {"early_ms": early}
    whole_ms = {} if share == 1 else {"whole_ms": 60.0}
    return {
        "decoding": decoding, "execution": "eager", "ms_a_step": mean / 8, "parts_ms": {}, "parts_over_whole": 1.0,
        "wall_ms": {"mean": mean, "median": mean, "p90": mean, "calls": 204}, "parts_sum": True,
        "decided_early": {"share": share, **early_ms, **whole_ms},
        "work": {"base_layers": 3.0, "pictures_prepared": 2.0},
        "over_l1": {"ratio": ratio, "interval": [ratio, ratio]},
        "check": {"off": 0.0, "agreeing": 1.0, "limit": 0.01, "passed": passed},
    }  # fmt: skip


POLICY_RUN = {
    "section": "policy", "what": "policy released on 2 cores", "label": "released weights", "device": "CPU",
    "torch": "2", "rounds": 204, "warmup": 20, "failed": {},
    "arms": {
        "l1, eager": decoded("l1", 60.0), "exit, eager": decoded("exit", 40.0, share=1, early=40.0, ratio=1.5),
        "temporal, eager": decoded("temporal", 25.0, share=0.5, early=10.0, ratio=2.4),
    },
}  # fmt: skip


def test_ratios_are_over_the_best_rung_of_the_same_run_and_none_stands_where_a_check_failed():
    assert best_rung(RUN["arms"], WHOLE) == "best" and best_rung(RUN["arms"], WHOLE, "cpu") == "today"
    assert ratio(RUN, "small") == 20 / 8 and ratio(RUN, "small", "cpu") == 29 / 8
    wrong = copy.deepcopy(RUN)
    wrong["arms"]["small"]["check"]["passed"] = False
    assert ratio(wrong, "small") is None and "0.1 FAILED (limit 0.15)" in table([wrong])
    wrong["arms"]["small"]["check"]["off"] = None
    assert "not finite FAILED" in table([wrong])
    del wrong["arms"]["best"], wrong["arms"]["slow"]
    assert ratio(wrong, "half") is None


def test_what_was_left_or_failed_is_said():
    text = table([RUN])
    assert "not measured for want of time, 1 arms: late\n" in text and "c: FAILED: ZeroDivisionError: x" in text
    assert "7b shapes, a card" in text and "random weights, shape only" in text


def test_goals_are_said_to_be_met_or_missed():
    said = list(shapes_goals(Group([RUN])))
    assert said[0] == "fp8, 16 layers, 128 tokens, at least 2.5× over the best bf16 call: 2.50×, met"
    assert said[1] == "compiled, 16 layers, 256 tokens, at least 1.6× over the best bf16 call: 1.67×, met"
    assert said[2:] == ["vision, at most 2.0 ms: 1.00 ms, met", "preparation, at most 1.0 ms: 1.00 ms, met"]
    assert all(line.endswith("not measured") for line in shapes_goals(Group([RUN | {"arms": {}}])))
    assert list(policy_goals(Group([POLICY_RUN]))) == [
        "mean wall time a chunk, at least 2.0× shorter than l1 (temporal, eager): 2.40×, met"
    ]


def test_the_budget_sums_measured_parts():
    assert projected(RUN["arms"], WHOLE, depth=16, tokens=128, execution="fp8") == 4 + 4
    assert projected(RUN["arms"], WHOLE, depth=8, tokens=128, execution="fp8") is None
    text = budget([RUN, POLICY_RUN])
    assert "Projected from measured parts (random weights, shape only); 1.00 is best, 20.00 ms" in text
    assert "16 | 128 | fp8 | 8.00 | 2.50× | 2.20× | 4.41×" in text  # 0.46 * 8 + 0.54 * 10 = 9.08
    assert "16 | 128 | bf16 | not measured" in text
    assert "no budget" in budget([RUN | {"arms": {}}]) and "no budget" in budget([])
    assert "temporal, eager | 10.00 | 60.00 | 50% | 1.26× | 1.71× | 2.25× | 2.67× | 6.00×" in text
    assert "exit, eager | 40.00 | 60.00 (l1) | 100% | 1.09×" in text


def test_a_run_that_was_cut_is_gone_on_with(tmp_path):
    """The run with most calls counts, ratios are its own, and runs of other circumstances are others."""
    first, second, other = copy.deepcopy(RUN), copy.deepcopy(RUN), copy.deepcopy(RUN) | {"device": "another card"}
    first["arms"] |= {"few": arm("compiled", 32, 128, 10.0, calls=60)}
    second["arms"] = {"best": arm("compiled", 32, 256, 36.0), "few": arm("compiled", 32, 128, 16.0)}
    store(tmp_path / "latency.json", [first, other, second, RUN | {"arms": {}, "failed": {}}])
    runs = stored_runs(tmp_path / "latency.json")
    assert runs == [first, other, second]
    mine, _ = groups(runs)
    assert mine.measured(200) == set(RUN["arms"]) and Group([first]).measured(200) == set(RUN["arms"]) - {"few"}
    run, _ = mine.arms["few"]
    assert run is runs[2] and ratio(run, "few") == 40 / 20
    assert mine.arms["small"][0] is runs[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object"),
        ("{", "JSON"),
        ('{"runs": [{"section": "shapes"}]}', "lacks entry 'runs.0.device'"),
        (json.dumps({"runs": [RUN | {"arms": {"best": {}}}]}), "lacks entry 'runs.0.arms.best.wall_ms'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, message):
    (tmp_path / "latency.json").write_text(text)
    with pytest.raises(LatencyError, match=rf"latency.json.*{message}.*remove it, or measure into another folder"):
        stored_runs(tmp_path / "latency.json")


def test_arms_that_goals_are_about_come_first_and_none_is_missing():
    assert halves(32) == [32, 16, 8] and halves(2) == [2, 1] and halves(1) == [1]
    arms = list(arms_of(halves(32), halves(256)))
    assert arms[:6] == [
        Arm("compiled", 32, 256), Arm("fp8", 16, 128), Arm("compiled", 16, 256), Arm("compiled", 32, 128),
        Arm("fp8", 32, 256), Arm("compiled", 16, 128),
    ]  # fmt: skip
    assert len(set(arms)) == len(arms) == 9 * 4 + 3
    for rung in ("eager", "captured", "compiled", "fp8"):
        assert {(one.depth, one.tokens) for one in arms if one.execution == rung} == {
            (depth, tokens) for depth in (32, 16, 8) for tokens in (256, 128, 64)
        }


def test_tokens_are_left_out_as_the_policy_leaves_them_out():
    """Behind the projector, by the segment of `visual_tokens=grid`, on their own positions."""
    base, few = build_base(), build_base(visual_tokens=Grid(num_tokens=2))
    assert selection_of(base, base.pictures.num_patches) is None
    inputs = base.on_device(base.prepare([observation()]))
    sequence = {**segments.embed(base.model, inputs, chunk_length=8), **segments.told(inputs)}
    got, expected = (one(base.model, sequence) for one in (selection_of(base, 2), few.selection))
    assert all(torch.equal(got[name], expected[name]) for name in ("x", "slots", "positions"))
    assert got["x"].shape[1] == sequence["x"].shape[1] - 2 * (base.pictures.num_patches - 2)


def test_an_arm_that_fails_loses_no_other():
    said = []
    race = Race(CPU, [made_up_observation(0)], said.append)
    expected = {0: np.ones((1, 8, 7))}

    def good(seen, mark):
        for part in PARTS:
            mark(part)
        return np.ones((1, 8, 7))

    def bad(seen, mark):
        if not said[0].endswith("go"):
            raise ZeroDivisionError("later")
        return good(seen, mark)

    def off(seen, mark):
        return 1.5 * good(seen, mark)

    said.append("go")
    for name, call in (("good", good), ("late", bad), ("early", partial(lambda *_: 1 / 0)), ("off", off)):
        race.enter(name, lambda call=call: call, lambda: expected)
    said[0] = "stop"
    for number in range(3):
        race.round(number, timed=True)
    assert set(race.failed) == {"early", "late"} and "ZeroDivisionError: later" in race.failed["late"]
    assert list(race.calls) == ["good", "off"] and len(race.times["good"].whole) == 3
    assert race.times["good"].to_json()["wall_ms"]["calls"] == 3
    assert race.times["good"].farthest == 0 and race.times["off"].farthest == 0.5
    assert distance(expected[0], np.full((1, 8, 7), np.nan)) == np.inf


def test_parts_sum_to_the_whole():
    marks = Marks(CPU)
    for part in PARTS:
        sum(range(100_000))
        marks(part)
    whole, parts = marks.stop()
    assert list(parts) == list(PARTS) and sum(parts.values()) == pytest.approx(whole, rel=0.05)


def test_shapes_are_timed_as_far_as_the_machine_goes_and_gone_on_with():
    """On a CPU: the eager ones, whose outputs are their own reference; a second run takes the missing ones."""
    shapes = Shapes(CPU, "tiny", left=lambda: 1e9, report=lambda line: None)
    kept = {}
    shapes.measure(set(), warmup=0, calls=1, write=kept.update)
    eager = [name for name in shapes.arms if name.startswith("eager")]
    assert set(kept["arms"]) == set(eager) and len(eager) == 2 * 3 + 1 and kept["failed"] == {}
    assert {one["label"] for one in kept["arms"].values()} == {"random weights, shape only"}
    assert all(one["check"] == {"off": 0.0, "limit": 0.01, "passed": True} for one in kept["arms"].values())
    assert {name.split(",")[0] for name in kept["refused"]} == {"captured", "compiled", "fp8"}
    assert "'fp8' needs a CUDA device" in kept["refused"]["fp8, 2 layers, 16 tokens, pictures on device"]
    again = Shapes(CPU, "tiny", left=lambda: -1.0, report=lambda line: None)
    again.arms = {name: again.arms[name] for name in eager}
    again.measure({eager[1]}, warmup=0, calls=5, write=kept.update)
    assert set(kept["arms"]) == {eager[0]} and kept["rounds"] == 1 and kept["postponed"] == eager[2:]


class Noted:
    """A policy that notes what it was asked, and says how many chunks it has decided in this episode."""

    num_open_loop_steps = 8

    def __init__(self, asked):
        self.asked = asked

    def predict(self, requests):
        (request,) = requests
        self.asked.append((self, request.observation, request.memory))
        number = 1 if request.memory is None else request.memory.num_unverified + 1
        memory = Memory(np.zeros((8, 7)), num_unverified=number)
        return [Chunk(np.zeros((8, 7)), num_steps=8, work={}, latency_ms={}, model_ms=1.0, memory=memory)]


def test_every_arm_sees_an_observation_before_any_sees_the_next_and_remembers_its_episode():
    asked = []
    arms = {"one": Noted(asked), "two": Noted(asked)}
    episodes = [["a", "b"], ["c"]]
    made = in_turn(arms, episodes, warmup=2, calls=4)
    assert [seen for _, seen, _ in asked[::2]] == [seen for _, seen, _ in asked[1::2]] == [*"ab", *"abca"]
    assert all({asked[i][0], asked[i + 1][0]} == set(arms.values()) for i in range(0, len(asked), 2))
    past = [None if memory is None else (memory.num_unverified, memory.num_executed) for *_, memory in asked]
    assert past[::2] == past[1::2] == [None, (1, 8), None, (1, 8), None, None]
    assert [(one.episode, one.step) for one in made["one"]] == [(0, 0), (0, 1), (1, 0), (0, 0)]
    assert len(in_turn(arms, episodes, warmup=0, calls=4, left=lambda: -1)["one"]) == 1


def test_a_ratio_is_that_of_means():
    found = mean_ratio(np.array([1.0, 3.0]), np.array([4.0, 8.0]))
    low, high = found["interval"]
    assert found["ratio"] == 3 and low <= 3 <= high and low == pytest.approx(8 / 3) and high == 4


def timed(names, num_observations):
    """What `Policies` keeps of the released policy's decodings at the first observations of an episode."""
    kept = {}
    part = Policies(
        ROOT / "released", names, [recorded_episodes()[0][:num_observations]], device="cpu", threads=1,
        left=lambda: 1e9, report=lambda line: None,
    )  # fmt: skip
    part.measure(set(), warmup=0, calls=2, write=kept.update)
    arms = {one["decoding"]: one for one in kept["arms"].values()}
    assert list(arms) == ["l1", *names] and all(one["wall_ms"]["calls"] == num_observations for one in arms.values())
    for name, one in arms.items():
        assert one["check"]["passed"] and one["check"]["agreeing"] == 1, name
    assert arms["l1"]["over_l1"]["ratio"] == 1 and arms["l1"]["work"]["base_layers"] == 6
    assert all(0.5 < one["parts_over_whole"] <= 1.001 for one in arms.values())
    return kept, arms


def test_a_decoding_of_the_released_policy_is_timed_and_held_to_what_it_promises():
    """Real weights, one episode's first two observations: exits end at layer 3."""
    kept, arms = timed(["exit"], 2)
    assert arms["exit"]["work"]["base_layers"] == 3 and arms["exit"]["decided_early"]["share"] == 1
    assert "exit | eager" in table([{**POLICY_RUN, **kept}])


@pytest.mark.slow
def test_all_decodings_of_the_released_policy_are_timed_and_held_to_what_they_promise():
    """Real weights, one episode's first three observations: exits end at layer 3, temporal skips, hold repeats."""
    kept, arms = timed(["speculative", "exit", "early_exit", "temporal", "hold 2"], 3)
    assert arms["exit"]["work"]["base_layers"] == 3 and arms["exit"]["decided_early"]["share"] == 1
    assert arms["hold 2"]["ms_a_step"] == pytest.approx(arms["hold 2"]["wall_ms"]["mean"] / 10)
    skipped = arms["temporal"]["decided_early"]["share"]
    assert arms["temporal"]["work"]["base_layers"] == pytest.approx(6 * (1 - skipped))
    text = table([{**POLICY_RUN, **kept}])
    assert "hold 2 | eager" in text and "Budget: policy released" in text


def test_holds_and_other_numbers_of_skipped_chunks_need_no_entry_in_the_folder():
    entries = read_record(ROOT / "released")["decodings"]
    assert chosen("hold 4", entries)[0].num_repeats == 4 and chosen("hold", entries) == ("hold", None)
    assert chosen("exit", entries) == ("exit", None) and chosen("temporal", entries) == ("temporal", "micro")
    decoding, draft = chosen("temporal 5", entries)
    assert decoding.max_unverified == 5 and draft == "micro"
    assert decoding.gate.threshold == entries["temporal"]["gate"]["threshold"]
    assert chosen("temporal 5", {}) == ("temporal 5", None)  # which the folder then has not


def test_cores_are_given_back():
    before = os.sched_getaffinity(0)
    with on_cores(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "nosuch.json"], "nosuch.json holds no measured part; run the benchmark first"),
        (
            ["--out", "new", "--sections", "policy_cpu", "--threads", "1024"],
            "--threads is 1024, and this process may use",
        ),
        (
            ["--out", "new", "--sections", "policy_cpu", "--decodings", "nosuch", "--threads", "1"],
            "no decoding 'nosuch'",
        ),
        (["--out", "new", "--minutes", "0"], "--minutes is 0"),
        (["--out", "new", "--device", "cuda:77"], "torch sees"),
    ],
)
def test_a_slip_is_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    code = command(monkeypatch, "--out", "new", *options)
    said = f"{capsys.readouterr().err}{code if isinstance(code, str) else ''}"
    assert message in said and "Traceback" not in said and code != 0


def command(monkeypatch, *options):
    """The script's exit code, in this process."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return stopped.value.code


def test_the_same_command_goes_on_and_another_section_is_kept(tmp_path, monkeypatch, capsys):
    file = tmp_path / "latency.json"
    store(file, [POLICY_RUN])
    tiny = ["--device", "cpu", "--size", "tiny", "--warmup", "0", "--calls", "1", "--sections", "shapes"]
    assert command(monkeypatch, *tiny, "--out", str(tmp_path)) == 0
    assert command(monkeypatch, *tiny, "--out", str(tmp_path)) == 0
    assert "no arm is left that can be timed" in capsys.readouterr().out
    kept, run = stored_runs(file)
    assert kept == POLICY_RUN and len(run["arms"]) == 7 and run["device"] == "CPU"
    assert command(monkeypatch, *tiny, "--out", str(tmp_path), "--again") == 0
    kept, again = stored_runs(file)
    assert kept == POLICY_RUN and set(again["arms"]) == set(run["arms"]) and again != run
    assert (tmp_path / "latency.md").read_text() in capsys.readouterr().out
    assert command(monkeypatch, "--budget", str(file)) == 0
    said = capsys.readouterr().out
    assert "1 | 8 | bf16 | " in said and "1 | 8 | fp8 | not measured" in said and "temporal, eager | 10.00" in said


@pytest.mark.long
def test_the_whole_script_at_tiny_size(tmp_path):
    options = ["--device", "cpu", "--size", "tiny", "--warmup", "1", "--calls", "3", "--sections", "shapes"]
    command = [sys.executable, str(SCRIPT), *options, "--out", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)  # not from the repository
    assert process.returncode == 0, process.stderr
    (run,) = stored_runs(tmp_path / "latency.json")
    assert len(run["arms"]) == 7 and (tmp_path / "latency.md").read_text() in process.stdout
    again = subprocess.run([*command[:2], "--budget", str(tmp_path / "latency.json")], capture_output=True, text=True)
    assert again.returncode == 0 and "1 | 8 | bf16 | " in again.stdout and "1 | 8 | fp8 | not measured" in again.stdout


@pytest.mark.gpu
def test_the_smoke_on_a_gpu(tmp_path):
    options = ["--size", "smoke", "--warmup", "3", "--calls", "10", "--sections", "shapes", "policy_gpu"]
    command = [sys.executable, str(SCRIPT), *options, "--out", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    shapes, policy = stored_runs(tmp_path / "latency.json")
    assert shapes["failed"] == shapes["refused"] == {} and len(shapes["arms"]) == 4 * 4 + 3
    assert len(policy["arms"]) == 6 * 3
