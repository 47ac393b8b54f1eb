"""Slips in the options of scripts: one line, exit code 2, and nothing is made."""

import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLIPS = [
    ("compare.py", ["one", "two", "--margin", "nan"], "--margin is nan, expected a number from 0 to 1"),
    ("compare.py", ["one", "two", "--out", ""], "--out is '', expected a path"),
    ("compare.py", ["one", "two", "--allow-version", ""], "--allow-version is '', expected text that is not empty"),
    ("make_random_demos.py", ["--out", "new", "--steps", "-1"], "--steps is -1, expected a whole number from 1 to"),
    ("make_random_demos.py", ["--out", "new", "--episodes", "1000000000"], "--episodes is 1000000000, expected"),
    ("make_random_demos.py", ["--out", "file/new"], "--out is 'file/new', where nothing can be written: "),
    ("make_random_checkpoint.py", ["--out", "new", "--shard-gb", "0"], "--shard-gb is 0.0, expected a number from"),
    ("make_random_checkpoint.py", ["--out", "new", "--device", "gpu0"], "--device is 'gpu0', expected cpu, cuda"),
    ("demo.py", ["--root", "file"], "--root is 'file', where nothing can be written: "),
    ("record_policy.py", ["--out", "."], "--out is '.', which is no file"),
    ("reproduce_small.py", ["--num-trials", "51"], "--num-trials is 51, expected a whole number from 1 to 50"),
    ("reproduce_small.py", ["--only", "oft,nope"], "--only oft,nope names steps that do not exist; the steps are "),
    ("reproduce_small.py", ["--base", "new"], "--base is 'new', where there is no folder"),
    ("benchmark_rlds.py", ["--seconds", "nan"], "--seconds is nan, expected a number above 0 to 3600"),
    ("benchmark_eval.py", ["--workers", "0"], "--workers is 0, expected a whole number from 1 to 1024"),
    ("benchmark_eval.py", ["--json", "new/file"], "--json is 'new/file', where there is no folder; make new"),
    ("benchmark_latency.py", ["--episodes", "new"], "--episodes is 'new', where there is no file"),
    ("benchmark_env.py", ["--chunk", "2.5"], "--chunk is '2.5', expected a whole number from 1 to 1024"),
    ("restamp.py", [""], "folder is '', expected a path"),
]


def called(script, arguments, monkeypatch):
    """The exit code of a script."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    return stopped.value.code


@pytest.mark.parametrize(("script", "arguments", "told"), SLIPS)
def test_a_slip_is_one_line_before_anything_is_made(tmp_path, monkeypatch, capsys, script, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert called(script, arguments, monkeypatch) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {told}") and line.endswith(f"; {script} --help names the options\n")
    assert line.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_step_that_the_pipeline_lacks_is_not_a_pipeline_of_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    arguments = ["--out", str(tmp_path / "out"), "--size", "tiny", "--device", "cpu", "--steps", "data", "nosuch"]
    assert called("benchmark_7b_pipeline.py", arguments, monkeypatch) == 2
    assert "error: --steps nosuch names steps that do not exist here; they are data, " in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["nosuch=1", "env=nosuch", "num_trials=0", "chunk='"])
def test_a_benchmark_says_what_is_wrong_with_the_configuration(monkeypatch, typed):
    line = called("benchmark_eval.py", ["env=libero_spatial", typed], monkeypatch)
    assert line.startswith("error: ") and typed.partition("=")[0] in line and "\n" not in line
