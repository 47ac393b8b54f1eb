"""Scripted expert → an RLDS data set: python scripts/collect_demos.py env=libero_spatial num_episodes=50

The same command again completes an interrupted collection, and a larger num_episodes extends a finished one. Placements
are random; the evaluation init states are never used. Failures of the expert are counted and dropped; with
demonstrator=policy all episodes are kept. With demonstrator=corrections a policy acts first, unrecorded.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.commands.requirements import require_simulator
from rsd.data.rlds import RLDSWriter
from rsd.demos.collection import Recipe, collect
from rsd.demos.demonstrations import Demonstration
from rsd.demos.schedule import Attempt, CollectionError, Schedule
from rsd.differences import differences
from rsd.errors import SettingError
from rsd.progress import Progress
from rsd.record import read_json, write
from rsd.silence import PATIENCE_S, check_patience
from rsd.types import Task

CONFIG = Path(__file__).parents[1] / "conf" / "collect.yaml"
RECIPES_FILE = "collection.json"  # in the data set: suite and seed → how these episodes are made
EPISODE_BYTES = 4_000_000  # forecast for an empty data set: 100 steps, two JPEG pictures of 18 kB each and some numbers
RESERVE_BYTES = 64 * 2**20  # left free beside the forecast
UNTRIED = ("displaced", "reserved", "skipped")  # outcomes of placements that were not tried


def as_rlds(attempt: Attempt, demonstration: Demonstration) -> dict[str, Any]:
    """The episode as RLDSWriter takes it."""
    observation = {
        "image": demonstration.images["image"],
        "wrist_image": demonstration.images["wrist_image"],
        "state": demonstration.states,
        "joint_state": demonstration.joint_states,
    }
    return {
        "steps": {
            "observation": observation,
            "action": demonstration.actions,
            "language_instruction": demonstration.instruction,
        },
        "episode_metadata": {"file_path": attempt.name},
    }


def check_space(directory: Path, num_stored: int, num_missing: int, report: Callable[[str], None]) -> None:
    """Say how large the data set will be, and refuse to start when the rest of it does not fit.

    Raises:
        CollectionError: too little room; the message names both numbers.
    """
    stored_bytes = sum(path.stat().st_size for path in directory.iterdir())
    each = stored_bytes / num_stored if num_stored else EPISODE_BYTES
    needed, free = num_missing * each, shutil.disk_usage(directory).free
    report(
        f"{directory}: {num_stored} episodes there ({stored_bytes / 1e6:.1f} MB), {num_missing} to collect "
        f"(about {needed / 1e6:.1f} MB), {free / 1e6:.0f} MB free"
    )
    if needed + RESERVE_BYTES > free:
        raise CollectionError(
            f"the demonstrations do not fit: about {needed / 1e6:.1f} MB to write and {RESERVE_BYTES / 1e6:.1f} MB in "
            f"reserve, {free / 1e6:.1f} MB free in {directory}; make room, lower num_episodes, or set paths.data"
        )


def in_words(attempt: Attempt, demonstration: Demonstration) -> str:
    """What came of an attempt, in a line of progress."""
    place = f"task {attempt.task_id} placement {attempt.placement}"
    return f"{place}: {demonstration.outcome} ({demonstration.num_steps} steps)"


def summary(schedule: Schedule, wall_s: float) -> Table:
    """Per task: successes out of tried placements, and steps. Of the others see `Demonstration.outcome`."""
    table = Table(box=None, pad_edge=False, title_justify="left", title=f"{schedule.suite}, {wall_s:.0f} s")
    for name in ("task", "successes", "tried", "rate", *UNTRIED, "mean steps", "max"):
        table.add_column(name, justify="right")
    for task, outcomes in schedule.outcomes.items():
        table.add_row(str(task), *row(outcomes, schedule.steps[task]))
    total = sum(schedule.outcomes.values(), start=type(next(iter(schedule.outcomes.values())))())
    table.add_row("all", *row(total, [count for steps in schedule.steps.values() for count in steps]), style="bold")
    return table


def row(outcomes: dict[str, int], steps: list[int]) -> list[str]:
    tried = outcomes["success"] + outcomes["failure"]
    rate = f"{100 * outcomes['success'] / tried:.1f} %" if tried else "–"
    lengths = [f"{sum(steps) / len(steps):.0f}", str(max(steps))] if steps else ["–", "–"]
    untried = [str(outcomes[name]) for name in UNTRIED]
    return [str(outcomes["success"]), str(tried), rate, *untried, *lengths]


def collect_into(writer: RLDSWriter, schedule: Schedule, recipe: Recipe, console: Console, **workers: Any) -> None:
    """Append the schedule's episodes to a data set, and finish it.

    Raises:
        CollectionError: the disk is full, the folder was removed, or the collection cannot go on. Everything appended
            before stays readable.
    """
    attempts, total = collect(schedule, recipe, report=console.print, **workers), schedule.num_missing
    with closing(attempts), Progress("episodes", total=total, console=console, interval_s=0) as progress:
        for attempt, demonstration in attempts:
            if demonstration.outcome in schedule.counted:
                try:
                    writer.write_episode(as_rlds(attempt, demonstration))
                except OSError as error:
                    kept = f"the {len(writer)} episodes before it are kept; make room, then repeat the command to go on"
                    gone = f"the folder was removed with its {len(writer)} episodes; repeat the command to begin anew"
                    raise CollectionError(
                        f"{attempt.name} could not be written to {writer.directory}: {error.strerror}; "
                        + (kept if writer.directory.is_dir() else gone)
                    ) from error
            progress.reach(total - schedule.num_missing, in_words(attempt, demonstration))
    writer.finish()


def measure(schedule: Schedule, recipe: Recipe, console: Console, **workers: Any) -> None:
    """Try the schedule's placements and keep nothing."""
    attempts, total = collect(schedule, recipe, report=console.print, **workers), schedule.num_missing
    with closing(attempts), Progress("episodes", total=total, console=console, interval_s=0) as progress:
        for attempt, demonstration in attempts:
            progress.reach(total - schedule.num_missing, in_words(attempt, demonstration))


def plan_of(cfg: DictConfig) -> dict[str, Any]:
    """What Schedule needs to know, checked.

    Raises:
        SettingError: numbers below 1, tasks that the suite does not have, data of another suite, or a perturbed suite.
    """
    if cfg.num_episodes < 1 or cfg.num_workers < 1:
        raise SettingError(
            f"num_episodes={cfg.num_episodes}, num_workers={cfg.num_workers}; expected at least 1 of each"
        )
    available = range(cfg.env.num_tasks)
    tasks = list(available) if cfg.tasks is None else list(cfg.tasks)
    if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= set(available):
        raise SettingError(f"tasks is {tasks}; expected different task ids out of 0..{cfg.env.num_tasks - 1}")
    held = list(cfg.data.get("suites", [cfg.data.suite]))
    if cfg.env.suite not in held:
        raise SettingError(f"{cfg.data.name} is for episodes of {held}, env.suite is {cfg.env.suite}; set data or env")
    if cfg.env.variant is not None:
        raise SettingError(f"env.variant is {cfg.env.variant}: perturbed suites are for evaluation; leave it out")
    return {"suite": cfg.env.suite, "tasks": tasks, "num_episodes": cfg.num_episodes, "seed": cfg.seed}


def check_delay(cfg: DictConfig) -> None:
    """See that somebody acts whose chunks can be late.

    Raises:
        SettingError: there is a delay, and no policy; or async is refused by name.
    """
    clock = instantiate(cfg["async"])
    if clock.delay and not any(OmegaConf.select(cfg.demonstrator, f"{who}.make_policy") for who in ("make", "lead")):
        raise SettingError(
            f"delay={clock.delay} is for a policy's chunks, and the scripted expert has none; set delay=0"
        )


def check_acting(recipe: Recipe, tasks: Callable[[], Sequence[Task]]) -> None:
    """See that a policy that acts understands these tasks, before workers start. It is loaded for that once more.

    Raises:
        InstructionError: it does not; the message names tasks and words.
        DelayError: nothing of its chunks would be left.
        SettingError: it would get no pictures.
    """
    from rsd.commands.configured import check_clock, check_tasks  # needs torch, which --help does not wait for

    for actor in (recipe.make_expert, recipe.make_lead):
        if isinstance(actor, partial) and "make_policy" in actor.keywords:
            if not recipe.render:
                raise SettingError("a policy needs pictures, and dry_run=true renders none; leave dry_run out")
            policy = actor.keywords["make_policy"]()
            check_clock(policy, actor.keywords["clock"])
            check_tasks(policy, tasks())


def recipe_of(cfg: DictConfig) -> dict[str, Any]:
    """What decides which episode an attempt becomes, by content: settings, and the base model of a policy that acts."""
    recipe = OmegaConf.to_container(cfg.recipe, resolve=True)
    acting = [name for name in ("make_expert", "make_lead") if OmegaConf.select(cfg.recipe, f"{name}.make_policy")]
    record: dict[str, Any] = {"settings": recipe}
    if not cfg.exchanged:  # placements are as they were before any could be exchanged
        del recipe["make_env"]["exchange"]  # type: ignore[union-attr, index, call-overload]
    for name in acting:
        del recipe[name]["make_policy"]  # type: ignore[union-attr, index, call-overload]  # a dict, as cfg.recipe is
        if not cfg.delay:  # it acts as it did before there was a clock
            del recipe[name]["clock"]  # type: ignore[union-attr, index, call-overload]
        record[name] = base_content(cfg)["digest"]
    return json.loads(json.dumps(record))


def base_content(cfg: DictConfig) -> dict[str, Any]:
    """The base model of the policy that acts; see `rsd.inputs.content_of`."""
    from rsd.decoding import L1
    from rsd.inputs import content_of
    from rsd.policy import describe_folder

    if cfg.policy is None:
        return content_of(Path(cfg.model.backbone.checkpoint))
    return content_of(describe_folder(Path(cfg.policy), {"decoding": L1()})["checkpoints"]["base"])


def keep_recipe(directory: Path, name: str, recipe: dict[str, Any]) -> None:
    """Write down how episodes of this name are made, with the first of them; hold all others of that name to it.

    Args:
        directory: The data set's.
        name: What the episodes have in common: suite and seed.
        recipe: See `recipe_of`.

    Raises:
        CollectionError: episodes of that name were made otherwise; every difference is named.
    """
    path = directory / RECIPES_FILE
    stored = read_json(path) or {}
    if different := differences(stored.get(name, recipe), recipe):
        places = "; ".join(map(str, different))
        raise CollectionError(
            f"{directory} holds episodes of {name} that were made otherwise: {places}. Put that back to go on, or "
            "collect under another seed="
        )
    write(path, stored | {name: recipe})


@hydra.main(version_base="1.3", config_path="../conf", config_name="collect")
@report_errors
def main(cfg: DictConfig) -> None:
    started, console = time.monotonic(), Console(highlight=False, soft_wrap=True)
    logging.getLogger("absl").setLevel(logging.WARNING)  # tensorflow-datasets tells what it loads
    require_simulator(cfg)
    plan = plan_of(cfg)
    check_delay(cfg)
    instantiate(cfg.check)
    recipe = instantiate(cfg.recipe, _convert_="all", render=not cfg.dry_run)
    check_acting(recipe, lambda: [task for task in instantiate(cfg.env.tasks) if task.task_id in plan["tasks"]])
    patience_s = check_patience(cfg.get("simulator_timeout_s", PATIENCE_S))
    workers = {"num_workers": cfg.num_workers, "render_devices": cfg.render_devices, "patience_s": patience_s}
    if cfg.dry_run:
        schedule = Schedule(**plan, counted=("success", "failure"))
        measure(schedule, recipe, console, **workers)
        console.print(summary(schedule, time.monotonic() - started))
        return
    directory = Path(cfg.data.root) / cfg.data.name / cfg.data.version
    try:
        with RLDSWriter(directory, cfg.data.name, cfg.data.version) as writer:
            schedule = Schedule(**plan, stored=writer.file_paths(), counted=tuple(cfg.demonstrator.keep))
            if schedule.num_missing:
                keep_recipe(directory, f"{schedule.suite}/seed_{schedule.seed}", recipe_of(cfg))
            check_space(directory, len(writer), schedule.num_missing, console.print)
            collect_into(writer, schedule, recipe, console, **workers)
            console.print(summary(schedule, time.monotonic() - started))
            console.print(f"{len(writer)} episodes: {directory}")
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished episodes are kept in {directory}: repeat the command to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run(main, CONFIG)
