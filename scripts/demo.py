"""The whole pipeline at small size, from the real simulator to a report: python scripts/demo.py [--size smoke]

Every step is a command that a user could type, and is printed before it runs. An interrupted demo goes on where it was
when started again: finished steps are skipped, the one under way is resumed. Ends in <root>/report.html.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rsd.entry_point import METRICS_FILE
from rsd.evaluation.page import data_url, render_page
from rsd.evaluation.report import REPORT_HTML, REPORT_JSON
from rsd.runs import CONFIG_FILE, OVERRIDES_FILE, write_atomically

TIMES_FILE = "times.json"
RESTARTABLE = ""  # instead of a file: the command itself finds out what is left to do, and is always run


@dataclass(frozen=True)
class Size:
    """How large each step is; tasks of libero_spatial."""

    tasks: str
    num_episodes: int
    rfsq_steps: int
    oft_steps: int
    head_steps: int
    draft_steps: int
    num_trials: int


SIZES = {
    "demo": Size("[0,4]", 12, 2500, 500, 400, 400, 2),
    "smoke": Size("[4]", 2, 200, 10, 20, 20, 1),
}


@dataclass(frozen=True)
class Step:
    """A command, its run folder below <root>/runs, and the file in that folder that says it has finished."""

    name: str
    command: list[str]
    finished: str

    def is_finished(self, root: Path) -> bool:
        """Whether this very command has run to its end.

        Raises:
            SystemExit: the folder holds a run with other settings.
        """
        run_dir = root / "runs" / self.name
        if self.finished == RESTARTABLE or not (run_dir / self.finished).is_file():
            return False
        stored = OmegaConf.to_container(OmegaConf.load(run_dir / OVERRIDES_FILE))
        if stored != self.command[1:]:
            sys.exit(f"{run_dir} was made with {stored}, not {self.command[1:]}; remove {root} to start afresh")
        if self.finished != REPORT_JSON:
            return True
        report = read_json(run_dir / REPORT_JSON)
        return report["complete"] and report["success"]["num_errors"] == 0


def plan(size: Size, root: Path) -> list[Step]:
    """The steps, in order."""
    common = [f"paths.root={root}"]
    rollout = [*common, f"tasks={size.tasks}", f"num_trials={size.num_trials}"]
    train = {
        "rfsq": [f"quantizer.max_steps={size.rfsq_steps}"],
        "oft": ["model=oft_tiny", f"phase.max_steps={size.oft_steps}"],
        "head": ["model=oft_tiny", f"phase.max_steps={size.head_steps}", "phase.datamodule.batch_size=32"],
        "draft": ["model=oft_tiny", f"phase.max_steps={size.draft_steps}"],
    }
    collect = ["scripts/collect_demos.py", "env=libero_spatial", f"tasks={size.tasks}"]
    steps = [Step("collect", [*collect, f"num_episodes={size.num_episodes}", *common], RESTARTABLE)]
    for phase, options in train.items():
        steps.append(Step(phase, ["train.py", f"phase={phase}", *options, *common], METRICS_FILE))
        if phase == "oft":
            steps.append(Step("cache", ["scripts/cache_hidden_states.py", "model=oft_tiny", *common], RESTARTABLE))
    for decoding in ("l1", "speculative"):
        command = ["eval.py", f"decoding={decoding}", "env=libero_spatial", "model=oft_tiny", *rollout]
        steps.append(Step(f"eval_{decoding}", command, REPORT_JSON))
    return steps


def run_step(step: Step, root: Path) -> None:
    """Run a step in its own folder, resuming one that was under way; end the demo with its exit code if it fails."""
    run_dir = root / "runs" / step.name
    command = [sys.executable, *step.command]
    if step.finished != RESTARTABLE:
        started = (run_dir / CONFIG_FILE).is_file()
        command.append(f"resume={run_dir}" if started else f"hydra.run.dir={run_dir}")
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it has had the same Ctrl-C and is saving what it has
            sys.exit("\ninterrupted; the same command goes on from here")
    if code != 0:
        sys.exit(f"\nstep {step.name!r} failed; the same command goes on from here once it is repaired")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def write_report(root: Path, size: str, steps: list[Step], times: dict[str, float]) -> Path:
    """<root>/report.html from the run folders: the steps with their times, and what each of them measured."""
    runs = root / "runs"
    evaluations = []
    for decoding in ("l1", "speculative"):
        folder = runs / f"eval_{decoding}"
        report = read_json(folder / REPORT_JSON)
        videos = [
            episode | {"url": data_url(folder / episode["video"], "video/mp4")}
            for episode in report["episodes"]
            if episode["video"]
        ]
        page = (folder / REPORT_HTML).relative_to(root)
        evaluations.append({"decoding": decoding, "report": report, "videos": videos, "page": page})
    rows = [
        {"name": step.name, "command": " ".join(["python", *step.command]), "seconds": times.get(step.name)}
        for step in steps
    ]
    plots = ("rfsq/codec.png", "head/stages.png", "draft/stages.png")
    page = render_page(
        "demo.html",
        size=size,
        steps=rows,
        evaluations=evaluations,
        plots={name: data_url(runs / name, "image/png") for name in plots},
        metrics={phase: read_json(runs / phase / METRICS_FILE) for phase in ("rfsq", "oft", "head", "draft")},
    )
    write_atomically(root / REPORT_HTML, page)
    return root / REPORT_HTML


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--root", type=Path, help="where everything goes; outputs/<size> by default")
    arguments = parser.parse_args()
    root = arguments.root or Path("outputs") / arguments.size
    root.mkdir(parents=True, exist_ok=True)
    steps = plan(SIZES[arguments.size], root)
    times: dict[str, float] = read_json(root / TIMES_FILE) or {}
    for step in steps:
        if step.is_finished(root):
            print(f"step {step.name!r} is finished")
            continue
        started = time.monotonic()
        try:
            run_step(step, root)
        finally:
            times[step.name] = times.get(step.name, 0.0) + time.monotonic() - started
            write_atomically(root / TIMES_FILE, json.dumps(times, indent=1) + "\n")
    report = write_report(root, arguments.size, steps, times)
    print(f"\n{sum(times.values()) / 60:.1f} minutes in all\nreport: {report}")


if __name__ == "__main__":
    main()
