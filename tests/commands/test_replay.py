"""eval.py env=replay: what it refuses, what it goes on with, and where training's numbers come from."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rsd.commands import entry_point
from rsd.commands.replay import check_typed, keep_replay_plan, training_of
from rsd.commands.requirements import require_simulator
from rsd.errors import SettingError
from rsd.evaluation.plan import PlanError, read_plan_file
from rsd.evaluation.replay import read_replayed
from rsd.record import write
from tests.data.demonstrations import write_dataset
from tests.data.tiny_base import save_tiny_base

ROOT = Path(__file__).parents[2]


def test_what_only_a_closed_loop_reads_is_refused():
    with pytest.raises(SettingError, match=r"^num_trials=2, ablation.start=3: env=replay runs no episodes"):
        check_typed(["env=replay", "num_trials=2", "ablation.start=3", "seed=1"])
    check_typed(["env=replay", "data=libero_goal", "decoding=exit", "env.replay.every=8", "max_batch=4"])


def test_commands_that_simulate_refuse_recorded_frames():
    with pytest.raises(SettingError, match="env=replay is recorded frames and no simulator, which this command needs"):
        require_simulator(OmegaConf.create({"env": {"replay": {}}}))
    require_simulator(OmegaConf.create({"env": {"suite": "libero_goal"}}))


def test_a_run_is_held_to_its_plan_and_no_judge_of_episodes_takes_it(tmp_path):
    plan = {"data": "abc", "episodes": {"val": [9]}, "every": 1}
    keep_replay_plan(tmp_path, plan)
    keep_replay_plan(tmp_path, plan)
    with pytest.raises(PlanError, match=r"cannot resume .*it was planned otherwise: every: 1 → 8"):
        keep_replay_plan(tmp_path, plan | {"every": 8})
    with pytest.raises(PlanError, match=r"is of a replay of recorded frames .*no success rate"):
        read_plan_file(tmp_path / "plan.json")


def test_training_is_told_by_its_checkpoint_or_by_its_run(tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    assert training_of(folder) is None
    write(folder / "checkpoint.json", {"provenance": {"data": "abc-train-t8-10", "metrics": {"l1": 0.25}}})
    found = training_of(folder)
    assert (found.l1, found.data, found.source) == (0.25, "abc-train-t8-10", str(folder / "checkpoint.json"))

    (folder / "checkpoint.json").unlink()  # the published layout, in the folder of its run
    write(folder / "training.json", {"data": "xyz"})
    write(folder.parent / "metrics.json", {"l1": 0.5, "gripper_accuracy": 0.9})
    assert training_of(folder) is None  # the folder around it is no run's
    (folder.parent / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "link").symlink_to(folder)
    found = training_of(tmp_path / "link")
    assert (found.l1, found.gripper_accuracy, found.data) == (0.5, 0.9, "xyz")


def test_a_run_says_its_verdict_and_goes_on_where_it_was(tmp_path, monkeypatch, capfd):
    data = write_dataset(tmp_path / "data", [9, 8, 9])
    save_tiny_base(tmp_path / "base", data)
    monkeypatch.syspath_prepend(ROOT)
    evaluation = importlib.import_module("eval")
    fixed = [
        "env=replay", "data=rlds", f"data.root={tmp_path / 'data'}", f"data.name={data.parent.name}",
        f"paths.root={tmp_path}", f"model.backbone.checkpoint={tmp_path / 'base'}", "env.replay.num_train_episodes=1",
    ]  # fmt: skip

    def run(*arguments: str) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.py", "-cp", str(ROOT / "conf"), *arguments])
        code: int | str = 0
        try:
            entry_point.run(evaluation.main, evaluation.CONFIG)
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    run_dir = tmp_path / "run"
    code, out, err = run(*fixed, f"hydra.run.dir={run_dir}")
    assert code == 0, err
    assert "2 of 2 episodes" in out and "training's own l1 is not known" in out and "report: " in out
    results = run_dir / "results.jsonl"
    assert [(one.split, one.episode) for one in read_replayed(results)] == [("val", 2), ("train", 0)]
    before = json.loads((run_dir / "report.json").read_text())

    results.write_bytes(results.read_bytes()[:-9])
    code, out, err = run(f"resume={run_dir}")
    assert code == 0, err
    after = json.loads((run_dir / "report.json").read_text())
    assert "val episode 2" not in out and after["splits"] == before["splits"] and after["complete"]
    assert run(f"resume={run_dir}", "env.replay.every=2")[0] == 1
