"""The whole pipeline at small size, from the real simulator to a report: python scripts/demo.py [--size smoke]

First a miniature of everything is made on this machine: demonstrations, tokenizer, base model, head, draft, closed-loop
episodes. Then the policy that comes with the repository, trained in the same way for longer, is run on a few
episodes. Interrupted, it goes on where it was when started again. Ends in <root>/report.html.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.commands.pipeline import Step, run_steps, seconds
from rsd.evaluation.page import data_url, render_page
from rsd.evaluation.report import REPORT_HTML, REPORT_JSON
from rsd.files import write_atomically
from rsd.options import Options, new_folder, reported
from rsd.record import read_json
from rsd.runs import METRICS_FILE

READOUT = ["decoding=exit", "draft=numbers"]  # a third of the layers
Decodings = dict[str, dict[str, list[str]]]
DECODINGS: Decodings = {  # of each policy: its runs by name, with what they are told
    "eval": {"l1": ["decoding=l1"], "speculative": ["decoding=speculative"]},
    "released": {
        "l1": ["decoding=l1"],
        "speculative": ["decoding=speculative"],
        "exit": READOUT,
        "temporal": ["decoding=temporal"],
    },
    "goal": {"l1": ["decoding=l1"], "exit": READOUT},
}
SMOKE: Decodings = {  # the same policies and all ways of decoding, each once
    "eval": {"speculative": ["decoding=speculative"]},
    "released": {"l1": ["decoding=l1"], "temporal": ["decoding=temporal"]},
    "goal": {"exit": READOUT},
}
POLICIES = {
    "eval": "trained in this demo",
    "released": "that comes with the repository",
    "goal": "that comes with the repository, on LIBERO-Goal",
}


@dataclass(frozen=True)
class Size:
    """How large each step is; tasks of libero_spatial unless another suite is named."""

    tasks: str
    num_episodes: int
    rfsq_steps: int
    oft_steps: int
    head_steps: int
    draft_steps: int
    num_trials: int
    released_tasks: str
    released_trials: int
    goal_tasks: str  # one episode each
    decodings: Decodings


SIZES = {
    "demo": Size("[0,4]", 12, 2500, 500, 400, 400, 2, "[0,4,9]", 2, "[0,7,9]", DECODINGS),
    "smoke": Size("[4]", 2, 20, 3, 5, 5, 1, "[9]", 1, "[7]", SMOKE),
}


def plan(size: Size, root: Path) -> list[Step]:
    """The steps, in order."""
    common = [f"paths.root={root}"]
    tiny = ["model=oft_tiny", *common]
    train = {
        "rfsq": [f"quantizer.max_steps={size.rfsq_steps}", *common],
        "oft": [f"phase.max_steps={size.oft_steps}", *tiny],
        "head": [f"phase.max_steps={size.head_steps}", "phase.datamodule.batch_size=32", *tiny],
        "draft": [f"phase.max_steps={size.draft_steps}", *tiny],
    }
    collect = ["scripts/collect_demos.py", "env=libero_spatial", f"tasks={size.tasks}"]
    steps = [Step("collect", [*collect, f"num_episodes={size.num_episodes}", *common], finished=None)]
    for phase, options in train.items():
        steps.append(Step(phase, ["train.py", f"phase={phase}", *options], METRICS_FILE))
        if phase == "oft":
            steps.append(Step("cache", ["scripts/cache_hidden_states.py", *tiny], finished=None))
    evaluations = {
        "eval": ["env=libero_spatial", *tiny, f"tasks={size.tasks}", f"num_trials={size.num_trials}"],
        "released": [
            "policy=released",
            "env=libero_spatial",
            *common,
            f"tasks={size.released_tasks}",
            f"num_trials={size.released_trials}",
        ],
        "goal": ["policy=released", "env=libero_goal", *common, f"tasks={size.goal_tasks}", "num_trials=1"],
    }
    for name, options in evaluations.items():
        for decoding, told in size.decodings[name].items():
            command = ["eval.py", *told, *options]
            steps.append(Step(f"{name}_{decoding}", command, REPORT_JSON))
    return steps


def evaluation(root: Path, policy: str, decoding: str) -> dict[str, Any]:
    """What the page shows of one evaluation."""
    folder = root / "runs" / f"{policy}_{decoding}"
    report = read_json(folder / REPORT_JSON)
    instructions = {task["task_id"]: task["instruction"] for task in report["tasks"]}
    videos = [
        episode | {"url": data_url(folder / episode["video"], "video/mp4"), "task": instructions[episode["task_id"]]}
        for episode in report["episodes"]
        if episode["video"] and (folder / episode["video"]).is_file()
    ]
    page = (folder / REPORT_HTML).relative_to(root)
    return {"decoding": decoding, "report": report, "videos": videos, "page": page}


def write_report(root: Path, size: str, steps: list[Step]) -> Path:
    """<root>/report.html from the run folders: the steps with their times, and what each of them measured."""
    runs = root / "runs"
    policies = [
        {"title": title, "evaluations": [evaluation(root, name, decoding) for decoding in SIZES[size].decodings[name]]}
        for name, title in POLICIES.items()
    ]
    rows = [
        {"name": step.name, "command": shlex.join(["python", *step.command]), "seconds": seconds(step, root)}
        for step in steps
    ]
    plots = ("rfsq/codec.png", "head/stages.png", "draft/stages.png")
    page = render_page(
        "demo.html",
        size=size,
        steps=rows,
        policies=policies,
        plots={name: data_url(runs / name, "image/png") for name in plots},
        metrics={phase: read_json(runs / phase / METRICS_FILE) for phase in ("rfsq", "oft", "head", "draft")},
    )
    write_atomically(root / REPORT_HTML, page)
    return root / REPORT_HTML


@reported
def main() -> None:
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--root", type=new_folder, help="where everything goes; outputs/<size> by default")
    arguments = parser.parse_args()
    root = arguments.root or Path("outputs") / arguments.size
    root.mkdir(parents=True, exist_ok=True)
    steps = plan(SIZES[arguments.size], root)
    run_steps(steps, root)
    report = write_report(root, arguments.size, steps)
    print(f"\n{sum(seconds(step, root) or 0.0 for step in steps) / 60:.1f} minutes in all\nreport: {report}")


if __name__ == "__main__":
    main()
