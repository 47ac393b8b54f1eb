"""The small policy from nothing, on one GPU: python scripts/reproduce_small.py [--root DIR] [--workers 16]

Demonstrations of the scripted expert, the base model, tokenizer, hidden states, target head, draft, and closed-loop
evaluation on LIBERO-Spatial's official init states. Every step is a command that a user could type, and is printed
before it runs; an interrupted run goes on where it was. Ends with a table of results and one of times in --results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from demo import RESTARTABLE, TIMES_FILE, Step, read_json, run_step

from rsd.entry_point import METRICS_FILE
from rsd.evaluation.report import REPORT_JSON
from rsd.runs import PROVENANCE_FILE, write_atomically

DECODINGS = ("l1", "parallel", "depth_ar", "speculative")
ABLATIONS = ("black_pictures", "other_instruction", "zero_proprio")
RESULTS_JSON, RESULTS_TABLE = "small_policy.json", "small_policy.md"


def plan(arguments: argparse.Namespace) -> list[Step]:
    """The steps, in order."""
    common = [f"paths.root={arguments.root}"]
    model = ["model=oft_small", f"quantizer={arguments.quantizer}"]
    gpu = ["trainer=gpu", "device=cuda", "val_every=1000", "save_every=2000"]
    workers = f"num_workers={arguments.workers}"
    collect = ["scripts/collect_demos.py", "env=libero_spatial", f"num_episodes={arguments.num_episodes}", workers]
    oft = [f"phase.max_steps={arguments.oft_steps}", f"phase.datamodule.num_workers={arguments.workers}"]
    cache = ["cache.batch_size=256", f"cache.num_workers={arguments.workers}"]
    heads = [f"phase.max_steps={arguments.head_steps}", "phase.datamodule.batch_size=256"]
    heads += ["+phase.datamodule.memory_gb=16", *(f"phase.datamodule.{option}" for option in cache)]
    evaluate = ["eval.py", "env=libero_spatial", *model, "device=cuda", workers, "save_videos=0"]
    steps = [
        Step("collect", [*collect, *common], RESTARTABLE),
        Step("oft", ["train.py", "phase=oft_gpu", "model=oft_small", *gpu, *oft, *common], METRICS_FILE),
        Step("rfsq", ["train.py", "phase=rfsq", f"quantizer={arguments.quantizer}", *common], METRICS_FILE),
        Step(
            "cache",
            ["scripts/cache_hidden_states.py", "model=oft_small", "device=cuda", *cache, *common],
            RESTARTABLE,
        ),
        Step("head", ["train.py", "phase=head", *model, *gpu, *heads, *common], METRICS_FILE),
        Step("draft", ["train.py", "phase=draft", *model, *gpu, *heads, *common], METRICS_FILE),
    ]
    for decoding in DECODINGS:
        options = [f"decoding={decoding}", f"num_trials={arguments.num_trials}", *common]
        steps.append(Step(f"eval_{decoding}", [*evaluate, *options], REPORT_JSON))
    for ablation in ABLATIONS:
        options = [f"ablation={ablation}", f"num_trials={min(10, arguments.num_trials)}", *common]
        steps.append(Step(f"eval_{ablation}", [*evaluate, *options], REPORT_JSON))
    return steps


def collect_results(root: Path, steps: list[Step], times: dict[str, float]) -> dict[str, Any]:
    """What every finished step measured, with its command, time and provenance."""
    results = {}
    for step in steps:
        folder = root / "runs" / step.name
        record: dict[str, Any] = {"command": " ".join(["python", *step.command]), "seconds": times.get(step.name)}
        report, metrics = read_json(folder / REPORT_JSON), read_json(folder / METRICS_FILE)
        if report is not None:
            record["report"] = {name: value for name, value in report.items() if name != "episodes"}
            record["episodes"] = [
                [episode["task_id"], episode["init_state_id"], episode["success"], episode["num_steps"]]
                for episode in report["episodes"]
            ]
        if metrics is not None:
            record["metrics"] = metrics
        provenance = read_json(folder / PROVENANCE_FILE)
        if provenance is not None:
            record["provenance"] = provenance["starts"][-1]
        results[step.name] = record
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each evaluation, then a row for each step's time."""
    lines = ["| run | success | 95 % interval | episodes | mean steps |", "|---|---|---|---|---|"]
    for name, record in results.items():
        if "report" in record:
            success = record["report"]["success"]
            mean_steps = sum(episode[-1] for episode in record["episodes"]) / len(record["episodes"])
            lines.append(
                f"| {name.removeprefix('eval_')} | {100 * success['success_rate']:.1f} % | "
                f"{100 * success['success_low']:.1f}–{100 * success['success_high']:.1f} % | "
                f"{success['num_episodes']} | {mean_steps:.0f} |"
            )
    lines += ["", "| step | seconds |", "|---|---|"]
    lines += [f"| {name} | {record['seconds']:.0f} |" for name, record in results.items() if record["seconds"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("outputs/small"), help="where everything goes")
    parser.add_argument("--results", type=Path, default=None, help="where tables go; <root>/results by default")
    parser.add_argument("--workers", type=int, default=16, help="processes; about 2 GB of memory each")
    parser.add_argument("--num-episodes", type=int, default=600)
    parser.add_argument("--oft-steps", type=int, default=8000)
    parser.add_argument("--head-steps", type=int, default=4000)
    parser.add_argument("--num-trials", type=int, default=50, help="episodes a task, 1..50")
    parser.add_argument("--quantizer", default="dct_d3")
    parser.add_argument("--until", help="name of the last step to run")
    arguments = parser.parse_args()
    root: Path = arguments.root
    root.mkdir(parents=True, exist_ok=True)
    steps = plan(arguments)
    names = [step.name for step in steps]
    if arguments.until is not None and arguments.until not in names:
        parser.error(f"--until {arguments.until} is no step; the steps are {', '.join(names)}")
    times: dict[str, float] = read_json(root / TIMES_FILE) or {}
    for step in steps[: len(steps) if arguments.until is None else names.index(arguments.until) + 1]:
        if step.is_finished(root):
            print(f"step {step.name!r} is finished")
            continue
        started = time.monotonic()
        run_step(step, root)
        times[step.name] = times.get(step.name, 0.0) + time.monotonic() - started
        write_atomically(root / TIMES_FILE, json.dumps(times, indent=1) + "\n")
    directory: Path = arguments.results or root / "results"
    directory.mkdir(parents=True, exist_ok=True)
    results = collect_results(root, steps, times)
    write_atomically(directory / RESULTS_JSON, json.dumps(results) + "\n")
    write_atomically(directory / RESULTS_TABLE, table(results))
    for step in steps:
        for plot in sorted((root / "runs" / step.name).glob("*.png")):
            shutil.copy(plot, directory / f"{step.name}_{plot.name}")
    print(f"\n{table(results)}\n{sum(times.values()) / 60:.1f} minutes in all; results: {directory}")


if __name__ == "__main__":
    main()
