"""scripts/closed_loop.py: the arms of the closed-loop benchmark, each a command that composes."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from rsd.commands.configured import folder_options
from rsd.decoding import L1, EarlyExit, Exit, FixedHorizon, Hold, MeanLogProb, Speculative, Temporal
from scripts import closed_loop
from tests.test_configs import composed

ASKED = argparse.Namespace(
    suite="libero_goal", policy=Path("released"), tasks=[0, 4], num_trials=10, variant="swap", ablation="camera_outage",
    early_exit=[-0.1, -0.2, -0.3], temporal=[-0.4, -0.5, -0.6], device="cpu", workers=2, text_source=None,
)  # fmt: skip
STEPS = {step.name: step.command[1:] for step in closed_loop.plan(ASKED)}


def test_the_arms_are_those_of_the_benchmark():
    assert list(STEPS) == [
        "l1", "speculative", "exit", "early_exit_1", "early_exit_2", "early_exit_3", "temporal_1", "temporal_2",
        "temporal_3", "hold_2", "hold_4", "horizon_4", "horizon_8", "numbers", "micro_alone", "random", "oracle",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "decoding", "draft"),
    [
        ("l1", L1(), None),
        ("speculative", Speculative(num_draft_stages=2), "draft"),
        ("exit", Exit(num_draft_stages=2), "draft"),
        ("early_exit_3", EarlyExit(gate=MeanLogProb(threshold=-0.3), full=L1(), num_draft_stages=2), "draft"),
        ("temporal_1", ("micro", -0.4), "micro"),
        ("hold_4", Hold(num_repeats=4, full=L1()), None),
        ("horizon_4", FixedHorizon(num_steps=4, full=L1()), None),
        ("numbers", Exit(num_draft_stages=None), "numbers"),
        ("micro_alone", Exit(num_draft_stages=None), "micro"),
        ("random", ("random", float("-inf")), "random"),
        ("oracle", ("oracle", float("-inf")), "oracle"),
    ],
)
def test_an_arm_is_a_policys_folder_with_that_decoding_and_draft(name, decoding, draft):
    cfg = composed("eval", STEPS[name])
    assert (cfg.env.suite, cfg.env.variant, cfg.tasks, cfg.num_trials) == ("libero_goal", "swap", [0, 4], 10)
    assert (cfg.policy, cfg.device, cfg.save_videos) == ("released", "cpu", 0)
    assert cfg.ablation._target_.endswith("CameraOutage")
    options = folder_options(cfg, STEPS[name])
    if isinstance(decoding, tuple):
        gate = MeanLogProb(threshold=decoding[1])
        decoding = Temporal(gate=gate, full=L1(), num_draft_stages=None, max_unverified=2)
    assert options["decoding"] == decoding
    given = options["draft"]
    if draft is not None:
        assert (getattr(given, "func", given).__name__ if callable(given) else given) == draft


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["closed_loop.py", "--suite", "libero_spatial", *map(str, arguments)])
    closed_loop.main()


def test_finished_arms_are_skipped_and_compared_and_others_run_in_their_folders(tmp_path, monkeypatch):
    done = []

    def run_steps(steps, root):
        done.append([(step.name, step.folder(root)) for step in steps])
        assert steps[-1].command[:3] == ["scripts/compare.py", str(tmp_path / "runs/l1"), str(tmp_path / "runs/hold_2")]

    monkeypatch.setattr(closed_loop, "run_steps", run_steps)
    run(monkeypatch, "--root", tmp_path, "--only", "hold_2", "l1", "--num-trials", 10)
    assert [name for name, _ in done[0]] == ["l1", "hold_2", "comparison"]
    assert json.loads((tmp_path / "settings.json").read_text())["num_trials"] == 10
    run(monkeypatch, "--root", tmp_path, "--only", "hold_2", "l1", "--num-trials", 10, "--workers", 3)
    with pytest.raises(SystemExit, match="was begun with other settings: num_trials: 10 → 9"):
        run(monkeypatch, "--root", tmp_path, "--only", "hold_2", "l1", "--num-trials", 9)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["l1", "nosuch"], r"--only names \['nosuch'\], which are no arms; the arms are l1, speculative, "),
        (["hold_2"], "--only is hold_2, expected l1, which others are held against, and one more"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(only, message, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--root", tmp_path, "--only", *only)
