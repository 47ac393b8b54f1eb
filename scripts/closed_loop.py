"""Every decoding and its controls on the same episodes: python scripts/closed_loop.py --suite SUITE [--root DIR]

Each arm is a command that a user could type, `python eval.py experiment=closed_loop decoding=…`, and is printed before
it runs; an interrupted run goes on where it was when the same command is given again. Ends with scripts/compare.py over
all arms, l1 the reference: success, acceleration-induced failures, work and time a solved episode, Pareto plots.

    python scripts/closed_loop.py --suite libero_goal --tasks 0 1 2 4 5 6 7 8 9    # the words of task 3 are unknown
    python scripts/closed_loop.py --suite libero_spatial --variant swap --num-trials 10
    python scripts/closed_loop.py --suite libero_spatial --ablation camera_outage --num-trials 10 --only l1 temporal_2

What surprises first: all arms run one after the other, so milliseconds are comparable where nothing else ran beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rsd.commands.pipeline import RUNS, Step, keep_settings, run_steps
from rsd.errors import SettingError
from rsd.evaluation.report import REPORT_JSON
from rsd.options import Options, any_path, held, new_folder, old_folder, reported
from rsd.settings import Count, Device, Finite, Natural, Processes, Text

REFERENCE = "l1"
EARLY_EXIT = (-0.03, -0.06, -0.1)  # nats a token, the strictest first
TEMPORAL = (-0.1277, -0.2, -0.3179)
COMPARISON = "comparison"  # folder below the root
SKIPPING = "decoding.decode.gate.threshold"
FREE = ("root", "workers", "only")  # options that change no result


def arms(early_exit: Sequence[float], temporal: Sequence[float]) -> dict[str, list[str]]:
    """Name of each arm → what it types, the reference first."""
    found = {REFERENCE: ["decoding=l1"], "speculative": ["decoding=speculative"], "exit": ["decoding=exit"]}
    for number, threshold in enumerate(early_exit, 1):
        found[f"early_exit_{number}"] = ["decoding=early_exit", f"{SKIPPING}={threshold:g}"]
    for number, threshold in enumerate(temporal, 1):
        found[f"temporal_{number}"] = ["decoding=temporal", f"{SKIPPING}={threshold:g}"]
    found |= {f"hold_{count}": ["decoding=hold", f"decoding.decode.num_repeats={count}"] for count in (2, 4)}
    found |= {f"horizon_{count}": ["decoding=fixed_horizon", f"decoding.decode.num_steps={count}"] for count in (4, 8)}
    found["numbers"] = ["decoding=exit", "draft=numbers"]
    found["micro_alone"] = ["decoding=exit", "draft=micro"]
    for draft in ("random", "oracle"):  # a chunk of two is the draft's, whatever it is
        found[draft] = ["decoding=temporal", f"draft={draft}", f"{SKIPPING}=-inf"]
    return found


def plan(asked: argparse.Namespace) -> list[Step]:
    """The steps, in order."""
    common = ["experiment=closed_loop", f"env={asked.suite}", f"paths.policy={asked.policy}"]
    common += [f"device={asked.device}", f"num_workers={asked.workers}", f"num_trials={asked.num_trials}"]
    common += [] if asked.tasks is None else [f"tasks={asked.tasks}".replace(" ", "")]
    common += [] if asked.variant is None else [f"env.variant={asked.variant}"]
    common += [] if asked.ablation is None else [f"ablation={asked.ablation}"]
    if asked.text_source is not None:
        common += ["text=sentence", f"text.sentences.source={asked.text_source}"]
    named = arms(asked.early_exit, asked.temporal)
    return [Step(name, ["eval.py", *common, *own], REPORT_JSON) for name, own in named.items()]


def chosen(steps: Sequence[Step], only: Sequence[str] | None) -> list[Step]:
    """The steps of these names, all by default.

    Raises:
        SettingError: there is no such arm, or the reference is left out.
    """
    names = [step.name for step in steps]
    if unknown := sorted(set(only or ()) - set(names)):
        raise SettingError(f"--only names {unknown}, which are no arms; the arms are {', '.join(names)}")
    if only is not None and (REFERENCE not in only or len(set(only)) < 2):
        raise SettingError(
            f"--only is {' '.join(only)}, expected {REFERENCE}, which others are held against, and one more"
        )
    return [step for step in steps if only is None or step.name in only]


def options() -> argparse.Namespace:
    """The command line."""
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", type=held(Text), required=True, help="libero_spatial, libero_object, libero_goal, …")
    parser.add_argument("--policy", type=old_folder, default=Path("released"), help="folder of the policy")
    parser.add_argument("--root", type=new_folder, help="where everything goes; outputs/closed_loop/SUITE by default")
    parser.add_argument("--tasks", type=held(Natural), nargs="+", help="task ids; all by default")
    parser.add_argument("--num-trials", type=held(Count), default=50, help="init states of each task, from 0 on")
    parser.add_argument("--variant", type=held(Text), help="perturbed version of the suite: swap, object, …")
    parser.add_argument("--ablation", type=held(Text), help="camera_outage, frozen_camera, black_pictures, …")
    parser.add_argument("--early-exit", type=held(Finite), nargs="+", default=list(EARLY_EXIT), help="its thresholds")
    parser.add_argument("--temporal", type=held(Finite), nargs="+", default=list(TEMPORAL), help="its thresholds")
    parser.add_argument("--device", type=held(Device), default="cuda", help="where the policy runs")
    parser.add_argument(
        "--text-source", type=any_path, help="files of the sentence encoder, of a policy that reads sentences"
    )
    parser.add_argument("--workers", type=held(Processes), default=15, help="simulators; about 2 GB of memory each")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="names of the arms to run now; all by default")
    return parser.parse_args()


@reported
def main() -> None:
    """Command line."""
    asked = options()
    condition = "_".join(filter(None, (asked.suite, asked.variant, asked.ablation)))
    root: Path = asked.root or Path("outputs") / "closed_loop" / condition
    steps = chosen(plan(asked), asked.only)
    settings = {name: value for name, value in vars(asked).items() if name not in (*FREE, "text_source")}
    if asked.text_source is not None:
        settings["text_source"] = str(asked.text_source)
    keep_settings(root, settings | {"policy": str(asked.policy)})
    folders = [str(root / RUNS / step.name) for step in steps]
    compared = Step(COMPARISON, ["scripts/compare.py", *folders, "--out", str(root / COMPARISON)], finished=None)
    run_steps([*steps, compared], root)


if __name__ == "__main__":
    main()
