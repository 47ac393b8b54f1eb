"""tokenizer_arena.py as somebody runs it: a table, going on, and what it refuses."""

import json
import sys
from argparse import Namespace
from io import StringIO

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from rsd.arena.replaying import commands_of
from rsd.data import made_up
from rsd.demos.starts import Start
from rsd.record import read_json, write
from rsd.tokenizer import BinTokenizer
from scripts import tokenizer_arena
from scripts.arena.composed import contestant_of
from scripts.arena.replays import jobs_of, replay, summary_of
from scripts.arena.suites import read_suite
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


@pytest.fixture
def common(data, tmp_path):
    common = ["--data", data, "--suites", "libero_spatial", "--rounds", 2, "--replays", 0]
    return [*common, "--workers", 1, "--out", tmp_path / "out"]


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
    part = json.loads((tmp_path / "out" / "report.json").read_text())["suites"]["libero_spatial"]
    assert list(part["left_out"]) == ["rvq"] and "rvq is left out" in (tmp_path / "out" / "arena.html").read_text()
    timed = part["contestants"]["bins256"]["throughput"]
    assert "not installed" in timed["quantizer"]["left_out"]


def broken(*_, **__):
    raise ValueError("no such luck")


def test_one_that_fails_is_named_and_the_others_go_on(common, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rsd.arena.splines.Splines.fit", broken)
    with pytest.raises(SystemExit, match=r"not everything could be done, .*: libero_spatial bspline"):
        run(monkeypatch, *common, "--contestants", "bspline", "bins256")
    assert "libero_spatial bspline is left out: ValueError: no such luck" in capsys.readouterr().out
    assert "| bspline | left out |" in (tmp_path / "out" / "report.md").read_text()
    part = json.loads((tmp_path / "out" / "report.json").read_text())["suites"]["libero_spatial"]
    assert list(part["contestants"]) == ["bins256"] and part["contestants"]["bins256"]["throughput"]["rounds"] == 2
    monkeypatch.undo()
    run(monkeypatch, *common, "--contestants", "bspline", "bins256")
    part = json.loads((tmp_path / "out" / "report.json").read_text())["suites"]["libero_spatial"]
    assert list(part["contestants"]) == ["bspline", "bins256"] and part["left_out"] == {}


def test_one_that_cannot_be_timed_keeps_its_other_figures(common, tmp_path, monkeypatch):
    monkeypatch.setattr("rsd.arena.completing.throughput", broken)
    with pytest.raises(SystemExit, match="libero_spatial bins256 throughput"):
        run(monkeypatch, *common, "--contestants", "bins256")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| bins256 | 1/1 | 56 |" in text and "* bins256 throughput is left out: ValueError: no such luck" in text


def test_what_a_kill_left_untimed_is_timed(common, tmp_path, monkeypatch):
    run(monkeypatch, *common, "--contestants", "bins256")
    file = tmp_path / "out" / "libero_spatial" / "bins256.json"
    record = read_json(file)
    write(file, {key: value for key, value in record.items() if key != "checksum"} | {"throughput": None})
    run(monkeypatch, *common, "--contestants", "bins256")
    assert read_json(file)["throughput"]["rounds"] == 2 and read_json(file)["depths"] == record["depths"]


def test_no_data_and_no_such_contestant_are_named(common, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"error: libero_goal has no data set in .*collect_demos\.py env=libero_goal"):
        run(monkeypatch, *common[:2], "--suites", "libero_goal", *common[4:])
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *common, "--contestants", "nosuch")
    assert stopped.value.code == 2 and "'nosuch'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "libero_spatial").exists()


def test_what_is_executed_is_what_each_one_says(common, data, tmp_path, monkeypatch):
    run(monkeypatch, *common, "--contestants", "bins256", "dct_d2")
    asked = Namespace(data=data, out=tmp_path / "out", chunk=8, max_demos=None)
    suite = read_suite("libero_spatial", asked)
    folder = tmp_path / "out" / "libero_spatial"
    arms = commands_of(suite, suite.held_episodes[0], {"bins256": {}, "dct_d2": {}}, folder, "ends")
    assert list(arms) == ["raw", "normalised", "bins256 1/1", "dct_d2 1/2", "dct_d2 2/2"]
    assert all(commands.shape == (30, 7) for commands in arms.values())
    assert abs(arms["bins256 1/1"] - arms["normalised"]).max() < 2 / 255
    assert set(arms["dct_d2 2/2"][:, 6]) <= {-1.0, 1.0}
    none = Start(suite.held_episodes[0], 0, placement_seed=1)
    suite.starts, asked.replays, asked.replay_depths = [none], 1, "ends"
    monkeypatch.setattr(type(suite.demonstrations), "picture", lambda *_: None)
    both = {"dct_d2": {}, "dct_d3": {}}
    run(monkeypatch, *common, "--contestants", "dct_d3")
    jobs, alike = jobs_of(suite, both, asked, {(none.episode, "raw")})
    assert [[*one.arms] for one in jobs] == [["normalised", "dct_d2 1/2", "dct_d2 2/2", "dct_d3 3/3"]]
    assert alike[none.episode, "dct_d2 1/2"] == ["dct_d2 1/2", "dct_d3 1/3"]  # the first stage is the same
    assert isinstance(contestant_of("bins256", suite.space, 8, 0).tokenizer, BinTokenizer)


@pytest.mark.slow
def test_held_out_demonstrations_are_executed_and_only_what_is_missing(tmp_path, monkeypatch):
    collected(tmp_path, 4)
    out = tmp_path / "out"
    common = ["--data", tmp_path / "data", "--suites", "libero_spatial", "--rounds", 2, "--replays", 0, "--out", out]
    run(monkeypatch, *common, "--contestants", "bins256", "dct_d2")
    asked = Namespace(
        data=tmp_path / "data", out=out, chunk=8, replays=2, replay_depths="ends", workers=1, patience=60,
        max_demos=None, render_devices=[0],
    )  # fmt: skip
    suite = read_suite("libero_spatial", asked)
    make = {"_target_": "tests.scripts.point_mass.RandomPointMassEnv", "_partial_": True}
    suite.cfg = OmegaConf.create({"env": {"make": make | {"marks": str(tmp_path / "marks")}}})
    console = Console(file=StringIO(), width=200)
    results, failures = replay(suite, {"bins256": {}}, asked, console)
    assert failures == [] and [set(one.arms) for one in results] == [{"raw", "normalised", "bins256 1/1"}] * 2
    assert all(one.arms["raw"].success for one in results)
    results, _ = replay(suite, {"bins256": {}, "dct_d2": {}}, asked, console)
    assert [set(one.arms) for one in results[2:]] == [{"dct_d2 1/2", "dct_d2 2/2"}] * 2
    arms = {one["arm"]: one for one in summary_of({"libero_spatial": results}, ["bins256", "dct_d2"])}
    assert arms["raw"]["num_success"] == arms["raw"]["num_episodes"] == 2 and arms["dct_d2 2/2"]["num_pairs"] == 2
    assert len(replay(suite, {"bins256": {}, "dct_d2": {}}, asked, console)[0]) == 4
    (out / "libero_spatial" / "replays.jsonl").unlink()
    monkeypatch.setattr("rsd.arena.replaying.ARMS_A_JOB", 2)
    results, _ = replay(suite, {"bins256": {}}, asked, console)
    assert sorted(len(one.arms) for one in results) == [1, 1, 2, 2]
    assert [(one["arm"], one["num_episodes"]) for one in summary_of({"": results}, ["bins256"])] == [
        ("raw", 2),
        ("normalised", 2),
        ("bins256 1/1", 2),
    ]


@pytest.mark.slow
def test_a_suite_that_cannot_be_replayed_says_why_and_loses_nothing_else(tmp_path, monkeypatch):
    collected(tmp_path, 4)
    out = tmp_path / "out"
    common = ["--data", tmp_path / "data", "--suites", "libero_spatial", "--rounds", 2, "--workers", 1, "--out", out]
    monkeypatch.setattr("rsd.envs.gl.check_simulator", lambda: None)

    def in_a_broken_simulator(name, asked):
        suite = read_suite(name, asked)
        make = {"_target_": "tests.scripts.point_mass.RandomPointMassEnv", "_partial_": True, "broken": 0}
        suite.cfg = OmegaConf.create({"env": {"make": make | {"marks": str(tmp_path / "marks")}}})
        return suite

    monkeypatch.setattr(tokenizer_arena, "read_suite", in_a_broken_simulator)
    with pytest.raises(SystemExit, match=r"2 replays of libero_spatial\. The same command tries it again"):
        run(monkeypatch, *common, "--replays", 2, "--contestants", "bins256")
    text = (out / "report.md").read_text()
    assert "| bins256 | 1/1 |" in text and "* not replayed: episode 1, raw, normalised, bins256 1/1: ValueError" in text
