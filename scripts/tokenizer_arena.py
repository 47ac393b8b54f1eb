"""Action tokenizers beside each other on real chunks, and replayed: python scripts/tokenizer_arena.py --data DIR

Each contestant is fitted on a part of a suite's demonstrations and measured on the others: error per prefix depth in
millimetres and degrees, tokens, bits, entropy, certified bounds, throughput; then the held-out demonstrations are
executed in the simulator as each one says them. Ends with one table (report.csv, .json, .md), one page (arena.html) and
plots of error against bits. What is measured is on disk at once; the same command goes on. A contestant that fails is
named in table and page, and the others go on.

    python scripts/tokenizer_arena.py --suites libero_spatial libero_object libero_goal
    python scripts/tokenizer_arena.py --workers 24 --render-devices 0 1 --replays 40
    python scripts/tokenizer_arena.py --contestants dct_d3 bins256 fast --replays 0    # without the simulator

What surprises first: held out is every second demonstration of a task that was collected without disturbance, because
only there the recorded actions are those that were executed; the disturbed ones are fitted on.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from rsd.arena import NOT_INSTALLED, ArenaError  # noqa: E402
from rsd.comparison.arms import summarize_arms  # noqa: E402
from rsd.data.libero_records import FILE_PATH  # noqa: E402
from rsd.data.trajectories import chunk_actions, compute_statistics  # noqa: E402
from rsd.demos.rerun import RAW, Rerun, RerunError, RerunResult, rerun  # noqa: E402
from rsd.demos.starts import Start, evenly, find_starts  # noqa: E402
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
    from rsd.arena.fitting import Fitted, Fitting
    from rsd.data.datasets import Demonstrations

CONF = ROOT / "conf"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
CONFIGURED = tuple(sorted(path.stem for path in (CONF / "quantizer").glob("[!_]*.yaml")))
OTHERS = ("fast", "bspline", "rvq")
FAMILIES = {"rfsq": "learned RFSQ", "dct": "transform RFSQ", "bins256": "OpenVLA's 256 bins"}
NORMALISED = "normalised"
BATCH = 256  # chunks that are timed together
NUM_STILL = 10  # steps without motion behind the last action
ARMS_A_JOB = 6  # of an episode, executed in a row: small jobs keep all simulators busy to the end
PACKAGES = ("torch", "tokenizers", "vector-quantize-pytorch")


@dataclass
class Suite:
    """A suite's demonstrations, split.

    Attributes:
        space: By the statistics of what is fitted on.
        fit, held: Chunks [N, T, 7] in model space, float32.
        fit_episodes, held_episodes: Numbers in the data set.
        num_disturbed: Episodes to fit on that were disturbed while they were collected.
        starts: Of the held-out ones, the tasks in turn.
        no_starts: Why there are none; empty where there are.
    """

    name: str
    cfg: DictConfig
    demonstrations: Demonstrations
    space: Space
    fit: Tensor
    held: Tensor
    fit_episodes: list[int]
    held_episodes: list[int]
    num_disturbed: int
    starts: list[Start]
    no_starts: str


def in_turn(tasks: Mapping[int, Any]) -> list[int]:
    """Episodes in the order in which the tasks take turns, of episode → what tells its task."""
    seen: dict[Any, int] = {}
    rounds = {}
    for episode, task in tasks.items():
        rounds[episode] = seen[task] = seen.get(task, -1) + 1
    return sorted(tasks, key=rounds.__getitem__)


def split(tasks: Mapping[int, Any], disturbed: set[int], limit: int | None = None) -> tuple[list[int], list[int]]:
    """Episodes to fit on, and held-out ones: every second undisturbed one of a task.

    Where no task has two such demonstrations, every second one of all.

    Args:
        tasks: Episode → what tells its task.
        disturbed: Episodes whose labels are not what was executed; they are never held out.
        limit: Most episodes in all: undisturbed ones first, the tasks in turn.
    """
    calm = {episode: task for episode, task in tasks.items() if episode not in disturbed}
    chosen = {*[*in_turn(calm), *in_turn({one: tasks[one] for one in tasks if one in disturbed})][:limit]}
    seen: dict[Any, int] = {}
    held = []
    for episode in sorted(chosen & calm.keys()):
        seen[tasks[episode]] = seen.get(tasks[episode], 0) + 1
        if seen[tasks[episode]] % 2 == 0:
            held.append(episode)
    if not held:
        held = sorted(chosen & calm.keys())[1::2]
    return sorted(chosen - {*held}), held


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
    tasks = {number: one.instructions[:1] for number, one in enumerate(demonstrations.trajectories)}
    starts, no_starts = starts_of(demonstrations, name)
    disturbed = {one.episode for one in starts if one.noise_scale}
    fit, held_out = split(tasks, disturbed, asked.max_demos)
    if short or not held_out:
        raise ArenaError(
            f"{directory} has {len(episodes)} demonstrations, {len(disturbed)} of them disturbed, of which "
            f"{len(held_out)} would be held out and {len(short)} are shorter than a chunk of {asked.chunk}; collect "
            "two or more"
        )
    none = [np.empty((len(episodes[number]), 0), dtype=np.float32) for number in fit]
    statistics = compute_statistics([episodes[number] for number in fit], none)
    space = Space.from_statistics(demonstrations.name, with_bounds(statistics, cfg.data.bounds))

    def chunks(numbers: Sequence[int]) -> Tensor:
        windows = np.concatenate([chunk_actions(episodes[number], asked.chunk) for number in numbers])
        return torch.from_numpy(space.to_model(windows))

    own = [one for one in starts if one.episode in {*held_out}]
    return Suite(
        name,
        cfg,
        demonstrations,
        space,
        chunks(fit),
        chunks(held_out),
        fit,
        held_out,
        num_disturbed=len(disturbed & {*fit}),
        starts=evenly(own, len(own)) if own else [],
        no_starts=no_starts or ("" if own else "no held-out demonstration tells how it begins"),
    )


def starts_of(demonstrations: Demonstrations, suite: str) -> tuple[list[Start], str]:
    """Where its episodes begin, and how they were disturbed; or none, and why."""
    rlds = demonstrations.rlds
    try:
        starts, _ = find_starts(
            rlds.file_paths() if FILE_PATH in rlds.features else [],
            suite=suite,
            recipes=read_json(rlds.directory / RECIPES_FILE) or {},
            task_files={},
            hdf5=None,
            where=str(rlds.directory),
        )
    except RerunError as error:
        return [], str(error)
    return starts, ""


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
            raise ArenaError(f"the package tokenizers {NOT_INSTALLED} ({error}); pip install tokenizers") from error
        return BytePairs(chunk, len(space.action))
    if name == "bspline":
        from rsd.arena.splines import Splines

        return Splines(chunk, len(space.action), space.action.grippers)
    from rsd.arena.residual_vq import ResidualVQ

    return ResidualVQ(chunk, len(space.action), seed)


def fitting_of(name: str, suite: Suite, asked: argparse.Namespace) -> Fitting:
    """What a worker needs to fit and measure one contestant.

    Raises:
        ArenaError: the package that it needs is not installed.
    """
    from rsd.arena.fitting import Fitting

    contestant = contestant_of(name, suite.space, asked.chunk, asked.seed)
    return Fitting(
        suite.name,
        name,
        pickle.dumps(contestant),
        suite.space,
        suite.fit.numpy(),
        suite.held.numpy(),
        {str(number): suite.demonstrations.trajectories[number].actions for number in suite.held_episodes},
        asked.seed,
        asked.steps,
    )


def keep(job: Fitting, fitted: Fitted, folder: Path) -> dict[str, Any]:
    """Put on disk what a contestant says, and its record, whose throughput is still None."""
    partial = folder / f".{job.name}.npz"
    np.savez_compressed(partial, **fitted.said)  # type: ignore[arg-type]
    partial.replace(folder / f"{job.name}.npz")
    record = {"idea": fitted.contestant().idea, "steps": fitted.steps, "depths": fitted.depths, "throughput": None}
    write(folder / f"{job.name}.json", record)
    return record


def timed(contestant: Contestant, suite: Suite, asked: argparse.Namespace) -> dict[str, Any]:
    """Throughput of a fitted contestant, on one core while nothing else of this script runs."""
    from rsd.arena.timing import throughput

    batch, before = suite.held[:BATCH], os.getloadavg()[0]
    found = throughput(contestant, batch, asked.rounds)
    return found | {"load_before": before, "load": os.getloadavg()[0]}


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


def jobs_of(
    suite: Suite,
    contestants: Mapping[str, dict[str, Any]],
    asked: argparse.Namespace,
    have: set[tuple[int, str]],
) -> tuple[list[Rerun], dict[tuple[int, str], list[str]]]:
    """What is missing of the held-out demonstrations, ARMS_A_JOB arms at a time.

    Returns:
        The jobs; and (episode, arm) → all arms of the very same commands, of which that one is executed.
    """
    jobs: list[Rerun] = []
    alike: dict[tuple[int, str], list[str]] = {}
    for start in suite.starts[: asked.replays]:
        arms = commands_of(suite, start.episode, contestants, asked.out / suite.name, asked.replay_depths)
        same: dict[bytes, list[str]] = {}
        for name in arms:
            if (start.episode, name) not in have:
                same.setdefault(arms[name].tobytes(), []).append(name)
        alike |= {(start.episode, names[0]): names for names in same.values()}
        missing = [names[0] for names in same.values()]
        picture = suite.demonstrations.picture(start.episode, 0, VIEW)
        for place in range(0, len(missing), ARMS_A_JOB):
            own = {name: arms[name] for name in missing[place : place + ARMS_A_JOB]}
            jobs.append(Rerun(start.episode, start.task_id, start.placement_seed, None, VIEW, picture, own))
    return jobs, alike


def replay(
    suite: Suite, contestants: Mapping[str, dict[str, Any]], asked: argparse.Namespace, console: Console
) -> tuple[list[RerunResult], list[str]]:
    """Execute what is missing of the held-out demonstrations; every job is on disk before the next one.

    Returns:
        All that is on disk of them, and why others are not there, a line each.
    """
    file = asked.out / suite.name / "replays.jsonl"
    results = read_results(file)
    have = {(one.episode, arm) for one in results for arm in one.arms}
    jobs, alike = jobs_of(suite, contestants, asked, have)
    failures = [] if suite.starts else [suite.no_starts]
    if jobs:
        lines = rerun(
            jobs,
            instantiate(suite.cfg.env.make),
            num_still=NUM_STILL,
            num_workers=asked.workers,
            report=console.print,
            render_devices=asked.render_devices,
            patience_s=asked.patience,
            lost=lambda job, why: failures.append(f"episode {job.episode}, {', '.join(job.arms)}: {why}"),
        )
        with closing(lines):
            for number, (job, off, executed) in enumerate(lines, start=1):
                arms_done = {name: arm for one, arm in executed.items() for name in alike[job.episode, one]}
                result = RerunResult(job.episode, job.task_id, suite.name, "", None, round(off, 3), arms_done)
                append_result(file, result)
                results.append(result)
                said = f"{suite.name}: {number} of {len(jobs)} jobs; episode {job.episode}, {len(arms_done)} arms"
                failed = [name for name, arm in arms_done.items() if not arm.success]
                said += f", not {', '.join(failed)}" if failed else ""
                said += "" if arms_done else f": begins otherwise than recorded ({off:.0f} levels)"
                console.print(said, markup=False)
    held = {one.episode for one in suite.starts[: asked.replays]}
    return [one for one in results if one.episode in held], failures


def summary_of(results: Mapping[str, Sequence[RerunResult]], contestants: Sequence[str]) -> list[dict[str, Any]]:
    """Arms over all replayed episodes of some suites: controls, then contestants in their order."""
    order = {name: place for place, name in enumerate((RAW, NORMALISED, *contestants))}
    by_episode: dict[tuple[str, int], dict[str, bool]] = {}
    for suite, own in results.items():
        for one in own:
            arms = {name: arm.success for name, arm in one.arms.items()}
            by_episode.setdefault((suite, one.episode), {}).update(arms)
    known = [one for one in summarize_arms([own for own in by_episode.values() if own], RAW) if _name(one) in order]
    return sorted(known, key=lambda one: (order[_name(one)], one["arm"]))


def _name(arm: Mapping[str, Any]) -> str:
    """Whose arm it is, without its depth."""
    return str(arm["arm"]).split()[0]


def with_replays(
    part: dict[str, Any], results: Sequence[RerunResult], contestants: Sequence[str], failures: Sequence[str]
) -> None:
    """Write into a suite's part of the report how its replays ended, and which could not be."""
    begun = {one.episode for one in results if one.arms}
    part["replays"] = summary_of({"": results}, contestants)
    part["num_other_starts"] = len({one.episode for one in results} - begun)
    part["replay_failures"] = [*failures]


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
    plan = {key: getattr(asked, key) for key in ("chunk", "seed", "rounds", "steps", "max_demos")}
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


def part_of(suite: Suite) -> dict[str, Any]:
    """A suite's part of the report, before any contestant."""
    return {
        "num_fit_episodes": len(suite.fit_episodes),
        "num_disturbed": suite.num_disturbed,
        "num_held_episodes": len(suite.held_episodes),
        "num_fit_chunks": len(suite.fit),
        "num_held_chunks": len(suite.held),
        "normalised": normalised_of(suite),
        "contestants": {},
        "left_out": {},
        "replays": [],
        "num_other_starts": 0,
        "replay_failures": [],
    }


def measure_all(
    suites: Mapping[str, Suite], asked: argparse.Namespace, report: dict[str, Any], console: Console
) -> None:
    """Fit and measure what is missing, all suites at once, and then time each contestant alone."""
    from rsd.arena.fitting import Fitted, fit_all

    found: dict[tuple[str, str], dict[str, Any]] = {}
    jobs = []

    def leave_out(suite: str, name: str, why: str) -> None:
        report["suites"][suite]["left_out"][name] = why
        console.print(f"{suite} {name} is left out: {why}", markup=False, soft_wrap=True)

    def show() -> None:
        for suite in suites:
            own = {name: found[suite, name] for name in asked.contestants if (suite, name) in found}
            report["suites"][suite]["contestants"] = own
        write_report(asked, report)

    for name in sorted(asked.contestants, key=lambda one: (one != "rvq", not one.startswith("rfsq"))):  # longest first
        for suite in suites.values():
            record = read_json(asked.out / suite.name / f"{name}.json")
            if record is not None:
                found[suite.name, name] = {key: value for key, value in record.items() if key != "checksum"}
            if record is None or record["throughput"] is None:
                try:
                    jobs.append(fitting_of(name, suite, asked))
                except ArenaError as error:
                    leave_out(suite.name, name, str(error))
    show()
    to_time = []
    with closing(fit_all(jobs, asked.workers)) as lines:
        for job, fitted in lines:
            if not isinstance(fitted, Fitted):
                leave_out(job.suite, job.name, fitted)
                continue
            found[job.suite, job.name] = record = keep(job, fitted, asked.out / job.suite)
            to_time.append((job, fitted))
            last = record["depths"][-1]
            console.print(f"{job.suite} {job.name}: {last['total_bits']:.0f} bits, {last['mean_mm']:.3g} mm on average")
            show()
    for job, fitted in to_time:
        record = found[job.suite, job.name]
        try:
            record["throughput"] = timed(fitted.contestant(), suites[job.suite], asked)
        except Exception as error:  # noqa: BLE001  its other figures are there, and so are the others
            leave_out(job.suite, f"{job.name} throughput", f"{type(error).__name__}: {error}")
            continue
        write(asked.out / job.suite / f"{job.name}.json", record)
    show()


def failures_of(report: Mapping[str, Any]) -> Iterator[str]:
    """What failed, in a few words each; a package that is not installed is no failure."""
    for suite, part in report["suites"].items():
        for name, why in part["left_out"].items():
            if NOT_INSTALLED not in why:
                yield f"{suite} {name}"
        if part["replay_failures"]:
            yield f"{len(part['replay_failures'])} replays of {suite}"


def run(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns report.json."""
    import torch

    torch.set_num_threads(1)
    suites = {name: read_suite(name, asked) for name in asked.suites}
    report: dict[str, Any] = {"plan": keep_plan(asked, [*suites.values()]), "suites": {}, "pooled": []}
    results: dict[str, list[RerunResult]] = {}
    for suite in suites.values():
        (asked.out / suite.name).mkdir(parents=True, exist_ok=True)
        report["suites"][suite.name] = part = part_of(suite)
        results[suite.name] = read_results(asked.out / suite.name / "replays.jsonl")
        with_replays(part, results[suite.name], asked.contestants, [])
    report["pooled"] = summary_of(results, asked.contestants)
    measure_all(suites, asked, report, console)
    for suite in suites.values() if asked.replays else ():
        part = report["suites"][suite.name]
        results[suite.name], failures = replay(suite, part["contestants"], asked, console)
        with_replays(part, results[suite.name], asked.contestants, failures)
        report["pooled"] = summary_of(results, asked.contestants)
        write_report(asked, report)
        for why in failures:
            console.print(f"{suite.name} is not replayed: {why}", markup=False)
    return report


@reported
def main() -> None:
    """Command line."""
    every = (*CONFIGURED, *OTHERS)
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=any_path, default=Path("outputs/data"), metavar="DIR", help="data sets of suites"
    )
    parser.add_argument(
        "--suites",
        nargs="+",
        choices=SUITES,
        metavar="SUITE",
        help="(the first three, and libero_10 where it has data)",
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=every, default=[*every], metavar="NAME", help=f"of {', '.join(every)}"
    )
    parser.add_argument("--max-demos", type=held(Count), help="of a suite, undisturbed ones first (all)")
    parser.add_argument("--chunk", type=held(ChunkLength), default=8, help="steps of a chunk (8)")
    parser.add_argument("--seed", type=held(Seed), default=0, help="of weights and batches (0)")
    parser.add_argument("--steps", type=held(Count), help="optimizer steps of those that are trained (their own: 5000)")
    parser.add_argument("--rounds", type=held(Count), default=50, help="timed calls of each arm (50)")
    parser.add_argument("--replays", type=held(Natural), default=20, help="demonstrations a suite to execute (20)")
    parser.add_argument("--replay-depths", choices=("full", "ends", "all"), default="ends", help="(ends: 1 and all)")
    parser.add_argument("--workers", type=held(Processes), default=2, help="processes that fit, and simulators (2)")
    parser.add_argument(
        "--render-devices",
        nargs="+",
        type=held(Natural),
        metavar="N",
        help="EGL devices that simulators draw on in turn",
    )
    parser.add_argument(
        "--patience", type=held(Count), default=300, help="seconds that a simulator may be silent (300)"
    )
    parser.add_argument("--out", type=new_folder, default=Path("outputs/tokenizer_arena"), help="results")
    asked = parser.parse_args()
    if asked.suites is None:
        asked.suites = [*SUITES[:3], *(name for name in SUITES[3:] if any(asked.data.glob(f"{name}*")))]
    console = Console(highlight=False, soft_wrap=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.replays:
        from rsd.envs.gl import check_simulator

        check_simulator()
    report = run(asked, console)
    console.print(f"{asked.out / 'report.md'}, report.csv, report.json, arena.html", markup=False)
    if failed := [*failures_of(report)]:
        raise ArenaError(
            f"not everything could be done, which the table says: {'; '.join(failed)}. The same command tries it again"
        )


if __name__ == "__main__":
    main()
