"""What the steps have measured so far: one JSON file with all of it, and tables of results and times."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd.commands.pipeline import Step, seconds
from rsd.evaluation.report import REPORT_JSON
from rsd.files import write_atomically
from rsd.record import read_json
from rsd.runs import METRICS_FILE, PROVENANCE_FILE

RESULTS_JSON, RESULTS_TABLE = "small_policy.json", "small_policy.md"


def write_results(root: Path, steps: Sequence[Step], directory: Path) -> str:
    """Write the results and every step's plots into a folder; the tables."""
    directory.mkdir(parents=True, exist_ok=True)
    results = collect_results(root, steps)
    write_atomically(directory / RESULTS_JSON, json.dumps(results) + "\n")
    write_atomically(directory / RESULTS_TABLE, table(results))
    for step in steps:
        for plot in sorted(step.folder(root).glob("*.png")):
            shutil.copy(plot, directory / f"{step.name}_{plot.name}")
    return table(results)


def collect_results(root: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """What every step has measured so far, with its command, time and provenance."""
    results = {}
    for step in steps:
        folder = step.folder(root)
        record: dict[str, Any] = {"command": shlex.join(["python", *step.command]), "seconds": seconds(step, root)}
        report, metrics = read_json(folder / REPORT_JSON), read_json(folder / METRICS_FILE)
        if report is not None:
            record["report"] = {name: value for name, value in report.items() if name not in ("episodes", "config")}
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
    lines += [row(name.removeprefix("eval_"), record) for name, record in results.items() if "report" in record]
    lines += ["", "| step | seconds |", "|---|---|"]
    times = {name: record["seconds"] for name, record in results.items() if record["seconds"]}
    lines += [f"| {name} | {taken:.0f} |" for name, taken in {**times, "all": sum(times.values())}.items()]
    return "\n".join(lines) + "\n"


def row(name: str, record: dict[str, Any]) -> str:
    """One evaluation; crashed episodes and missing ones are named."""
    success, report = record["report"]["success"], record["report"]
    num_trials = success["num_episodes"] - success["num_errors"]
    if num_trials == 0:
        return f"| {name} | – | – | {success['num_errors']} crashed | – |"
    mean_steps = sum(episode[-1] for episode in record["episodes"]) / len(record["episodes"])
    episodes = str(num_trials)
    if success["num_errors"]:
        episodes += f", {success['num_errors']} crashed"
    if not report["complete"]:
        episodes += f", of {report['num_planned']} planned"
    return (
        f"| {name} | {100 * success['success_rate']:.1f} % | "
        f"{100 * success['success_low']:.1f}–{100 * success['success_high']:.1f} % | {episodes} | {mean_steps:.0f} |"
    )
