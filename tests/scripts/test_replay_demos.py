"""replay_demos.py on the point mass: arms, what is kept, what is refused, and the script itself."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from rsd.data.datasets import Demonstrations
from rsd.data.rlds import RLDSWriter
from rsd.demos.demonstrations import record_demonstration
from rsd.demos.rerun import ArmOutcome, RerunError, RerunResult
from rsd.demos.schedule import Attempt
from rsd.errors import SettingError
from rsd.evaluation.results import append_result
from rsd.jpeg import encode_jpeg
from rsd.record import write
from rsd.tokenizer import BinTokenizer
from rsd.tokenizer.loading import load_tokenizer, save_tokenizer
from scripts import collect_demos, replay_demos
from tests.data.demonstrations import write_dataset
from tests.scripts.point_mass import PointMassExpert, RandomPointMassEnv

ROOT = Path(__file__).parents[2]
SUITE, NAME = "libero_spatial", "libero_spatial_no_noops"
RECIPE = {"settings": {"noise_scales": [0.0], "make_lead": None}}


def collected(root: Path, num_episodes: int) -> Path:
    """A data set of the point mass, as collect_demos.py names and records it."""
    directory, placement = root / "data" / NAME / "1.0.0", 0
    (root / "marks").mkdir(parents=True, exist_ok=True)
    env = RandomPointMassEnv(task_id=0, marks=str(root / "marks"), end_at_success=False)
    with RLDSWriter(directory, NAME, "1.0.0") as writer:
        while len(writer) < num_episodes:
            attempt = Attempt(SUITE, 0, 0, placement)
            placement += 1
            made = record_demonstration(
                env, PointMassExpert(env), seed=attempt.placement_seed, noise_scales=(0.0,), store_picture=encode_jpeg
            )
            if made.outcome == "success":
                writer.write_episode(collect_demos.as_rlds(attempt, made))
        writer.finish()
    write(directory / "collection.json", {f"{SUITE}/seed_0": RECIPE})
    return directory


@pytest.fixture
def tokenizer(tmp_path):
    """The folder of a tokenizer of 256 bins, with the statistics of some data set."""
    demonstrations = Demonstrations(write_dataset(tmp_path / "other", [9, 9]))
    stats = {"unnorm_key": demonstrations.name, "norm_stats": {demonstrations.name: demonstrations.norm_stats}}
    save_tokenizer(BinTokenizer(chunk_length=8, action_dim=7, num_bins=256), tmp_path / "bins", stats)
    return tmp_path / "bins"


def test_arms_are_commands_of_the_simulator(tokenizer):
    loaded = load_tokenizer(tokenizer)
    actions = np.zeros((10, 7), dtype=np.float32)
    actions[:, 6] = [1] * 5 + [0] * 5  # open, then closed
    arms = replay_demos.arms_of(actions, {"bins": loaded}, None)
    assert list(arms) == ["raw", "normalised", "bins 1/1"]
    assert all(commands[:, 6].tolist() == [-1] * 5 + [1] * 5 for commands in arms.values())
    assert list(replay_demos.arms_of(actions, {"bins": loaded, "again": loaded}, [1, 2])) == [*arms, "again 1/1"]


def test_arms_need_names_and_tokenizers_statistics(tokenizer):
    with pytest.raises(SettingError, match="expected folders of different names"):
        replay_demos.names_of(["a/dct", "b/dct"])
    bare = load_tokenizer(tokenizer)
    bare = type(bare)(bare.tokenizer, bare.sha256, bare.unnorm_key, bare.bounds, None)
    with pytest.raises(SettingError, match="tokenizer bins holds no statistics"):
        replay_demos.arms_of(np.zeros((9, 7), dtype=np.float32), {"bins": bare}, None)


def settings(**changes):
    plain = {"env": {"suite": SUITE, "variant": None, "num_tasks": 10}, "hdf5": None, "tasks": None, "disturbed": False}
    return OmegaConf.create(plain | {"num_episodes": 2} | changes)


def test_disturbed_episodes_are_left_out_and_that_is_said(tmp_path):
    directory = collected(tmp_path, 3)
    demonstrations, console = Demonstrations(directory, ["image"]), Console(file=StringIO(), width=300)
    assert [one.episode for one in replay_demos.chosen(settings(), demonstrations, console)] == [0, 1]
    assert console.file.getvalue() == ""
    write(directory / "collection.json", {f"{SUITE}/seed_0": {"settings": {"noise_scales": [0.3], "make_lead": None}}})
    with pytest.raises(RerunError, match="no episode is left in tasks=None, disturbed=False"):
        replay_demos.chosen(settings(), demonstrations, console)
    assert "note: 3 episodes were disturbed while they were collected" in console.file.getvalue()
    assert len(replay_demos.chosen(settings(disturbed=True, num_episodes=9), demonstrations, console)) == 3
    (directory / "collection.json").unlink()
    replay_demos.chosen(settings(), demonstrations, console)
    assert "does not tell how episodes were made" in console.file.getvalue()


def result(episode: int, **arms: bool) -> RerunResult:
    outcomes = {name: ArmOutcome(success, 40) for name, success in arms.items()}
    return RerunResult(episode, episode % 2, f"toy/{episode}", "go", 0.0, 1.5, outcomes)


def test_results_survive_a_kill_and_damage_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    for episode in (0, 1):
        append_result(path, result(episode, raw=True))
    path.write_bytes(path.read_bytes()[:-9])
    assert replay_demos.read_results(path) == [result(0, raw=True)]
    append_result(path, result(1, raw=False))
    assert [one.arms["raw"].success for one in replay_demos.read_results(path)] == [True, False]
    path.write_text(path.read_text().replace("40", "41", 1))
    with pytest.raises(RerunError, match="line 1 is damaged"):
        replay_demos.read_results(path)


def test_other_settings_need_another_place(tmp_path):
    replay_demos.keep_plan(tmp_path / "out", {"data": "abc", "num_still": 10})
    replay_demos.keep_plan(tmp_path / "out", {"data": "abc", "num_still": 10})
    with pytest.raises(RerunError, match="executed otherwise: num_still: 10 → 0; choose another out="):
        replay_demos.keep_plan(tmp_path / "out", {"data": "abc", "num_still": 0})


def test_a_report_by_arm_and_task():
    results = [result(0, raw=True, a=True), result(1, raw=True, a=False), result(2)]
    report = replay_demos.build_report(results, {"data": "abc"})
    assert (report["num_episodes"], report["num_other_starts"]) == (3, 1)
    assert [(arm["arm"], arm["num_success"]) for arm in report["arms"]] == [("raw", 2), ("a", 1)]
    assert [(task["task_id"], task["arms"][1]["num_success"]) for task in report["tasks"]] == [(0, 1), (1, 0)]
    console = Console(file=StringIO(), width=200)
    console.print(replay_demos.table_of(report))
    assert "2/2" in console.file.getvalue() and "-50.0" in console.file.getvalue()
    assert replay_demos.in_words(results[1]) == "task 1 episode 1: 1 of 2 arms, not a"
    assert "begins otherwise than recorded (2 levels)" in replay_demos.in_words(results[2])


@pytest.mark.slow
def test_the_script_extends_what_is_there(tmp_path, tokenizer):
    collected(tmp_path, 3)

    def run(num_episodes: int) -> str:
        command = [
            sys.executable, "scripts/replay_demos.py", f"paths.root={tmp_path}", f"num_episodes={num_episodes}",
            "env.check._target_=builtins.dict", "env.make._target_=tests.scripts.point_mass.RandomPointMassEnv",
            f"+env.make.marks={tmp_path / 'marks'}", f"tokenizers=[{tokenizer}]", "num_workers=1",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "1 of 1 episodes" in run(1)
    out = run(3)
    assert "2 of 2 episodes" in out and "3/3  100.0 %" in out and "bins 1/1" in out
    assert "episodes:" in run(3)
