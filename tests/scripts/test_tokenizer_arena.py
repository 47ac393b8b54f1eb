"""tokenizer_arena.py as somebody runs it: a table, going on, and what it refuses."""

import json
import sys
from io import StringIO

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from rsd.data import made_up
from rsd.tokenizer import BinTokenizer
from scripts import tokenizer_arena
from tests.data.demonstrations import demonstration
from tests.scripts.test_replay_demos import collected

NAME = "libero_spatial_no_noops"


def alike(number, num_steps):
    """Two demonstrations of each of two tasks."""
    made = demonstration(number, num_steps)
    made["steps"]["language_instruction"] = f"task {number % 2}"
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("arena")
    made_up.write_dataset(root / NAME / "1.0.0", [30] * 4, alike)
    return root


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tokenizer_arena.py", *map(str, words)])
    tokenizer_arena.main()


def test_halves_are_of_each_task():
    assert tokenizer_arena.halves(["a", "a", "b", "a", "b", "c"]) == ([0, 2, 3, 5], [1, 4])
    assert tokenizer_arena.halves(["a", "b", "c"]) == ([0, 2], [1])
    assert tokenizer_arena.halves(["a"]) == ([0], [])


@pytest.fixture
def common(data, tmp_path):
    return ["--data", data, "--suites", "libero_spatial", "--rounds", 2, "--replays", 0, "--out", tmp_path / "out"]


def test_a_table_a_page_and_going_on(common, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(monkeypatch, *common, "--contestants", "bins256", "dct_d2")
    report = json.loads((out / "report.json").read_text())
    part = report["suites"]["libero_spatial"]
    assert list(part["contestants"]) == ["bins256", "dct_d2"] and part["num_held_episodes"] == 2
    assert part["num_held_chunks"] == 2 * (30 - 8 + 1)
    assert (out / "report.csv").read_text().count("\n") == 4 and "<svg" in (out / "arena.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "libero_spatial").glob("*.json")}
    capsys.readouterr()
    run(monkeypatch, *common, "--contestants", "bins256", "dct_d2", "bspline")
    assert "bspline: " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(json.loads((out / "report.json").read_text())["suites"]["libero_spatial"]["contestants"]) == 3
    with pytest.raises(SystemExit, match=r"holds what was measured otherwise: seed: 0 → 1; choose another --out"):
        run(monkeypatch, *common, "--contestants", "bins256", "--seed", 1)


def test_a_package_that_is_missing_leaves_its_contestant_out_and_says_so(common, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    run(monkeypatch, *common, "--contestants", "rvq", "bins256")
    assert "rvq is left out: the package vector-quantize-pytorch is not installed" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["left_out"]) == ["rvq"] and "rvq was left out" in (tmp_path / "out" / "arena.html").read_text()
    timed = report["suites"]["libero_spatial"]["contestants"]["bins256"]["throughput"]
    assert "not installed" in timed["quantizer"]["left_out"]


def test_no_data_and_no_such_contestant_are_named(common, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"error: libero_goal has no data set in .*collect_demos\.py env=libero_goal"):
        run(monkeypatch, *common[:2], "--suites", "libero_goal", *common[4:])
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *common, "--contestants", "nosuch")
    assert stopped.value.code == 2 and "'nosuch'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "libero_spatial").exists()


def test_what_is_executed_is_what_each_one_says(common, data, tmp_path, monkeypatch):
    run(monkeypatch, *common, "--contestants", "bins256", "dct_d2")
    asked = tokenizer_arena.argparse.Namespace(data=data, out=tmp_path / "out", chunk=8)
    suite = tokenizer_arena.read_suite("libero_spatial", asked)
    folder = tmp_path / "out" / "libero_spatial"
    arms = tokenizer_arena.commands_of(suite, suite.held_episodes[0], {"bins256": {}, "dct_d2": {}}, folder, "ends")
    assert list(arms) == ["raw", "normalised", "bins256 1/1", "dct_d2 1/2", "dct_d2 2/2"]
    assert all(commands.shape == (30, 7) for commands in arms.values())
    assert abs(arms["bins256 1/1"] - arms["normalised"]).max() < 2 / 255
    assert set(arms["dct_d2 2/2"][:, 6]) <= {-1.0, 1.0}
    assert isinstance(tokenizer_arena.contestant_of("bins256", suite.space, 8, 0).tokenizer, BinTokenizer)


@pytest.mark.slow
def test_held_out_demonstrations_are_executed_and_only_what_is_missing(tmp_path, monkeypatch):
    collected(tmp_path, 4)
    out = tmp_path / "out"
    common = ["--data", tmp_path / "data", "--suites", "libero_spatial", "--rounds", 2, "--replays", 0, "--out", out]
    run(monkeypatch, *common, "--contestants", "bins256", "dct_d2")
    asked = tokenizer_arena.argparse.Namespace(
        data=tmp_path / "data", out=out, chunk=8, replays=2, replay_depths="ends", workers=1, patience=60
    )
    suite = tokenizer_arena.read_suite("libero_spatial", asked)
    make = {"_target_": "tests.scripts.point_mass.RandomPointMassEnv", "_partial_": True}
    suite.cfg = OmegaConf.create({"env": {"make": make | {"marks": str(tmp_path / "marks")}}})
    console = Console(file=StringIO(), width=200)
    results = tokenizer_arena.replay(suite, {"bins256": {}}, asked, console)
    assert [set(one.arms) for one in results] == [{"raw", "normalised", "bins256 1/1"}] * 2
    assert all(one.arms["raw"].success for one in results)
    results = tokenizer_arena.replay(suite, {"bins256": {}, "dct_d2": {}}, asked, console)
    assert [set(one.arms) for one in results[2:]] == [{"dct_d2 1/2", "dct_d2 2/2"}] * 2
    arms = {one["arm"]: one for one in tokenizer_arena.summary_of(results)}
    assert arms["raw"]["num_success"] == arms["raw"]["num_episodes"] == 2 and arms["dct_d2 2/2"]["num_pairs"] == 2
    assert "raw" in arms and len(tokenizer_arena.replay(suite, {"bins256": {}, "dct_d2": {}}, asked, console)) == 4
