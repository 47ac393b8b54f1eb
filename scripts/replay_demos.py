"""Demonstrations executed in the simulator again: python scripts/replay_demos.py env=libero_spatial num_episodes=50

The first sanity check of OpenVLA's guide. Each episode begins where it was recorded, and is done with the recorded
actions (raw), after normalising alone, and through encode → decode of each tokenizer, of each prefix of its stages.
What raw loses, the data set loses; what an arm loses against it on the same episodes, that arm does. Every episode is
on disk before the next one; the same command again completes an interrupted run, and a larger num_episodes extends it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.commands.requirements import require_simulator
from rsd.demos.rerun import MAX_START_OFF, RAW, Rerun, RerunError, RerunResult, rerun
from rsd.demos.starts import Start, evenly, find_starts
from rsd.differences import differences, told
from rsd.envs.suites import load_task, suite_name
from rsd.errors import SettingError
from rsd.evaluation.results import RESULTS_FILE, append_result
from rsd.progress import Progress
from rsd.record import EntryError, parse, read_json, write
from rsd.silence import PATIENCE_S, check_patience
from rsd.space import GRIPPERS, LIBERO_GRIPPER

if TYPE_CHECKING:  # needs torch, which --help does not wait for
    from rsd.data.datasets import Demonstrations
    from rsd.tokenizer.loading import LoadedTokenizer

CONFIG = Path(__file__).parents[1] / "conf" / "replay_demos.yaml"
RECIPES_FILE = "collection.json"  # of scripts/collect_demos.py
PLAN_FILE, REPORT_FILE = "plan.json", "report.json"
VIEW = "image"
NORMALISED = "normalised"


def names_of(folders: Sequence[str]) -> dict[str, Path]:
    """Short name → folder of each tokenizer.

    Raises:
        SettingError: two have the same name.
    """
    named = {Path(folder).name: Path(folder) for folder in folders}
    if len(named) < len(folders):
        raise SettingError(f"tokenizers is {list(folders)}; expected folders of different names: they name the arms")
    return named


def arms_of(
    actions: np.ndarray, tokenizers: Mapping[str, LoadedTokenizer], depths: Sequence[int] | None
) -> dict[str, np.ndarray]:
    """Name of each arm → robot commands [n, 7], of standard actions [n, 7]."""
    from rsd.tokenizer.round_trip import normalised, round_trip

    arms = {RAW: actions}
    spaces: dict[str, str] = {}  # digest → name of its arm
    for name, loaded in tokenizers.items():
        space = loaded.space
        if space is None:
            raise SettingError(f"tokenizer {name} holds no statistics; train one with python train.py phase=rfsq")
        if space.digest not in spaces:
            spaces[space.digest] = NORMALISED if not spaces else f"{NORMALISED} as {name}"
            arms[spaces[space.digest]] = normalised(actions, space)
        num_stages = loaded.tokenizer.code_shape.num_stages
        for depth in depths or range(1, num_stages + 1):
            if depth <= num_stages:
                arms[f"{name} {depth}/{num_stages}"] = round_trip(actions, loaded.tokenizer, space, depth)
    simulated = GRIPPERS[LIBERO_GRIPPER]  # however the data set records its gripper
    return {name: simulated(np.array(standard, dtype=np.float64)) for name, standard in arms.items()}


def read_results(path: Path) -> list[RerunResult]:
    """Episodes on disk; what a kill has left behind the last newline is cut off.

    Raises:
        RerunError: a line is damaged.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        logging.getLogger(__name__).warning("the last line of %s was torn; its episode is executed again", path)
        with open(path, "ab") as file:
            file.truncate(len(whole))
    results = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            results.append(parse(line, RerunResult, "it"))
        except EntryError as error:
            raise RerunError(f"{path}, line {number} is damaged: {error}; remove that line by hand") from error
    return results


def keep_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write plan.json at a first start; hold all others to it.

    Raises:
        RerunError: what lies there was executed otherwise.
    """
    stored = read_json(out / PLAN_FILE)
    plan = json.loads(json.dumps(plan))
    if stored is None:
        out.mkdir(parents=True, exist_ok=True)
        write(out / PLAN_FILE, plan)
    elif different := differences({key: value for key, value in stored.items() if key != "checksum"}, plan):
        raise RerunError(f"{out} holds episodes that were executed otherwise: {told(different)}; choose another out=")


def chosen(cfg: DictConfig, demonstrations: Demonstrations, console: Console) -> list[Start]:
    """The episodes to execute.

    Raises:
        RerunError: none can be.
    """
    suite = suite_name(cfg.env.suite, cfg.env.variant)
    task_ids = [] if cfg.hdf5 is None else range(cfg.env.num_tasks)
    names = {load_task(suite, task_id).bddl_file.stem: task_id for task_id in task_ids}
    directory = demonstrations.rlds.directory
    has_names = "episode_metadata/file_path" in demonstrations.rlds.features
    starts, notes = find_starts(
        demonstrations.rlds.file_paths() if has_names else [],
        suite=suite,
        recipes=read_json(directory / RECIPES_FILE) or {},
        task_files=names,
        hdf5=None if cfg.hdf5 is None else Path(cfg.hdf5),
        where=str(directory),
    )
    wanted = [start for start in starts if cfg.tasks is None or start.task_id in cfg.tasks]
    kept = [start for start in wanted if cfg.disturbed or not start.noise_scale]
    if len(kept) < len(wanted):
        notes.append(
            f"{len(wanted) - len(kept)} episodes were disturbed while they were collected: their labels lead "
            "elsewhere, and they are left out (disturbed=true takes them)"
        )
    if any(start.noise_scale is None for start in kept):
        notes.append(f"{directory / RECIPES_FILE} does not tell how episodes were made: some may have been disturbed")
    for note in notes:
        console.print(f"note: {note}", markup=False)
    if not kept:
        raise RerunError(f"no episode is left in tasks={cfg.tasks}, disturbed={cfg.disturbed}; allow more of them")
    return evenly(kept, cfg.num_episodes)


def jobs_of(
    starts: Sequence[Start],
    demonstrations: Demonstrations,
    tokenizers: Mapping[str, LoadedTokenizer],
    depths: Sequence[int] | None,
) -> list[Rerun]:
    """What goes to the workers."""
    return [
        Rerun(
            start.episode,
            start.task_id,
            start.placement_seed,
            start.state(),
            VIEW,
            demonstrations.picture(start.episode, 0, VIEW),
            arms_of(demonstrations.trajectories[start.episode].actions, tokenizers, depths),
        )
        for start in starts
    ]


def build_report(results: Sequence[RerunResult], plan: dict[str, Any]) -> dict[str, Any]:
    """report.json: arms over all tasks, by task, and episodes whose start was another one."""
    from rsd.comparison.arms import summarize_arms

    begun = [one for one in results if one.arms]
    by_task = {task: [one for one in begun if one.task_id == task] for task in sorted({one.task_id for one in begun})}

    def arms(own: Sequence[RerunResult]) -> list[dict[str, Any]]:
        return summarize_arms([{name: arm.success for name, arm in one.arms.items()} for one in own], RAW)

    return {
        "num_episodes": len(results),
        "num_other_starts": len(results) - len(begun),
        "arms": arms(begun),
        "tasks": [
            {"task_id": task, "instruction": own[0].instruction, "arms": arms(own)} for task, own in by_task.items()
        ],
        "other_starts": [{"file_path": one.file_path, "start_off": one.start_off} for one in results if not one.arms],
        "plan": plan,
    }


def table_of(report: dict[str, Any]) -> Table:
    """The arms, a row each."""
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for name in ("success", "rate", "95 %", "− raw", "95 %", "lost", "gained"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in report["arms"]:
        rate = f"{100 * arm['success_rate']:.1f} %"
        ends = f"{100 * arm['success_low']:.1f} – {100 * arm['success_high']:.1f}"
        row = [arm["arm"], f"{arm['num_success']}/{arm['num_episodes']}", rate, ends]
        if arm.get("num_pairs"):
            row += [
                f"{100 * arm['difference']:+.1f}",
                f"{100 * arm['difference_low']:+.1f} – {100 * arm['difference_high']:+.1f}",
                str(arm["lost"]),
                str(arm["gained"]),
            ]
        table.add_row(*row)
    return table


def in_words(result: RerunResult) -> str:
    """An episode in a line of progress."""
    place = f"task {result.task_id} episode {result.episode}"
    if not result.arms:
        return f"{place}: begins otherwise than recorded ({result.start_off:.0f} levels)"
    failed = [name for name, arm in result.arms.items() if not arm.success]
    return f"{place}: {len(result.arms) - len(failed)} of {len(result.arms)} arms{', not ' * bool(failed)}" + ", ".join(
        failed
    )


@hydra.main(version_base="1.3", config_path="../conf", config_name="replay_demos")
@report_errors
def main(cfg: DictConfig) -> None:
    from rsd.tokenizer.loading import load_tokenizer

    require_simulator(cfg)
    console, out = Console(highlight=False, soft_wrap=True), Path(cfg.out)
    logging.getLogger("absl").setLevel(logging.WARNING)
    instantiate(cfg.check)
    patience_s = check_patience(cfg.get("simulator_timeout_s", PATIENCE_S))
    tokenizers = {name: load_tokenizer(folder) for name, folder in names_of(cfg.tokenizers).items()}
    demonstrations = instantiate(cfg.reader)()
    if demonstrations.layout.stride > 1:
        raise SettingError(
            "the simulator takes every recorded action, and data.every or data.target_rate leaves some out; set them "
            "to null"
        )
    depths = None if cfg.depths is None else sorted(set(cfg.depths))
    starts = chosen(cfg, demonstrations, console)
    plan = {
        "data": demonstrations.content_id(),
        "suite": suite_name(cfg.env.suite, cfg.env.variant),
        "protocol": f"{cfg.protocol.name}-{cfg.protocol.version}",
        "tokenizers": {name: loaded.sha256 for name, loaded in tokenizers.items()},
        "depths": depths,
        "num_still": cfg.num_still,
    }
    keep_plan(out, plan)
    results = read_results(out / RESULTS_FILE)
    have = {one.episode for one in results}
    missing = {start.episode: start for start in starts if start.episode not in have}
    interrupted = False
    if missing:
        names = demonstrations.rlds.file_paths()
        lines = rerun(
            jobs_of([*missing.values()], demonstrations, tokenizers, depths),
            instantiate(cfg.env.make),
            num_still=cfg.num_still,
            num_workers=cfg.num_workers,
            report=console.print,
            render_devices=cfg.render_devices,
            patience_s=patience_s,
        )
        last = time.monotonic()
        try:
            with closing(lines), Progress("episodes", total=len(missing), console=console, interval_s=0) as progress:
                for number, (job, off, arms) in enumerate(lines, start=1):
                    said = demonstrations.trajectories[job.episode].instructions
                    now = time.monotonic()
                    result = RerunResult(
                        job.episode,
                        job.task_id,
                        names[job.episode],
                        said[0] if said else "",
                        missing[job.episode].noise_scale,
                        round(off, 3),
                        arms,
                        round(now - last, 3),
                    )
                    last = now
                    append_result(out / RESULTS_FILE, result)
                    results.append(result)
                    progress.reach(number, in_words(result))
        except KeyboardInterrupt:
            interrupted = True
    report = build_report(results, plan)
    write(out / REPORT_FILE, report)
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table_of(report))
    if report["num_other_starts"]:
        console.print(
            f"note: {report['num_other_starts']} episodes begin otherwise than recorded (first pictures are off by "
            f"more than {MAX_START_OFF:g} levels), and count for nothing: another simulator, other tasks or pictures",
            markup=False,
        )
    console.print(f"{len(results)} episodes: {out}", markup=False)
    if interrupted:
        print("\ninterrupted; finished episodes are kept: repeat the command to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run(main, CONFIG)
