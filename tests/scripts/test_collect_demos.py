"""collect_demos.py on the point mass: append, resume, death of processes, full disk, Ctrl-C, wrong requests."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from hydra.utils import instantiate
from rich.console import Console

from rsd import pool
from rsd.checkpoint import save_checkpoint
from rsd.data.rlds import RLDSDataset, RLDSWriter
from rsd.demos.collection import Recipe
from rsd.demos.schedule import Attempt, CollectionError, Schedule, share_out
from rsd.errors import SettingError
from rsd.types import InstructionError
from scripts import collect_demos
from tests.scripts.point_mass import PointMassExpert, RandomPointMassEnv

ROOT = Path(__file__).parents[2]
NAME = "libero_spatial_no_noops"
PLAN = {"suite": "libero_spatial", "tasks": [0, 1, 2], "num_episodes": 5, "seed": 0}


def recipe(root: Path, **arguments) -> Recipe:
    root.mkdir(parents=True, exist_ok=True)
    return Recipe(partial(RandomPointMassEnv, marks=str(root), **arguments), PointMassExpert, (0.0,))


def collect(
    root: Path, num_workers: int = 1, num_episodes: int = 5, patience_s: float = 300.0, **arguments
) -> tuple[Schedule, str]:
    """Collect into root/data in this process (and its workers); the schedule, and what was printed."""
    console = Console(file=StringIO(), width=200)
    with RLDSWriter(dataset(root), NAME) as writer:
        schedule = Schedule(**PLAN | {"num_episodes": num_episodes}, stored=writer.file_paths())
        made_by = {"num_workers": num_workers, "patience_s": patience_s}
        collect_demos.collect_into(writer, schedule, recipe(root / "marks", **arguments), console, **made_by)
    return schedule, console.file.getvalue()


def start(root: Path, *overrides: str) -> subprocess.Popen:
    """The script itself, on the point mass, two workers."""
    (root / "marks").mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "scripts/collect_demos.py",
        f"paths.root={root}",
        "env.check._target_=builtins.dict",
        "env.make._target_=tests.scripts.point_mass.RandomPointMassEnv",
        f"+env.make.marks={root / 'marks'}",
        "+env.make.seconds=0.2",
        "demonstrator.make._target_=tests.scripts.point_mass.PointMassExpert",
        "tasks=[0,1,2]",
        *overrides,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def dataset(root: Path) -> Path:
    return root / "data" / NAME / "1.0.0"


def names(root: Path) -> list[str]:
    return sorted(RLDSDataset(dataset(root)).file_paths())


def wait_for_episode(root: Path, process: subprocess.Popen) -> None:
    """Return when the first episode is counted in the data set."""
    deadline = time.monotonic() + 90
    while not (dataset(root) / "dataset_info.json").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no episode in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schedule]:
    """Five episodes of three tasks, by two workers."""
    root = tmp_path_factory.mktemp("finished")
    return root, collect(root, num_workers=2)[0]


def test_episodes_are_spread_evenly_and_readable(finished):
    root, _ = finished
    attempts = [Attempt.parse(name) for name in names(root)]
    assert [sum(attempt.task_id == task for attempt in attempts) for task in (0, 1, 2)] == [2, 2, 1]
    episode = RLDSDataset(dataset(root)).episode(0)
    assert episode["reward"][-1] == 1 and episode["language_instruction"][0].startswith("move the point")
    assert (dataset(root) / "dataset_statistics.json").is_file()


def test_failures_and_displaced_placements_are_counted_and_dropped(finished):
    root, schedule = finished
    stored = {Attempt.parse(name).placement_seed for name in names(root)}
    tried = {int(path.name.split("-")[3]) for path in (root / "marks").iterdir()}
    assert stored < tried and all(seed % 5 > 1 for seed in stored)
    lost = [seed % 5 for seed in tried - stored]
    total = sum(schedule.outcomes.values(), start=type(schedule.outcomes[0])())
    assert dict(total) == {"success": 5} | {
        name: lost.count(rest) for rest, name in enumerate(("failure", "displaced")) if rest in lost
    }


def test_a_placement_of_the_evaluation_is_counted_and_another_taken(finished, tmp_path: Path):
    lost = min(Attempt.parse(name).placement_seed % 5 for name in names(finished[0]))
    schedule, output = collect(tmp_path, reserved=lost)
    kept = {Attempt.parse(name).placement_seed % 5 for name in names(tmp_path)}
    assert len(names(tmp_path)) == 5 and lost not in kept
    assert sum(outcomes["reserved"] for outcomes in schedule.outcomes.values()) > 0
    assert ": reserved (0 steps)" in output and "died" not in output


@pytest.mark.slow
def test_dead_worker_is_reported_and_one_worker_gives_the_same_episodes(finished, tmp_path: Path):
    _, output = collect(tmp_path, num_workers=1, deadly="1 once")
    assert "a worker died (signal SIGKILL) in libero_spatial/task_01" in output
    assert names(tmp_path) == names(finished[0])


@pytest.mark.slow
def test_kill_9_takes_the_workers_along_and_resuming_gives_the_same_episodes(finished, tmp_path: Path):
    process = start(tmp_path, "num_episodes=5")
    wait_for_episode(tmp_path, process)
    workers = {int(path.name.split("-")[-1]) for path in (tmp_path / "marks").iterdir()}
    process.kill()
    process.communicate()
    kept = names(tmp_path)
    assert 1 <= len(kept) < 5
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    collect(tmp_path)
    assert names(tmp_path) == names(finished[0])
    assert set(kept) < set(names(tmp_path))


@pytest.mark.slow
def test_attempt_that_kills_its_workers_ends_the_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "MAX_DEATHS", 1)
    with pytest.raises(CollectionError, match="task_00/seed_0/placement_000000 cannot be collected: signal SIGKILL"):
        collect(tmp_path, deadly="0")


@pytest.mark.slow
def test_a_simulator_that_stops_answering_is_replaced_and_its_episode_repeated(tmp_path: Path):
    schedule, printed = collect(tmp_path, num_episodes=2, patience_s=4.0, silent=True)
    assert "a worker died (no answer for 4 s) in libero_spatial/task_00/seed_0/placement_000000; starting" in printed
    assert len(RLDSDataset(dataset(tmp_path))) == 2 and schedule.num_missing == 0


def test_task_that_cannot_be_set_up_is_one_error(tmp_path: Path):
    with pytest.raises(CollectionError, match="cannot be collected: ValueError: task 0 has another goal"):
        collect(tmp_path, broken=0)


def test_failures_are_kept_where_they_are_wanted(tmp_path: Path):
    console = Console(file=StringIO(), width=200)
    (tmp_path / "marks").mkdir()
    with RLDSWriter(dataset(tmp_path), NAME) as writer:
        schedule = Schedule(**PLAN | {"num_episodes": 12}, counted=("success", "failure"))
        collect_demos.collect_into(writer, schedule, recipe(tmp_path / "marks"), console, num_workers=1)
        outcomes = sum(schedule.outcomes.values(), start=Counter())
        assert outcomes["failure"] > 0 and outcomes["success"] + outcomes["failure"] == len(writer) == 12


def test_trial_counts_attempts_and_writes_nothing(tmp_path: Path):
    schedule = Schedule(**PLAN, counted=("success", "failure"))
    console = Console(file=StringIO(), width=200)
    collect_demos.measure(schedule, recipe(tmp_path), console, num_workers=1)
    outcomes = sum(schedule.outcomes.values(), start=type(schedule.outcomes[0])())
    assert outcomes["success"] + outcomes["failure"] == 5
    console.print(collect_demos.summary(schedule, 1.0))
    total = next(line for line in console.file.getvalue().splitlines() if line.strip().startswith("all")).split()
    assert total[1:3] == [str(outcomes["success"]), "5"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks=[0,10]", r"tasks is \[0, 10\]; expected different task ids out of 0..9"),
        ("tasks=[1,1]", "expected different task ids"),
        ("num_episodes=0", "num_episodes=0"),
        ("data=libero_object", r"is for episodes of \['libero_object'\], env.suite is libero_spatial"),
        ("env.variant=swap", "env.variant is swap: perturbed suites are for evaluation"),
    ],
)
def test_wrong_request_is_one_error(override: str, message: str):
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("collect", [override])
    with pytest.raises(ValueError, match=message):
        collect_demos.plan_of(cfg)


def test_data_set_follows_the_environment():
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("collect", ["env=libero_object"])
    assert (cfg.data.name, collect_demos.plan_of(cfg)["suite"]) == ("libero_object_no_noops", "libero_object")


def test_a_data_set_of_several_suites_takes_each_of_them():
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for suite in ("libero_spatial", "libero_object", "libero_goal"):
            cfg = hydra.compose("collect", [f"env={suite}", "data=libero_suites"])
            assert collect_demos.plan_of(cfg)["suite"] == suite


class Full:
    """os.pwrite of a disk that takes `whole` records and half of the next."""

    def __init__(self, whole: int) -> None:
        self.calls, self.whole, self.pwrite = 0, whole, os.pwrite

    def __call__(self, file: int, data: bytes, offset: int) -> int:
        self.calls += 1
        if self.calls <= self.whole:
            return self.pwrite(file, data, offset)
        self.pwrite(file, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_one_error_and_the_same_command_goes_on(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch, pytest.raises(CollectionError) as caught:
        patch.setattr(os, "pwrite", Full(whole=2))
        collect(tmp_path)
    assert "No space left on device; the 2 episodes before it are kept" in str(caught.value)
    kept = names(tmp_path)
    assert len(kept) == 2
    collect(tmp_path)
    assert names(tmp_path) == names(finished[0]) and set(kept) < set(names(tmp_path))


def test_of_a_folder_that_is_removed_meanwhile_nothing_is_said_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pwrite = os.pwrite

    def last(file: int, data: bytes, offset: int) -> int:
        written = pwrite(file, data, offset)
        shutil.rmtree(dataset(tmp_path))
        return written

    monkeypatch.setattr(os, "pwrite", last)
    with pytest.raises(CollectionError, match=r"the folder was removed with its \d+ episodes; repeat the command"):
        collect(tmp_path)


def test_larger_number_appends(tmp_path: Path):
    collect(tmp_path, num_episodes=1)
    before = RLDSDataset(dataset(tmp_path)).file_paths()
    schedule, _ = collect(tmp_path, num_episodes=1)
    assert schedule.num_stored == 1 and not any(schedule.outcomes.values())
    collect(tmp_path, num_episodes=2)
    after = RLDSDataset(dataset(tmp_path)).file_paths()
    assert after[:1] == before and len(set(after)) == 2


def test_too_little_room_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = SimpleNamespace(free=10**8)
    monkeypatch.setattr(collect_demos.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CollectionError, match=r"about 200.0 MB to write and 67.1 MB in reserve, 100.0 MB free"):
        collect_demos.check_space(tmp_path, 0, 50, lambda _: None)


def test_share_out():
    assert share_out(7, {0: 0, 1: 0, 2: 0}) == {0: 3, 1: 2, 2: 2}
    assert share_out(7, {0: 3, 1: 1, 2: 0}) == {0: 0, 1: 1, 2: 2}
    assert share_out(3, {0: 5, 1: 0}) == {0: 0, 1: 0}


@pytest.mark.parametrize("num_episodes", range(0, 30))
def test_shares_are_those_of_one_by_one_to_whoever_has_the_fewest(num_episodes):
    stored = {4: 2, 0: 5, 7: 0, 2: 2}
    counts = dict(stored)
    for _ in range(num_episodes - sum(stored.values())):
        counts[min(counts, key=lambda task: (counts[task], task))] += 1
    assert share_out(num_episodes, stored) == {task: counts[task] - stored[task] for task in stored}


def test_a_number_that_cannot_be_made_is_shared_out_at_once():
    """And check_space then says that it does not fit."""
    assert share_out(10**9, {0: 0, 1: 1}) == {0: 500_000_000, 1: 499_999_999}


def test_names_come_back_as_attempts():
    attempt = Attempt("libero_spatial", 3, 0, 17)
    assert attempt.name == "libero_spatial/task_03/seed_0/placement_000017"
    assert Attempt.parse(attempt.name) == attempt
    assert Attempt.parse("/data/pick_up_the_bowl_demo.hdf5") is None


def test_attempts_have_different_seeds():
    grid = [(task, seed, number) for task in range(10) for seed in (0, 1) for number in range(99)]
    assert len({Attempt("s", *entry).placement_seed for entry in grid}) == len(grid)


def schedule(**arguments) -> Schedule:
    return Schedule(**({"suite": "s", "tasks": [0, 1], "num_episodes": 4, "seed": 0} | arguments))


def test_no_more_attempts_run_than_episodes_are_missing():
    plan = schedule(tasks=[0], num_episodes=2)
    first, second = plan.next_attempt(), plan.next_attempt()
    assert (first.placement, second.placement, plan.next_attempt()) == (0, 1, None)
    plan.record(first, "failure", 9)
    assert plan.next_attempt().placement == 2
    plan.record(second, "success", 9)
    assert plan.next_attempt() is None and plan.num_missing == 1


def test_workers_stay_with_their_task_while_it_needs_them():
    plan = schedule()
    assert [plan.next_attempt(task).task_id for task in (None, None, 1, 0)] == [0, 1, 1, 0]
    assert plan.next_attempt(0) is None


def test_resumed_schedule_fills_the_holes():
    stored = [Attempt("s", 0, 0, number).name for number in (0, 2)] + [Attempt("other", 0, 0, 1).name, "elsewhere"]
    plan = schedule(tasks=[0], num_episodes=4, stored=stored)
    assert plan.num_stored == 2
    assert [plan.next_attempt().placement for _ in range(2)] == [1, 3]


def test_hopeless_task_ends_the_collection():
    plan = schedule(tasks=[0], num_episodes=1)
    with pytest.raises(CollectionError, match="task 0: 30 placements in a row"):
        for _ in range(31):
            plan.record(plan.next_attempt(), "failure", 220)


def composed_recipe(*overrides: str) -> dict:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return collect_demos.recipe_of(hydra.compose("collect", list(overrides)))


def test_episodes_of_one_name_are_made_in_one_way(tmp_path):
    keep, name = partial(collect_demos.keep_recipe, tmp_path), "libero_spatial/seed_0"
    keep(name, composed_recipe())
    keep(name, composed_recipe("num_workers=7", "num_episodes=3", f"paths.root={tmp_path}"))
    with pytest.raises(CollectionError) as refused:
        keep(name, composed_recipe("recipe.noise_scales=[0.5]", "protocol.num_wait_steps=3"))
    message = str(refused.value)
    assert "settings.noise_scales: [0.0, 0.15, 0.3] → [0.5]" in message and "num_wait_steps: 10 → 3" in message
    assert message.endswith("or collect under another seed=")
    keep("libero_spatial/seed_1", composed_recipe("recipe.noise_scales=[0.5]"))
    keep(name, composed_recipe())


@pytest.mark.parametrize("demonstrator", ["policy", "corrections"])
def test_a_policy_that_was_made_anew_does_not_go_on_collecting(tmp_path, demonstrator):
    """By content: the same one may lie elsewhere."""
    for folder, value in (("base", 0.0), ("copy", 0.0), ("other", 1.0)):
        weights = {"w": torch.full((2,), value)}
        save_checkpoint(tmp_path / folder, kind="base", config={}, weights=weights, provenance={})
    typed = {name: f"model.backbone.checkpoint={tmp_path / name}" for name in ("base", "copy", "other")}
    made = {name: composed_recipe(f"demonstrator={demonstrator}", one) for name, one in typed.items()}
    keep = partial(collect_demos.keep_recipe, tmp_path, "libero_spatial/seed_0")
    keep(made["base"])
    keep(made["copy"])
    part = "make_expert" if demonstrator == "policy" else "make_lead"
    with pytest.raises(CollectionError, match=f"{part}: {made['base'][part]} → {made['other'][part]}"):
        keep(made["other"])
    keep_released = composed_recipe(f"demonstrator={demonstrator}", f"policy={ROOT / 'released'}")
    assert len(keep_released[part]) == 64


@pytest.mark.parametrize("actor", ["make_expert", "make_lead"])
def test_a_policy_that_does_not_know_the_tasks_words_is_refused_before_the_first_episode(actor):
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        demonstrator = "policy" if actor == "make_expert" else "corrections"
        cfg = hydra.compose("collect", [f"demonstrator={demonstrator}", f"policy={ROOT / 'released'}"])
    made = instantiate(cfg.recipe, _convert_="all")
    known = "pick up the black bowl on the stove and place it on the plate"
    said = {0: known, 3: "fly to the moon"}
    tasks = [SimpleNamespace(task_id=number, instruction=instruction) for number, instruction in said.items()]
    collect_demos.check_acting(made, lambda: tasks[:1])
    with pytest.raises(InstructionError, match=r"words \['fly', 'moon'\].*task 3"):
        collect_demos.check_acting(made, lambda: tasks)
    with pytest.raises(SettingError, match="a policy needs pictures, and dry_run=true renders none"):
        collect_demos.check_acting(replace(made, render=False), lambda: tasks[:1])
