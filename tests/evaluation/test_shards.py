"""eval.py -m shard=0,1,2 shards=3: the shards' report is that of the run that was not divided."""

import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from rsd.commands import entry_point
from rsd.evaluation.plan import PlanError, read_plan_file
from rsd.evaluation.shards import MergeError, merge_below, merge_shards
from rsd.runs import RunError
from tests.evaluation.folders import plan_of
from tests.fakes import point_mass_tasks

ROOT = Path(__file__).parents[2]
CONFIG = ["-cp", str(ROOT / "tests" / "evaluation" / "conf"), "-cn", "point_mass"]
TIMED = ("wall_s", "time_s", "checksum")


@pytest.fixture(scope="module")
def evaluate():
    """Run eval.py's main in this process; returns its exit code or message."""
    sys.path.insert(0, str(ROOT))
    evaluation = importlib.import_module("eval")
    sys.path.remove(str(ROOT))

    def run(*arguments: str) -> int | str | None:
        before, sys.argv = sys.argv, ["eval.py", *CONFIG, *arguments]
        try:
            entry_point.run(evaluation.main, evaluation.CONFIG)
        except SystemExit as stop:
            return stop.code
        finally:
            sys.argv = before
        return 0

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory, evaluate) -> tuple[Path, Path]:
    """The undivided run, and the sweep of its three shards."""
    root = tmp_path_factory.mktemp("shards")
    common = ("num_trials=5", "save_videos=1", "tasks=[2,0]")
    assert evaluate(f"hydra.run.dir={root}/whole", *common) == 0
    assert evaluate("-m", f"hydra.sweep.dir={root}/sweep", *common, "shard=0,1,2", "shards=3") == 0
    return root / "whole", root / "sweep"


def untimed(value):
    """Without what a clock says."""
    if isinstance(value, dict):
        return {name: untimed(one) for name, one in value.items() if name not in (*TIMED, "time", "provenance")}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def lines(folder: Path) -> list[dict]:
    return [untimed(json.loads(line)) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_merged_shards_are_the_undivided_run_record_by_record(folders):
    whole, sweep = folders
    merged = sweep / "merged"
    assert [len(lines(sweep / str(shard))) for shard in range(3)] == [3, 3, 4]
    assert [(one["task_id"], one["init_state_id"]) for one in lines(sweep / "1")] == [(2, 3), (2, 4), (0, 0)]
    assert lines(merged) == lines(whole) and len(lines(whole)) == 10
    for name in ("report.json", "metrics.json"):
        ours, theirs = (untimed(json.loads((one / name).read_text())) for one in (merged, whole))
        assert ours == theirs
    for name in ("plan.json", "config.yaml"):
        assert (merged / name).read_bytes() == (whole / name).read_bytes()
    starts = json.loads((merged / "provenance.json").read_text())["starts"]
    assert len(starts) == 3
    videos = [sorted(path.name for path in folder.glob("videos/*.mp4")) for folder in (merged, whole)]
    assert videos[0] == videos[1] == ["task00_init00.mp4", "task02_init00.mp4"]


def test_a_shard_says_that_it_is_a_part(folders):
    report = json.loads((folders[1] / "1" / "report.json").read_text())
    assert report["complete"] and report["num_planned"] == 3
    assert "A part: shard 1 of 3, 3 of 10 planned episodes." in [one["title"] for one in report["caveats"]]


def test_what_is_merged_stays_as_it_is(folders):
    before = (folders[1] / "merged" / "report.json").stat().st_mtime_ns
    assert merge_below(folders[1]) == []
    assert (folders[1] / "merged" / "report.json").stat().st_mtime_ns == before


def test_shards_that_do_not_belong_together_are_told_by_name(folders, tmp_path, evaluate):
    whole, sweep = folders
    shards = [sweep / str(shard) for shard in range(3)]
    with pytest.raises(MergeError, match=r"shard \[1\] of 3 is missing; run it with shard=1 shards=3"):
        merge_shards([shards[2], shards[0]], tmp_path / "out")
    with pytest.raises(MergeError, match="shard 0 is there twice"):
        merge_shards([*shards, shards[0]], tmp_path / "out")
    with pytest.raises(MergeError, match="is no shard of an evaluation"):
        merge_shards([whole, *shards], tmp_path / "out")
    other = tmp_path / "other"
    assert evaluate(f"hydra.run.dir={other}", "num_trials=5", "tasks=[2,0]", "shard=2", "shards=3", "seed=8") == 0
    with pytest.raises(MergeError, match=r"are not of one evaluation: .*seed: 7 → 8"):
        merge_shards([*shards[:2], other], tmp_path / "out")
    with pytest.raises(RunError, match="already holds a run"):
        merge_shards(shards, whole)
    assert not (tmp_path / "out").exists()


def test_a_merged_folder_appears_whole_and_beside_nothing_else(folders, tmp_path, monkeypatch):
    shards = [folders[1] / str(shard) for shard in range(3)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.jsonl").write_text("mine")
    with pytest.raises(MergeError, match="mine is not empty; choose a folder that is not there"):
        merge_shards(shards, tmp_path / "mine")
    assert (tmp_path / "mine" / "results.jsonl").read_text() == "mine"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("rsd.evaluation.shards.write_report", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        merge_shards(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_shards(shards, tmp_path / "out")  # the same command goes on
    assert (tmp_path / "out" / "report.html").is_file() and {one.name for one in tmp_path.iterdir()} == {"mine", "out"}


def test_a_shard_that_is_not_whole_is_not_merged(folders, tmp_path):
    sweep = tmp_path / "sweep"
    for shard in range(3):
        copied = sweep / str(shard)
        copied.mkdir(parents=True)
        for name in ("config.yaml", "overrides.yaml", "plan.json", "provenance.json", "results.jsonl"):
            (copied / name).write_bytes((folders[1] / str(shard) / name).read_bytes())
    kept = (sweep / "2" / "results.jsonl").read_text().splitlines(keepends=True)
    (sweep / "2" / "results.jsonl").write_text("".join(kept[:-1]))
    with pytest.raises(MergeError, match=r"2 lacks 1 of its 4 episodes and 0 crashed; finish it with python eval.py"):
        merge_below(sweep)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"shard": 4, "shards": 4}, r"shard is 4, expected 0\.\.3: shards=4"),
        ({"shard": 1}, r"shard is 1, expected 0\.\.0: shards=1"),
        ({"shard": 0, "shards": 13}, "shards is 13, expected at most the 12 planned episodes"),
    ],
)
def test_a_shard_that_there_is_not_is_refused(values, problem):
    with pytest.raises(PlanError, match=problem):
        plan_of(point_mass_tasks(num_tasks=3), **values)


def test_shards_are_every_episode_once(tmp_path):
    plans = [plan_of(point_mass_tasks(num_tasks=3), shard=shard, shards=5) for shard in range(5)]
    assert [len(plan.part) for plan in plans] == [2, 2, 3, 2, 3]
    assert tuple(one for plan in plans for one in plan.part) == plans[0].episodes
    (tmp_path / "plan.json").write_text(json.dumps(plans[3].to_json()))
    assert read_plan_file(tmp_path / "plan.json") == plans[3]


def test_a_run_that_was_begun_before_there_were_shards_goes_on(tmp_path, evaluate, capfd):
    run_dir = tmp_path / "run"
    assert evaluate(f"hydra.run.dir={run_dir}", "num_trials=1", "tasks=[0,1]") == 0
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    for node in (config, config["plan"]):
        del node["shard"], node["shards"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    provenance = json.loads((run_dir / "provenance.json").read_text())
    provenance["files"]["config.yaml"] = hashlib.sha256((run_dir / "config.yaml").read_bytes()).hexdigest()
    del provenance["checksum"]
    (run_dir / "provenance.json").write_text(json.dumps(provenance))
    results = (run_dir / "results.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "results.jsonl").write_text(results[0])
    assert evaluate(f"resume={run_dir}") == 0
    assert "success 2/2" in capfd.readouterr().out
    assert evaluate(f"resume={run_dir}", "shard=0", "shards=2") == 1
    assert "shards: 1 → 2" in capfd.readouterr().err
