"""Every command on a random model: what is run, recorded and gone on from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[2] / "scripts"


def start(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / "benchmark_7b_pipeline.py"), "--out", str(out), "--size", "tiny"]
    command += ["--device", "cpu", "--episodes", "2", "--workers", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=out)  # not from the repository


def test_a_failed_step_ends_the_run_and_the_same_command_goes_on(tmp_path):
    steps = ["--steps", "checkpoint", "data", "rfsq"]
    shards = tmp_path / "scratch" / "data" / "libero_spatial_no_noops" / "1.0.0"
    shards.mkdir(parents=True)
    (shards / "foreign-train.tfrecord-00000-of-00001").touch()
    process = start(tmp_path, *steps)
    assert process.returncode == 1 and "step 'data' failed; the same command goes on" in process.stderr
    records = json.loads((tmp_path / "pipeline.json").read_text())["steps"]
    assert list(records) == ["data"] and records["data"]["status"] != "ok"
    (shards / "foreign-train.tfrecord-00000-of-00001").unlink()
    process = start(tmp_path, *steps)
    assert process.returncode == 0, process.stdout + process.stderr
    records = json.loads((tmp_path / "pipeline.json").read_text())["steps"]
    assert {name: record["status"] for name, record in records.items()} == dict.fromkeys(
        ("data", "checkpoint", "rfsq"), "ok"
    )
    assert records["checkpoint"]["host_peak_bytes"] > 10**8
    assert "| rfsq | ok |" in (tmp_path / "pipeline.md").read_text()
    assert not (tmp_path / "scratch").exists()
