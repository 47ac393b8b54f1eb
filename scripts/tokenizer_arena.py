"""Action tokenizers beside each other on real chunks, and replayed: python scripts/tokenizer_arena.py --data DIR

Each contestant is fitted on half of a suite's demonstrations and measured on the others: error per prefix depth in
millimetres and degrees, tokens, bits, entropy, certified bounds, throughput; then the held-out demonstrations are
executed in the simulator as each one says them. Ends with one table (report.csv, .json, .md), one page (arena.html) and
plots of error against bits. What is measured is on disk at once; the same command goes on.

    python scripts/tokenizer_arena.py --suites libero_spatial libero_object libero_goal
    python scripts/tokenizer_arena.py --contestants dct_d3 bins256 fast --replays 0    # without the simulator

What surprises first: every second demonstration of each task is held out, and statistics are of the others alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # throughput is of one core

from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from rich.console import Console  # noqa: E402

from rsd.arena import ArenaError  # noqa: E402
from rsd.comparison.arms import summarize_arms  # noqa: E402
from rsd.data.libero_records import FILE_PATH  # noqa: E402
from rsd.data.trajectories import chunk_actions, compute_statistics  # noqa: E402
from rsd.demos.rerun import RAW, Rerun, RerunResult, rerun  # noqa: E402
from rsd.demos.starts import Start, find_starts  # noqa: E402
from rsd.differences import differences, told  # noqa: E402
from rsd.evaluation.results import append_result  # noqa: E402
from rsd.files import write_atomically  # noqa: E402
from rsd.options import Options, any_path, held, new_folder, reported  # noqa: E402
from rsd.record import read_json, write  # noqa: E402
from rsd.settings import ChunkLength, Count, Natural, Processes, Seed  # noqa: E402
from rsd.space import GRIPPERS, LIBERO_GRIPPER, Space, with_bounds  # noqa: E402
from scripts.replay_demos import RECIPES_FILE, VIEW, read_results  # noqa: E402

if TYPE_CHECKING:  # needs torch, which --help does not wait for
    from omegaconf import DictConfig
    from torch import Tensor

    from rsd.arena.contract import Contestant
    from rsd.data.datasets import Demonstrations

CONF = ROOT / "conf"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
CONFIGURED = tuple(sorted(path.stem for path in (CONF / "quantizer").glob("[!_]*.yaml")))
OTHERS = ("fast", "bspline", "rvq")
FAMILIES = {"rfsq": "learned RFSQ", "dct": "transform RFSQ", "bins256": "OpenVLA's 256 bins"}
NORMALISED = "normalised"
BATCH = 256  # chunks that are timed together
NUM_STILL = 10  # steps without motion behind the last action
PACKAGES = ("torch", "tokenizers", "vector-quantize-pytorch")


@dataclass
class Suite:
    """A suite's demonstrations, split.

    Attributes:
        space: By the statistics of the fitted half.
        fit, held: Chunks [N, T, 7] in model space, float32.
        fit_episodes, held_episodes: Numbers in the data set.
    """

    name: str
    cfg: DictConfig
    demonstrations: Demonstrations
    space: Space
    fit: Tensor
    held: Tensor
    fit_episodes: list[int]
    held_episodes: list[int]


def halves(tasks: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Episodes to fit on, and held-out ones: of each task in turn, by what tells the tasks of all episodes apart.

    Where no task has two demonstrations, of all episodes in turn.
    """
    seen: dict[Any, int] = {}
    sides: tuple[list[int], list[int]] = ([], [])
    for episode, task in enumerate(tasks):
        sides[seen.setdefault(task, 0) % 2].append(episode)
        seen[task] += 1
    return sides if sides[1] else halves([None] * len(tasks)) if len(tasks) > 1 else sides


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def read_suite(name: str, asked: argparse.Namespace) -> Suite:
    """Read a suite's data set and split it.

    Raises:
        ArenaError: there is none, or too little of it.
    """
    import torch

    cfg = composed("replay_demos", [f"env={name}", f"data.root={asked.data}", f"paths.root={asked.out / 'work'}"])
    directory = Path(cfg.reader.dataset_dir)
    if not directory.is_dir():
        raise ArenaError(
            f"{name} has no data set in {directory}; python scripts/collect_demos.py env={name} num_episodes=20 "
            f'"recipe.noise_scales=[0.0]" data.root={asked.data} makes one'
        )
    demonstrations = instantiate(cfg.reader)()
    episodes = [one.actions for one in demonstrations.trajectories]
    short = [number for number, actions in enumerate(episodes) if len(actions) < asked.chunk]
    tasks = [one.instructions[:1] for one in demonstrations.trajectories]
    fit, held_out = halves(tasks)
    if short or not held_out:
        raise ArenaError(
            f"{directory} has {len(episodes)} demonstrations, of which {len(held_out)} would be held out and "
            f"{len(short)} are shorter than a chunk of {asked.chunk}; collect two or more"
        )
    none = [np.empty((len(episodes[number]), 0), dtype=np.float32) for number in fit]
    statistics = compute_statistics([episodes[number] for number in fit], none)
    space = Space.from_statistics(demonstrations.name, with_bounds(statistics, cfg.data.bounds))

    def chunks(numbers: Sequence[int]) -> Tensor:
        windows = np.concatenate([chunk_actions(episodes[number], asked.chunk) for number in numbers])
        return torch.from_numpy(space.to_model(windows))

    return Suite(name, cfg, demonstrations, space, chunks(fit), chunks(held_out), fit, held_out)


def contestant_of(name: str, space: Space, chunk: int, seed: int) -> Contestant:
    """A fresh one.

    Raises:
        ArenaError: the package that it needs is not installed.
    """
    import torch

    from rsd.arena.blocks import Blocks
    from rsd.tokenizer.loading import for_space

    if name in CONFIGURED:
        quantizer = composed("train", ["phase=rfsq", f"quantizer={name}", f"chunk={chunk}"]).quantizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = for_space(instantiate(quantizer.tokenizer), space)
        idea = FAMILIES.get(name.partition("_")[0], type(tokenizer).__name__)
        return Blocks(name, f"{idea}, {quantizer.num_stages} stages", tokenizer, quantizer.max_steps)
    if name == "fast":
        try:
            from rsd.arena.byte_pairs import BytePairs
        except ModuleNotFoundError as error:
            raise ArenaError(f"{error}; pip install tokenizers") from error
        return BytePairs(chunk, len(space.action))
    if name == "bspline":
        from rsd.arena.splines import Splines

        return Splines(chunk, len(space.action), space.action.grippers)
    from rsd.arena.residual_vq import ResidualVQ

    return ResidualVQ(chunk, len(space.action), seed)


def said_by(contestant: Contestant, suite: Suite, chunk: int) -> dict[str, np.ndarray]:
    """Every held-out episode as each depth says it: "<episode>" → [Q, n, 7], standard."""
    import torch

    from rsd.tokenizer.round_trip import in_chunks, joined

    said = {}
    for episode in suite.held_episodes:
        actions = suite.demonstrations.trajectories[episode].actions
        blocks, starts = in_chunks(suite.space.to_model(actions), chunk)
        with torch.inference_mode():
            code = contestant.encode(torch.from_numpy(blocks))
            depths = [contestant.decode(code, depth + 1).numpy() for depth in range(contestant.num_stages)]
        said[str(episode)] = np.stack(
            [suite.space.action.unnormalize(joined(one, starts, len(actions))) for one in depths]
        )
    return said


def measured(name: str, suite: Suite, asked: argparse.Namespace) -> dict[str, Any]:
    """Fit one contestant and measure it; what it says and the record are on disk when this returns."""
    from rsd.arena.measure import measure
    from rsd.arena.timing import throughput

    contestant = contestant_of(name, suite.space, asked.chunk, asked.seed)
    steps = contestant.fit(suite.fit, seed=asked.seed, max_steps=asked.steps)
    depths = measure(contestant, suite.held, suite.space)
    batch = suite.held[: min(BATCH, len(suite.held))]
    load = os.getloadavg()[0]
    record = {
        "idea": contestant.idea,
        "steps": steps,
        "depths": depths,
        "throughput": throughput(contestant, batch, asked.rounds) | {"load_before": load, "load": os.getloadavg()[0]},
    }
    folder = asked.out / suite.name
    partial = folder / f".{name}.npz"
    np.savez_compressed(partial, **said_by(contestant, suite, asked.chunk))  # type: ignore[arg-type]
    partial.replace(folder / f"{name}.npz")
    write(folder / f"{name}.json", record)
    return record


def normalised_of(suite: Suite) -> dict[str, float]:
    """What normalising alone cuts off of the held-out actions."""
    from rsd.arena.measure import distances

    actions = np.concatenate([suite.demonstrations.trajectories[number].actions for number in suite.held_episodes])
    back = suite.space.action.unnormalize(suite.space.to_model(actions))
    millimetres, degrees = distances(back, actions)
    ends = {"mean_mm": millimetres.mean(), "max_mm": millimetres.max(), "mean_deg": degrees.mean()}
    return {name: float(value) for name, value in (ends | {"max_deg": degrees.max()}).items()}


def commands_of(
    suite: Suite, episode: int, contestants: Mapping[str, dict[str, Any]], folder: Path, depths: str
) -> dict[str, np.ndarray]:
    """Name of each arm → robot commands [n, 7]; the controls first."""
    from rsd.arena.report import arm_of

    actions = suite.demonstrations.trajectories[episode].actions
    arms = {RAW: actions, NORMALISED: suite.space.action.unnormalize(suite.space.to_model(actions))}
    for name in contestants:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            said = file[str(episode)]
        for depth in range(1, len(said) + 1):
            if depth == len(said) or depths == "all" or (depths == "ends" and depth == 1):
                arms[arm_of(name, depth, len(said))] = said[depth - 1]
    simulated: Callable[[np.ndarray], np.ndarray] = GRIPPERS[LIBERO_GRIPPER]
    return {name: simulated(np.array(standard, dtype=np.float64)) for name, standard in arms.items()}


def starts_of(suite: Suite) -> list[Start]:
    """Where held-out episodes begin, the tasks in turn."""
    rlds = suite.demonstrations.rlds
    starts, _ = find_starts(
        rlds.file_paths() if FILE_PATH in rlds.features else [],
        suite=suite.name,
        recipes=read_json(rlds.directory / RECIPES_FILE) or {},
        task_files={},
        hdf5=None,
        where=str(rlds.directory),
    )
    return [one for one in starts if one.episode in set(suite.held_episodes)]


def replay(
    suite: Suite, contestants: Mapping[str, dict[str, Any]], asked: argparse.Namespace, console: Console
) -> list[RerunResult]:
    """Execute what is missing of the held-out demonstrations; every episode is on disk before the next one."""
    from rsd.demos.starts import evenly

    folder = asked.out / suite.name
    file = folder / "replays.jsonl"
    results = read_results(file)
    have = {(one.episode, arm) for one in results for arm in one.arms}
    jobs, starts = [], {one.episode: one for one in evenly(starts_of(suite), asked.replays)}
    for start in starts.values():
        arms = commands_of(suite, start.episode, contestants, folder, asked.replay_depths)
        missing = {name: commands for name, commands in arms.items() if (start.episode, name) not in have}
        if missing:
            picture = suite.demonstrations.picture(start.episode, 0, VIEW)
            jobs.append(Rerun(start.episode, start.task_id, start.placement_seed, None, VIEW, picture, missing))
    if jobs:
        lines = rerun(
            jobs,
            instantiate(suite.cfg.env.make),
            num_still=NUM_STILL,
            num_workers=asked.workers,
            report=console.print,
            patience_s=asked.patience,
        )
        with closing(lines):
            for number, (job, off, arms_done) in enumerate(lines, start=1):
                result = RerunResult(job.episode, job.task_id, suite.name, "", None, round(off, 3), arms_done)
                append_result(file, result)
                results.append(result)
                failed = [name for name, arm in arms_done.items() if not arm.success]
                console.print(
                    f"{suite.name}: {number} of {len(jobs)} episodes; episode {job.episode}, {len(arms_done)} arms"
                    + (f", not {', '.join(failed)}" if failed else ""),
                    markup=False,
                )
    return [one for one in results if one.episode in starts]


def summary_of(results: Sequence[RerunResult]) -> list[dict[str, Any]]:
    """Arms over all replayed episodes."""
    by_episode: dict[int, dict[str, bool]] = {}
    for one in results:
        by_episode.setdefault(one.episode, {}).update({name: arm.success for name, arm in one.arms.items()})
    return summarize_arms([*by_episode.values()], RAW)


def keep_plan(asked: argparse.Namespace, suites: Sequence[Suite]) -> dict[str, Any]:
    """What the folder was measured with, written at the first start; all others are held to it.

    Raises:
        ArenaError: what lies there was measured otherwise.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    plan = {key: getattr(asked, key) for key in ("chunk", "seed", "rounds")} | {"steps": asked.steps}
    stored = read_json(asked.out / "plan.json")
    known: dict[str, Any] = {} if stored is None else {key: value for key, value in stored.items() if key != "checksum"}
    data = known.get("data", {}) | {suite.name: suite.demonstrations.content_id() for suite in suites}
    plan |= {"versions": versions, "data": data}
    if known and (different := differences(known | {"data": {**data, **known["data"]}}, plan)):
        raise ArenaError(f"{asked.out} holds what was measured otherwise: {told(different)}; choose another --out")
    write(asked.out / "plan.json", plan)
    return plan


def write_report(asked: argparse.Namespace, report: dict[str, Any]) -> None:
    """The table, the page and the plots, of what is there."""
    from rsd.arena.report import as_csv, as_markdown, page, plot, rows_of

    rows = rows_of(report)
    write(asked.out / "report.json", report)
    write_atomically(asked.out / "report.csv", as_csv(rows))
    write_atomically(asked.out / "report.md", as_markdown(report))
    write_atomically(asked.out / "arena.html", page(report))
    for name in report["suites"]:
        write_atomically(asked.out / f"{name}.svg", plot(rows, name))


def run(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns report.json."""
    import torch

    torch.set_num_threads(1)
    suites = [read_suite(name, asked) for name in asked.suites]
    report: dict[str, Any] = {"plan": keep_plan(asked, suites), "left_out": {}, "suites": {}}
    for suite in suites:
        (asked.out / suite.name).mkdir(parents=True, exist_ok=True)
        part: dict[str, Any] = {
            "num_fit_episodes": len(suite.fit_episodes),
            "num_held_episodes": len(suite.held_episodes),
            "num_fit_chunks": len(suite.fit),
            "num_held_chunks": len(suite.held),
            "normalised": normalised_of(suite),
            "contestants": {},
            "replays": summary_of(read_results(asked.out / suite.name / "replays.jsonl")),
        }
        report["suites"][suite.name] = part
        for name in asked.contestants:
            record = read_json(asked.out / suite.name / f"{name}.json")
            if record is None:
                try:
                    record = measured(name, suite, asked)
                except ArenaError as error:
                    if name not in report["left_out"]:
                        console.print(f"{name} is left out: {error}", markup=False, soft_wrap=True)
                    report["left_out"][name] = str(error)
                    continue
                last = record["depths"][-1]
                console.print(
                    f"{suite.name} {name}: {last['total_bits']:.0f} bits, {last['mean_mm']:.3g} mm on average"
                )
            part["contestants"][name] = {key: value for key, value in record.items() if key != "checksum"}
            write_report(asked, report)
    for suite in suites if asked.replays else ():
        part = report["suites"][suite.name]
        part["replays"] = summary_of(replay(suite, part["contestants"], asked, console))
        write_report(asked, report)
    return report


@reported
def main() -> None:
    """Command line."""
    every = (*CONFIGURED, *OTHERS)
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=any_path, default=Path("outputs/data"), metavar="DIR", help="data sets of suites"
    )
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=[*SUITES[:3]], metavar="SUITE")
    parser.add_argument(
        "--contestants", nargs="+", choices=every, default=[*every], metavar="NAME", help=f"of {', '.join(every)}"
    )
    parser.add_argument("--chunk", type=held(ChunkLength), default=8, help="steps of a chunk (8)")
    parser.add_argument("--seed", type=held(Seed), default=0, help="of weights and batches (0)")
    parser.add_argument("--steps", type=held(Count), help="optimizer steps of those that are trained (their own: 5000)")
    parser.add_argument("--rounds", type=held(Count), default=50, help="timed calls of each arm (50)")
    parser.add_argument("--replays", type=held(Natural), default=20, help="demonstrations a suite to execute (20)")
    parser.add_argument("--replay-depths", choices=("full", "ends", "all"), default="ends", help="(ends: 1 and all)")
    parser.add_argument("--workers", type=held(Processes), default=2, help="simulators (2)")
    parser.add_argument(
        "--patience", type=held(Count), default=300, help="seconds that a simulator may be silent (300)"
    )
    parser.add_argument("--out", type=new_folder, default=Path("outputs/tokenizer_arena"), help="results")
    asked = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.replays:
        from rsd.envs.gl import check_simulator

        check_simulator()
    run(asked, console)
    console.print(f"{asked.out / 'report.md'}, report.csv, report.json, arena.html", markup=False)


if __name__ == "__main__":
    main()
