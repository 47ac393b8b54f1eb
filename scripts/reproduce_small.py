"""What released/ holds, made again: python scripts/reproduce_small.py [--root DIR] [--gpus 1] [--workers 16]

A base model is trained on demonstrations of LIBERO-Spatial and goes on with those of three suites; tokenizer, head and
drafts learn on episodes that it acts in. The next base model goes on from there with more demonstrations, and from that
one the policy of words. Then everything is evaluated on the official init states, and a gate calibrated. With --words
only the policy of words is made, from the model given there.

Every step is a command that a user could type, and is printed before it runs; an interrupted run goes on where it was.
Ends with tables of results and times in --results, also where a step fails. The steps are in scripts/reproduction/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.commands.pipeline import Step, keep_settings, run_steps  # noqa: E402
from rsd.models.openvla.sentences import MINILM, find_encoder  # noqa: E402
from rsd.options import Options, any_path, held, new_folder, old_folder, reported  # noqa: E402
from rsd.settings import Count, Device, Positive, Processes, Range, require_device  # noqa: E402
from scripts.reproduction import released, words  # noqa: E402
from scripts.reproduction.results import write_results  # noqa: E402

Trials = Annotated[int, Range(1, 50)]
FREE = ("root", "results", "workers", "only")  # change no result


def parser() -> Options:
    """The command line."""
    options = Options(description=__doc__.splitlines()[0])
    options.add_argument("--root", type=new_folder, default=Path("outputs/small"), help="where everything goes")
    options.add_argument("--results", type=new_folder, default=None, help="where tables go; <root>/results by default")
    options.add_argument("--workers", type=held(Processes), default=16, help="processes; about 2 GB of memory each")
    options.add_argument(
        "--gpus", type=held(Count), default=1, help="that demonstrations are drawn and base models trained on"
    )
    options.add_argument("--device", type=held(Device), default="cuda", help="where models run; cpu only to try it out")
    options.add_argument("--base", type=old_folder, help="base model of LIBERO-Spatial to go on from, not trained then")
    options.add_argument("--words", type=old_folder, help="only the policy of words, from this base model")
    options.add_argument(
        "--encoder", type=any_path, help="sentence encoder: a folder, .zip or package; where its name leads by default"
    )
    options.add_argument(
        "--four-suites", action="store_true", help="teach the policy of words nine tasks of libero_10, too; not run yet"
    )
    options.add_argument("--scale", type=held(Positive), default=1.0, help="share of all episodes that are collected")
    options.add_argument("--steps-scale", type=held(Positive), default=1.0, help="share of all trainings' steps")
    options.add_argument("--num-trials", type=held(Trials), default=50, help="at most, episodes a task: 1..50")
    options.add_argument("--only", help="names of the steps to run now, separated by commas; all by default")
    return options


def plan(arguments: argparse.Namespace) -> list[Step]:
    """The steps, in order."""
    if arguments.words is not None:
        return words.plan(arguments.words, arguments)
    reading = words.plan(released.next_base(arguments), arguments)
    return [*released.plan(arguments), *reading, *released.calibration(arguments)]


@reported
def main() -> None:
    options = parser()
    arguments = options.parse_args()
    root: Path = arguments.root
    steps = plan(arguments)
    names = [step.name for step in steps]
    chosen = names if arguments.only is None else arguments.only.split(",")
    if not set(chosen) <= set(names):
        options.error(f"--only {arguments.only} names steps that do not exist; the steps are {', '.join(names)}")
    to_run = [step for step in steps if step.name in chosen]
    if any({f"device={arguments.device}", arguments.device} & {*step.command} for step in to_run):
        require_device(arguments.device)  # before hours of collecting
    if any("text=sentence" in step.command for step in to_run):
        find_encoder(MINILM, arguments.encoder and str(arguments.encoder))
    settings = {name: value for name, value in vars(arguments).items() if name not in FREE}
    keep_settings(root, {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()})
    directory: Path = arguments.results or root / "results"
    try:
        run_steps(to_run, root)
    finally:  # of a step that failed, too: what is there
        print(f"\n{write_results(root, steps, directory)}results: {directory}")


if __name__ == "__main__":
    main()
