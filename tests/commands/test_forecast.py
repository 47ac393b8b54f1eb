"""What a multirun would take, from a former run and without one."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rsd.commands.forecast import forecast_lines, units
from rsd.commands.jobs import Job
from rsd.commands.run_index import FINISHED, RunRow
from rsd.evaluation.plan import keep_plan
from tests.evaluation.folders import plan_of
from tests.fakes import point_mass_tasks

ASKED = {"minutes": 90, "num_jobs": 2, "gpus": 1, "cpus": 4, "memory": 32.0}
CONFIG = {"env": {"num_tasks": 3}, "tasks": None, "num_trials": 8, "seed": 7, "shard": 0, "shards": 1, "num_workers": 2}


def job(number: int, **changed) -> Job:
    return Job(number, (), OmegaConf.create(CONFIG | changed), str(number))


@pytest.fixture
def former(tmp_path, monkeypatch) -> Path:
    """12 episodes of 60 s each on two workers, 24 MB in all; and an older run that differs in more."""
    folders = []
    for name in ("old", "new"):
        folder = tmp_path / name
        folder.mkdir()
        keep_plan(folder, plan_of(point_mass_tasks(num_tasks=3), num_workers=2))
        lines = [
            {"suite": "point_mass", "task_id": one // 4, "instruction": "", "init_state_id": one % 4, "seed": 0}
            | {"success": True, "num_steps": 9, "wall_s": 60.0}
            for one in range(12)
        ]
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(folder)
    configs = (CONFIG | {"policy": "x", "device": "cuda"}, CONFIG | {"num_trials": 4, "seed": 1, "device": "cuda"})
    rows = [
        RunRow(folder, "eval", FINISHED, config=config, size=24_000_000)
        for folder, config in zip(folders, configs, strict=True)
    ]
    monkeypatch.setattr("rsd.commands.forecast.run_folders", lambda root: folders)
    monkeypatch.setattr("rsd.commands.forecast.read_runs", lambda found: rows)
    return tmp_path


def test_units_are_episodes_of_a_shard_or_steps():
    assert units(job(0)) == 24 and units(job(0, tasks=[1])) == 8
    assert [units(job(0, shard=shard, shards=5)) for shard in range(5)] == [4, 5, 5, 5, 5]
    assert units(Job(0, (), OmegaConf.create({"phase": {}, "trainer": {"max_steps": 300}}), "0")) == 300


def test_hours_and_disk_come_from_the_run_that_differs_least(former):
    lines = forecast_lines([job(0, shard=0, shards=2), job(1, shard=1, shards=2)], **ASKED, runs=former)
    assert lines == [
        "2 jobs, each 1 GPU, 4 CPUs, 32 GB of memory, 90 min a start",
        "forecast: 0.2 hours in all, 0.2 GPU-hours, 0.048 GB on disk",  # 24 episodes of 60 s ÷ 2 workers, 2 MB each
        "longest job: 0.1 hours, 1 start",
        f"from: {former / 'new'} (12 episodes at 30 s, which differs in device)",
    ]


def test_one_episode_longer_than_the_limit_is_told(former):
    lines = forecast_lines([job(0)], **ASKED | {"minutes": 0.25, "num_jobs": 1}, runs=former)
    assert lines[2] == "longest job: 0.2 hours, 48 starts"
    assert lines[-1] == (
        "hydra.launcher.timeout_min is 0.25 min: the time limit is shorter than one episode took there, 0.5 min"
    )


def test_a_search_stands_for_all_of_its_trials(former):
    lines = forecast_lines([job(0), job(1)], **ASKED | {"num_jobs": 20}, runs=former)
    assert lines[1].startswith("forecast: 4 hours in all, 4 GPU-hours")


def test_without_a_former_run_the_limit_is_all_there_is(tmp_path):
    lines = forecast_lines([job(0), job(1)], **ASKED, runs=tmp_path)
    assert lines[1] == (
        "forecast: 3 hours, 3 GPU-hours if each job takes its time limit, once; disk unknown. No finished run of this "
        f"kind below {tmp_path} tells more"
    )
