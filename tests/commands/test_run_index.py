"""The list of all runs: read from their folders, by content."""

import csv
import os
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from rsd.checkpoint import content_sha256, save_checkpoint
from rsd.commands.episodes import episode_table, write_table
from rsd.commands.run_index import DAMAGED, FINISHED, UNFINISHED, matching, parents, read_runs, removable, run_folders
from rsd.errors import SettingError
from rsd.record import write
from scripts.runs import page
from tests.evaluation.folders import make_run as make_evaluation
from tests.evaluation.policies import SeeingPolicy, StillPolicy

EARLIER = time.time() - 48 * 3600


def make_run(root, name, config, *, metrics=None, reads=None, checkpoint=None):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "overrides.yaml").write_text("- chunk=8\n")
    write(folder / "provenance.json", {"layout": 2, "starts": [{"time": f"2026-01-0{len(name)}T00:00:00+00:00"}]})
    if metrics is not None:
        write(folder / "metrics.json", metrics)
    if reads is not None:
        write(
            folder / "inputs.json", {part: {"path": path, "digest": digest} for part, (path, digest) in reads.items()}
        )
    if checkpoint is not None:
        weights = {"w": torch.full((2,), float(checkpoint))}
        save_checkpoint(folder / "checkpoint", kind="toy", config={}, weights=weights, provenance={})
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (EARLIER, EARLIER))
    return folder


@pytest.fixture
def root(tmp_path):
    """A tokenizer (a), a head that read it (bb), an evaluation of both (ccc), one that was cut off, a damaged one."""
    runs = tmp_path / "runs"
    a = make_run(runs, "a", {"phase": {"name": "rfsq", "shown": ["mse"]}}, metrics={"val/mse": 0.25}, checkpoint=1)
    digest = content_sha256(a / "checkpoint")
    make_run(
        runs, "bb", {"phase": {"name": "head", "shown": []}}, metrics={"val/l": 1.0}, reads={"tokenizer": ("t", digest)}
    )
    solved = {"success_rate": 0.5, "success_low": 0.1, "success_high": 0.9, "num_success": 2, "num_episodes": 4}
    make_run(
        runs, "ccc", {"env": {"suite": "toy"}}, metrics=solved, reads={"tokenizer": ("t", digest), "base": ("b", None)}
    )
    make_run(runs, "dddd", {"phase": {"name": "rfsq", "shown": []}}, checkpoint=2)
    (make_run(runs, "eeeee", {}) / "config.yaml").write_text("a: [")
    return runs


@pytest.fixture
def rows(root):
    return list(read_runs(run_folders(root)))


def test_rows_say_what_a_run_was_and_how_far_it_came(rows):
    assert [(row.kind, row.status) for row in rows] == [
        ("rfsq", FINISHED), ("head", FINISHED), ("eval", FINISHED), ("rfsq", UNFINISHED), ("?", DAMAGED),
    ]  # fmt: skip
    assert rows[0].figures == "mse 0.25"
    assert rows[2].figures == "50.0 % (10.0–90.0), 2/4"
    assert "config.yaml" in rows[4].error


def test_lineage_goes_by_content(rows):
    assert parents(rows[2], rows) == {"tokenizer": rows[0]}
    assert parents(rows[0], rows) == {}


def test_rows_are_found_by_key_and_by_content(rows):
    digest = next(iter(rows[0].makes))
    assert matching(rows, {}, digest[:8]) == rows[:3]
    assert matching(rows, {"kind": "rfsq", "status": UNFINISHED}) == [rows[3]]
    assert matching(rows, {"env.suite": "toy"}) == [rows[2]]
    with pytest.raises(SettingError, match=r"no run has a value at 'env\.sweet'"):
        matching(rows, {"env.sweet": "toy"})


def test_only_what_nobody_would_miss_is_removable(root, rows, tmp_path):
    day, names = 24 * 3600, tmp_path / "checkpoints"
    assert removable(rows, names, day) == [rows[3]]
    assert removable(rows, names, 3 * day) == []  # written to since
    names.mkdir()
    (names / "mine").symlink_to(root / "dddd" / "checkpoint")
    assert removable(rows, names, day) == []  # published
    (names / "mine").unlink()
    reader = make_run(root, "f", {}, reads={"tokenizer": ("t", next(iter(rows[3].makes)))})
    assert [row.folder for row in removable(list(read_runs(run_folders(root))), names, day)] == [reader]


def test_the_page_links_runs_to_those_that_made_what_they_read(root, rows):
    text = page(rows, rows, root)
    assert '<a href="#a">a</a>' in text and "50.0 % (10.0–90.0), 2/4" in text


@pytest.mark.slow
def test_the_command_lists_and_removes(root):
    def runs(*options):
        command = [sys.executable, "scripts/runs.py", "--root", str(root), *options]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "160"})

    assert "5 of 5 runs" in runs().stdout
    assert "1 of 5 runs" in runs("--clean").stdout and (root / "dddd").is_dir()
    assert "removed" in runs("--clean", "--yes").stdout and not (root / "dddd").exists()
    wrong = runs("--where", "kind")
    assert wrong.returncode == 2 and "expected KEY=VALUE" in wrong.stderr


def test_episodes_of_runs_are_one_table(tmp_path):
    for name, policy in (("a", SeeingPolicy(num_open_loop_steps=3)), ("b", StillPolicy())):
        make_run(tmp_path, name, {"decoding": {"name": name}})
        make_evaluation(tmp_path / name, policy, num_trials=1)
    rows = list(read_runs(run_folders(tmp_path)))
    table = episode_table(rows, tmp_path)
    assert table["run"] == ["a"] * 3 + ["b"] * 3 == table["decoding"]
    assert table["success"] == [True] * 3 + [False] * 3 and table["init_state_id"] == [0] * 6
    assert table["seen_image"][:3] == table["seen_image"][3:]  # they saw the same
    write_table(tmp_path / "episodes.csv", table)
    with open(tmp_path / "episodes.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["success"] for line in lines] == ["True"] * 3 + ["False"] * 3
    assert lines[0].keys() == table.keys()
    with pytest.raises(SettingError, match=r"expected a name that ends in \.csv or \.parquet"):
        write_table(tmp_path / "episodes.xlsx", table)


def test_a_table_is_the_same_in_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"run": ["a", "b"], "success": [True, False], "jerk": [0.5, None], "error": [None, None]}
    write_table(tmp_path / "episodes.parquet", table)
    assert parquet.read_table(tmp_path / "episodes.parquet").to_pydict() == table
