"""scripts/inspect_data.py as a user runs it, on made-up demonstrations: its table, its files and its exit code."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.data.demonstrations import NAME, write_dataset

SCRIPT = Path(__file__).parents[2] / "scripts" / "inspect_data.py"


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """Runs the script in this process; returns (exit code, stdout, data.json, index.html)."""

    def inspect(*overrides):
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        fixed = ["data=rlds", f"data.root={tmp_path}", f"data.name={NAME}", f"paths.root={tmp_path / 'outputs'}"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *fixed, *quiet, *overrides])
        monkeypatch.setenv("COLUMNS", "1000")
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        out = tmp_path / "outputs" / "inspect" / NAME
        return (
            code,
            capsys.readouterr().out,
            json.loads((out / "data.json").read_text()),
            (out / "index.html").read_text(),
        )

    return inspect


def test_a_set_that_trainings_take(inspect, tmp_path):
    write_dataset(tmp_path, [9, 12, 10])
    code, out, data, page = inspect("model=oft_tiny")
    assert code == 0 and f"inspect/{NAME}/index.html" in out and "31; an episode 9..12, median 10" in out
    assert data["num_episodes"] == 3 and "FAILED" not in {one["status"] for one in data["findings"]}
    assert page.startswith("<!doctype html>") and NAME in page


def test_a_set_that_is_refused(inspect, tmp_path):
    write_dataset(tmp_path, [9, 12, 10])
    code, out, data, page = inspect("data.gripper.open=850", "data.gripper.closed=0", "max_episodes=2")
    assert code == 1 and "FAILED" in out and "sample" in out
    (refused,) = [one["text"] for one in data["findings"] if one["status"] == "FAILED"]
    assert "data.gripper declares 850 open, 0 closed" in refused and data["read"] == [0, 2]
    assert "data.gripper declares 850 open, 0 closed" in page


def test_a_set_that_is_not_there(inspect):
    code, out, data, page = inspect()
    assert code == 1 and "FAILED" in out and data["num_episodes"] == 0
    assert "no data set at" in data["findings"][0]["text"] and "No episode was read" in page


def test_a_setting_that_is_refused_leaves_the_data_set_to_be_seen(inspect, tmp_path):
    write_dataset(tmp_path, [9, 12, 10])
    code, _, data, _ = inspect("data.gripper.open=1", "data.gripper.closed=1")
    assert code == 1 and len(data["action"]["dims"]) == 7
    refused = [one["text"] for one in data["findings"] if one["status"] == "FAILED"]
    assert refused == ["data.gripper.open and data.gripper.closed are both 1, expected two recorded values"]


def test_down_sampling_without_a_rate_is_named_and_the_rest_is_shown(inspect, tmp_path):
    write_dataset(tmp_path, [9, 12, 10])
    code, _, data, page = inspect("data.every=2", "data.relative=true")
    (refused,) = [one["text"] for one in data["findings"] if one["status"] == "FAILED"]
    assert code == 1 and "data.every asks for down-sampling, and data.rate is not set" in refused
    assert len(data["action"]["dims"]) == 7 and "data.rate is not set" in page
