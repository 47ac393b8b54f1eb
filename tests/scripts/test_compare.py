"""scripts/compare.py as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.comparison.run_folders import planned, provenance, write_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def compare(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / name, {0: row}, plan=planned(policy={"decoding": name}, num_tasks=1, num_trials=40))
        for name, row in (("l1", "+" * 40), ("parallel", "+" * 20 + "-" * 20), ("speculative", "+" * 40))
    ]


def test_tables_files_and_verdicts(runs, tmp_path):
    out = tmp_path / "deep" / "out"
    done = compare(*runs, "--margin", "0.1", "--reference", runs[2], "--out", out)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["A", "speculative", "40/40", "100.0", "91.2", "–", "100.0", "0"] in rows
    assert ["C", "−", "A", "40", "20", "0", "-50.0", "-64.8", "…", "-35.2", "<", "0.001", "inferior"] in rows
    assert ["B", "−", "A", "40", "0", "0", "+0.0", "-8.8", "…", "+8.8", "1.000", "non-inferior"] in rows
    assert f"Page: {out / 'comparison.html'}" in done.stdout and "margin 10 points" in done.stdout
    comparison = json.loads((out / "comparison.json").read_text())
    assert [candidate["name"] for candidate in comparison["candidates"]] == ["speculative", "l1", "parallel"]
    assert "Comparison on point_mass" in (out / "comparison.html").read_text()


def test_without_out_the_files_go_below_outputs(runs, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    done = compare(*runs, cwd=here)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in here.iterdir()] == ["outputs"]
    written = {path.relative_to(here).as_posix() for path in here.rglob("comparison.*")}
    assert written == {"outputs/comparison/comparison.html", "outputs/comparison/comparison.json"}
    assert all(path in done.stdout for path in written)


def test_what_cannot_be_compared_ends_in_one_line_and_leaves_no_files(runs, tmp_path):
    other = write_run(tmp_path / "other", {0: "+"}, suite="elsewhere")
    done = compare(runs[0], other, "--out", tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert (
        done.stderr.startswith("error: A (l1) and B (other) cannot be compared: suite") and "\n" not in done.stderr[:-1]
    )


def test_a_version_is_allowed_by_name(tmp_path):
    runs = [
        write_run(tmp_path / name, {0: "+-"}, made_with=provenance(mujoco=version))
        for name, version in (("old", "3.2.3"), ("new", "3.3.0"))
    ]
    refused = compare(*runs, "--out", tmp_path)
    assert refused.returncode == 1 and "--allow-version mujoco" in refused.stderr
    allowed = compare(*runs, "--out", tmp_path, "--allow-version", "mujoco")
    assert allowed.returncode == 0 and "mujoco 3.2.3 and 3.3.0, allowed by name" in allowed.stdout


def test_a_run_below_its_published_rate_gets_the_list_of_causes(tmp_path):
    given = {"suite": "libero_spatial", "made_with": provenance(mujoco="3.3.0")}
    given |= {"plan": planned(policy={"model": "oft_spatial"}, suite="libero_spatial", num_trials=30)}
    runs = [write_run(tmp_path / name, {0: row}, **given) for name, row in (("a", "+" * 30), ("b", "-" * 30))]
    done = compare(*runs, "--out", tmp_path)
    assert "B is below the published rate. Look at:" in done.stdout
    assert "versions.mujoco: 3.3.0, published 3.2.3: other versions change physics" in done.stdout
    assert "by hand: Look at a video." in done.stdout and "A is " not in done.stdout
