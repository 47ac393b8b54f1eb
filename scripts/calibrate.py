"""Find the threshold of a gate that keeps a promise, and write it with its evidence into the policy's folder.

    python scripts/collect_demos.py demonstrator=policy policy=released env=libero_spatial data=libero_suites \
        num_episodes=200 seed=5 paths.data=outputs/held_out
    python scripts/calibrate.py released --decoding temporal --data outputs/held_out/libero_suites_no_noops/1.0.0

Promised is, for episodes like those of the data: at most a share --risk of an episode's chunks is the draft's and lies
further than --tau from what the base model would have done; but for a probability of --delta (Learn then Test, see
rsd/policy/calibration.py). With --runs another promise is made: at most a share --risk of the episodes is lost that
decoding=l1 solves (Clopper and Pearson, see rsd/comparison/thresholds.py). The runs are evaluations of the folder, on
init states that are not reported later: one of decoding=l1, and one for each threshold:

    python eval.py policy=released num_trials=10 decoding=l1 hydra.run.dir=outputs/held_out/l1
    python eval.py policy=released num_trials=10 decoding=temporal decoding.decode.gate.threshold=-0.2 \
        hydra.run.dir=outputs/held_out/a
    python scripts/calibrate.py released --decoding temporal --data outputs/held_out/libero_suites_no_noops/1.0.0 \
        --runs outputs/held_out/l1 outputs/held_out/a

Either way a gate that is surer of black pictures or of a frozen camera is refused. Threshold and evidence go into
policy.json, and the curve of risk against coverage into calibration/DECODING.png beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rsd.errors import SettingError
from rsd.options import Options, any_path, held, old_folder, reported
from rsd.settings import Device, Fraction, Positive

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help comes at once
    from rsd.comparison.candidates import Run
    from rsd.data.datasets import Demonstrations
    from rsd.decoding import MeanLogProb
    from rsd.policy.calibration import Measured, Point, Promise
    from rsd.types import Observation

ROWS = 9  # of the curve that are shown
PLOTS = "calibration"  # folder below the policy's


def options() -> argparse.Namespace:
    """The command line."""
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=any_path, help="of the policy; its policy.json is written")
    parser.add_argument("--data", type=old_folder, required=True, help="RLDS directory of episodes that were held out")
    parser.add_argument("--decoding", default="temporal", help="temporal, early_exit")
    parser.add_argument(
        "--runs",
        type=old_folder,
        nargs="+",
        metavar="RUN",
        help="promise few lost episodes, counted in these evaluations",
    )
    parser.add_argument("--tau", type=held(Positive), default=0.2, help="what is wrong: further from the base model")
    parser.add_argument(
        "--risk", type=held(Fraction), default=0.05, help="share of an episode's chunks, or of episodes"
    )
    parser.add_argument(
        "--units", choices=("model", "robot"), default="model", help="of tau: 2 is a dim's range, or robot commands"
    )
    parser.add_argument("--delta", type=held(Fraction), default=0.1, help="probability that the promise is not kept")
    parser.add_argument("--device", type=held(Device), default="cpu", help="where the models run")
    parser.add_argument(
        "--text-source", type=any_path, help="files of the sentence encoder, of a policy that reads sentences"
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    return parser.parse_args()


def gated(folder: Path, name: str) -> tuple[MeanLogProb, int | None]:
    """The gate of the decoding of that name, which must have a threshold, and the stages that its draft is asked for.

    Raises:
        SettingError: it has none.
    """
    from rsd.decoding import EarlyExit, MeanLogProb, Temporal, from_json
    from rsd.policy.folder import read_record

    entries = read_record(folder)["decodings"]
    if name not in entries:
        raise SettingError(f"{folder} has no decoding {name!r}; it has {', '.join(entries)}")
    made = from_json({key: value for key, value in entries[name].items() if key not in ("target", "draft")})
    if not isinstance(made, EarlyExit | Temporal) or not isinstance(made.gate, MeanLogProb):
        raise SettingError(f"decoding {name!r} has no gate with a threshold; there is one in early_exit and temporal")
    return made.gate, made.num_draft_stages


def held_out(demonstrations: Demonstrations, trained_on: str, stride: int) -> dict[int, list[Observation]]:
    """Number of each episode → its frames at which a policy is asked, of episodes that the draft was not trained on.

    Args:
        trained_on: Content of the draft's training data; of the same set only the held-out split is taken.
    """
    from rsd.data.datasets import FrameDataset

    split = "val" if trained_on.startswith(demonstrations.content_id()) else "all"
    frames = FrameDataset(demonstrations, 1, split)
    episodes: dict[int, list[Observation]] = {}
    for row in range(len(frames)):
        if int(frames.step[row]) % stride == 0:
            episodes.setdefault(int(frames.episode[row]), []).append(frames[row]["observation"])
    print(f"{len(episodes)} episodes ({split}), {sum(map(len, episodes.values()))} frames, every {stride} steps")
    return episodes


def show(points: list[Point], kept: Point) -> None:
    """Some rows of the curve, and the one that was taken."""
    table = Table("threshold", "lets through", "mean risk", "p")
    chosen = {round(i * (len(points) - 1) / (ROWS - 1)) for i in range(ROWS)} | {points.index(kept)}
    for number in sorted(chosen):
        one = points[number]
        style = "bold" if one is kept else None
        table.add_row(*(f"{v:.4g}" for v in (one.threshold, one.coverage, one.risk, one.p)), style=style)
    Console(highlight=False).print(table)


def suites_of(demonstrations: Demonstrations, episodes: Sequence[int]) -> list[str]:
    """Suites of these episodes: by the names that scripts/collect_demos.py gives, else by that of the data set."""
    names = [demonstrations.rlds.file_paths()[episode] for episode in episodes]
    collected = [re.match(r"(\w+)/task_\d+/", name) for name in names]
    return sorted({demonstrations.name.removesuffix("_no_noops") if one is None else one[1] for one in collected})


def check_runs(folder: Path, name: str, runs: Sequence[Run]) -> None:
    """See that runs are of this folder's decoding, but for the threshold, or of its base model alone.

    Raises:
        SettingError: one is of another policy or decoding.
    """
    from rsd.comparison.thresholds import REFERENCE
    from rsd.decoding import L1, from_json
    from rsd.differences import differences, told
    from rsd.evaluation.plan import describe_policy
    from rsd.policy import describe_folder
    from rsd.policy.folder import read_record

    entry = read_record(folder)["decodings"][name]
    made = from_json({key: value for key, value in entry.items() if key not in ("target", "draft")})
    gated = {"decoding": made, "draft": entry.get("draft"), "target": entry.get("target")}
    for run in runs:
        found = run.plan.policy if run.plan is not None else None
        if found is None:
            continue  # refused where it is read
        expected = describe_policy(
            describe_folder(folder, {"decoding": L1()} if found.decoding == REFERENCE else gated)
        )
        now, then = (dataclasses.asdict(one) for one in (expected, found))
        if different := differences(now, then, ("model", "decoding", "options.gate.threshold")):
            raise SettingError(
                f"{run.path} is of another policy or decoding than {name!r} of {folder}: {told(different)}; evaluate "
                f"policy={folder} decoding={name} decoding.decode.gate.threshold=… instead"
            )


def by_failures(
    folder: Path, name: str, given: Sequence[Path], risk: float, delta: float
) -> tuple[float, dict[str, Any]]:
    """Threshold and evidence from evaluations."""
    from rsd.comparison.candidates import read_run
    from rsd.comparison.thresholds import arms, in_json, loosest

    runs = [read_run(path) for path in given]
    check_runs(folder, name, runs)
    found = arms(runs, delta)
    table = Table("threshold", "lets through", "lost", "of", f"at most ({1 - delta:.0%})")
    for arm in found:
        table.add_row(
            f"{arm.threshold:.4g}",
            f"{arm.coverage:.1%}",
            *map(str, (arm.num_failures, arm.num_episodes)),
            f"{arm.bound:.1%}",
        )
    Console(highlight=False).print(table)
    kept = loosest(found, risk=risk, delta=delta)
    print(
        f"threshold {kept.threshold:.4g}: {kept.coverage:.1%} of the chunks pass, {kept.num_failures} of "
        f"{kept.num_episodes} episodes lost that l1 solves, at most {kept.bound:.1%} (promised: {risk:.1%}, delta "
        f"{delta:g})"
    )
    return kept.threshold, in_json(found, kept, runs, risk=risk, delta=delta)


def by_distance(measured: Measured, promise: Promise) -> tuple[float, dict[str, Any]]:
    """Threshold and evidence from the distance to the base model's chunks."""
    from rsd.policy.calibration import calibrate, evidence

    kept, points = calibrate(measured, promise)
    show(points, kept)
    found = evidence(measured, promise, kept, points)
    print(
        f"threshold {kept.threshold:.4g}: {kept.coverage:.1%} of the chunks pass, mean risk {kept.risk:.2%} (promised: "
        f"{promise.risk:.2%} at tau {promise.tau:g}, delta {promise.delta:g}, {found['num_episodes']} episodes)"
    )
    return kept.threshold, found


def plot(found: Mapping[str, Any], path: Path) -> None:
    """The curve of risk against coverage."""
    from rsd.training.plots import plot_risk_coverage

    lost = "num_failures" in found
    ylabel = "episodes lost that l1 solves" if lost else f"chunks further than {found['tau']:g}"
    rows = [(covered, risk, last if lost else None) for _, covered, risk, last in found["curve"]]
    path.parent.mkdir(exist_ok=True)
    plot_risk_coverage(dict(found), rows, ylabel, path)


@reported
def main() -> None:
    """Command line."""
    asked = options()
    gate, num_stages = gated(asked.folder, asked.decoding)
    from rsd.checkpoint import load_checkpoint
    from rsd.data.datasets import Demonstrations
    from rsd.decoding import L1, EarlyExit
    from rsd.policy import load_folder
    from rsd.policy.calibration import Listening, Promise, blind_coverage, check_blind, measure
    from rsd.policy.folder import calibrated, parts_in, read_record

    promise = Promise(tau=asked.tau, risk=asked.risk, delta=asked.delta)
    failures = None
    if asked.runs:
        failures = by_failures(asked.folder, asked.decoding, asked.runs, promise.risk, promise.delta)
    drafting = read_record(asked.folder)["decodings"][asked.decoding].get("draft", "draft")
    source = None if asked.text_source is None else str(asked.text_source)
    base = load_folder(asked.folder, decoding=L1(), device=asked.device, text_source=source)
    listening = Listening(gate=gate)
    proposing = EarlyExit(gate=listening, full=L1(), num_draft_stages=num_stages)
    draft = load_folder(asked.folder, decoding=proposing, draft=drafting, device=asked.device, text_source=source)
    part = load_checkpoint(parts_in(asked.folder)[drafting], kind="draft", produce="python train.py phase=draft")
    demonstrations = Demonstrations(asked.data, base.base.spec.views)
    episodes = held_out(demonstrations, str(part.provenance.get("data")), base.num_open_loop_steps)
    if failures is None:
        promise.check_episodes(len(episodes))
    frames = [frame for episode in episodes.values() for frame in episode]
    draft.check_instructions(sorted({frame.instruction for frame in frames}))
    measured = measure(draft, base, listening, list(episodes.values()), asked.units)
    if failures is None:
        threshold, found = by_distance(measured, promise)
        found = {"suites": suites_of(demonstrations, list(episodes)), "units": asked.units, **found}
    else:
        threshold, found = failures
        check_blind(measured, threshold)
        found = {**found, "coverage_blind": blind_coverage(measured, threshold)}
    if not asked.dry_run:
        path = asked.folder / PLOTS / f"{asked.decoding}.png"
        data = {"name": demonstrations.name, "content": demonstrations.content_id()}
        calibrated(asked.folder, asked.decoding, threshold, {"data": data, **found, "plot": f"{PLOTS}/{path.name}"})
        plot(found, path)
        print(f"written: {asked.folder / 'policy.json'} and {path}")


if __name__ == "__main__":
    main()
