"""Steps with logs, times and memory: failures, skips, and going on."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def timed(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("timed_steps")


def run(timed, steps, out, records, limit_s=60.0):
    ran = []
    failed = timed.run_all(steps, out, records, limit_s=limit_s, finished=lambda step, record: ran.append(step.name))
    return ran, failed


def test_a_failure_stops_only_what_needs_it(timed, tmp_path):
    steps = [
        timed.Step("first", ["-c", "print('hello')"]),
        timed.Step("broken", ["-c", "raise SystemExit(3)"]),
        timed.Step("after", ["-c", "1"], ("first", "broken")),
        timed.Step("without", ["-c", "1"], packages=("no_such_package",)),
        timed.Step("last", ["-c", "1"], ("first",)),
    ]
    records = {}
    ran, failed = run(timed, steps, tmp_path, records)
    assert ran == [step.name for step in steps] and failed == ["broken", "after"]
    assert {name: record["status"] for name, record in records.items()} == {
        "first": "ok",
        "broken": "exit code 3",
        "after": "not run: needs broken",
        "without": "skipped: no_such_package not installed",
        "last": "ok",
    }
    assert (tmp_path / "first.log").read_text() == "hello\n"
    assert records["first"]["host_peak_bytes"] > 10**6 and records["first"]["seconds"] >= 0


def test_going_on_runs_what_failed_changed_or_depends_on_it(timed, tmp_path):
    records = {}
    made = ["-c", f"open({str(tmp_path / 'made')!r}, 'x')"]  # fails when run twice
    steps = [timed.Step("once", made), timed.Step("flaky", ["-c", "1 / 0"]), timed.Step("end", ["-c", "1"], ("flaky",))]
    assert run(timed, steps, tmp_path, records) == (["once", "flaky", "end"], ["flaky", "end"])
    steps[1] = timed.Step("flaky", ["-c", "2"])
    assert run(timed, steps, tmp_path, records) == (["flaky", "end"], [])
    assert run(timed, steps, tmp_path, records) == ([], [])
    steps[1] = timed.Step("flaky", ["-c", "3"])
    assert run(timed, steps, tmp_path, records) == (["flaky", "end"], [])


def test_a_step_that_hangs_is_stopped_with_its_children(timed, tmp_path):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    records = {}
    run(timed, [timed.Step("hang", ["-c", child])], tmp_path, records, limit_s=1.0)
    assert records["hang"]["status"] == "exit code -9; stopped after 1 s"


def test_a_step_brings_what_it_needs(timed):
    steps = [timed.Step("a", []), timed.Step("b", [], ("a",)), timed.Step("c", []), timed.Step("d", [], ("b",))]
    assert [step.name for step in timed.with_needs(steps, ["d"])] == ["a", "b", "d"]
    with pytest.raises(ValueError, match=r"no steps \['e'\]; there are \['a', 'b', 'c', 'd'\]"):
        timed.with_needs(steps, ["e", "a"])


def test_the_7b_pipeline_at_tiny_size(tmp_path):
    command = [sys.executable, str(SCRIPTS / "benchmark_7b_pipeline.py"), "--out", str(tmp_path), "--size", "tiny"]
    command += ["--device", "cpu", "--episodes", "2", "--workers", "0", "--steps", "cache_eager"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)  # not from the repository
    assert process.returncode == 0, process.stdout + process.stderr
    records = json.loads((tmp_path / "pipeline.json").read_text())["steps"]
    assert {name: record["status"] for name, record in records.items()} == dict.fromkeys(
        ("checkpoint", "data", "cache_eager"), "ok"
    )
    assert "| cache_eager | ok |" in (tmp_path / "pipeline.md").read_text()
    assert not (tmp_path / "scratch").exists()
