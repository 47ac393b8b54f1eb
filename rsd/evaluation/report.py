"""report.json, report.html and metrics.json of one evaluation, made from its run folder alone.

    python -m rsd.evaluation.report RUN_DIR

makes them again. results.jsonl is enough; plan.json and provenance.json add what was asked for and what it ran on.

report.json is a `Report` of report_record.py.
metrics.json is flat, for sweep tables and loggers: see `flat_metrics`. Loggers get tables as well: `report_tables`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from rsd.evaluation.caveats import caveats, stamps
from rsd.evaluation.latency import busy_note, summarize_latency
from rsd.evaluation.old_runs import read_plan
from rsd.evaluation.page import render_page
from rsd.evaluation.plan import PLAN_FILE, Plan, missing_places
from rsd.evaluation.player import OUTCOMES, VIDEO, first_rejection, is_video, recorded_episodes
from rsd.evaluation.report_record import Report
from rsd.evaluation.results import CRASHED_FILE, RESULTS_FILE, ResultsError, read_crashed, read_episodes
from rsd.evaluation.sequential import VERDICT_FILE, read_verdict
from rsd.evaluation.statistics import (
    summarize_bounds,
    summarize_decoding,
    summarize_delay,
    summarize_success,
    summarize_tasks,
    summarize_work,
)
from rsd.evaluation.time_shares import summarize_time
from rsd.files import write_atomically
from rsd.options import Options, any_path, reported
from rsd.record import conform, write
from rsd.runs import CONFIG_FILE, METRICS_FILE, PROVENANCE_FILE, read_provenance, read_yaml, used_choices
from rsd.types import EpisodeResult
from rsd.work import add_counts

SCHEMA = 4
WIDEST = 1000  # places in a task's row of trials
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
PASSES = ("target_passes", "draft_passes")  # counters of work that the decoding's figures tell already
EPISODE_FIELDS = ("task_id", "init_state_id", "seed", "success", "error", "num_steps", "wall_s", "video", "trace")


def build_report(
    results: Sequence[EpisodeResult],
    *,
    plan: Plan | None,
    config: dict[str, Any] | None,
    provenance: dict[str, Any] | None,
    stopped: dict[str, Any] | None = None,
    retried: Sequence[EpisodeResult] = (),
) -> dict[str, Any]:
    """The content of report.json; see `Report`."""
    results = sorted(results, key=lambda result: (result.task_id, result.init_state_id))
    try:
        totals: dict[str, Any] = reduce(add_counts, (result.stats for result in results), {})
        bound = summarize_bounds(results, () if plan is None else plan.tasks[0].action_names)
    except ValueError as error:
        raise ResultsError(f"the episodes of {RESULTS_FILE} do not belong together: {error}") from error
    num_chunks = totals.get("num_chunks", 0)
    num_steps = sum(result.num_steps for result in results)
    num_planned = len(plan.part) if plan is not None else None
    return {
        "schema": SCHEMA,
        "suite": results[0].suite if results else None,
        "complete": None if plan is None else not missing_places(plan.part, results),
        "num_planned": num_planned,
        "caveats": caveats(results, plan=plan, stopped=stopped),
        "stopped": stopped,
        "stamps": stamps(results),
        "success": summarize_success(results),
        "tasks": summarize_tasks(results),
        "episodes": [{name: getattr(result, name) for name in EPISODE_FIELDS} for result in results],
        "retried": [
            {"task_id": one.task_id, "init_state_id": one.init_state_id, "error": one.error or ""} for one in retried
        ],
        "decoding": summarize_decoding(totals),
        "work": summarize_work(results),
        "delay": summarize_delay(results),
        "bound": bound,
        "busy": None if plan is None else busy_note(plan),
        "latency": summarize_latency(results, num_steps / num_chunks if num_chunks else None),
        "time": summarize_time(results),
        "plan": None if plan is None else plan.settings(),
        "config": config,
        "provenance": provenance,
    }


def flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The figures of a report that a table of runs or a logger wants; what was not measured is left out."""
    success, decoding, latency, work = (report[name] for name in ("success", "decoding", "latency", "work"))
    metrics = {name: success[name] for name in ("success_rate", "num_errors")}
    metrics |= {name: decoding.get(name) for name in ("acceptance_rate", "target_passes_per_chunk")}
    if latency["total"] is not None:
        metrics |= {f"latency_ms_{name}": latency["total"][name] for name in ("p50", "p90", "p99")}
    metrics["actions_per_s"] = latency["actions_per_s"]
    metrics["draft_passes_per_chunk"] = decoding.get("draft_passes_per_chunk")
    counters = {counter["counter"]: counter for counter in work["counters"]}
    metrics |= {f"{name}_per_chunk": counters[name]["per_chunk"] for name in counters if name not in PASSES}
    metrics["early_exit_share"] = work["early_exit_share"]
    if work["drafted_steps_per_chunk"]:
        metrics |= {name: work[name] for name in ("drafted_steps_per_chunk", "late_steps_per_chunk")}
    spent = ("base_layers", "model_ms")
    metrics |= {f"{name}_per_solved_episode": counters[name]["per_solved_episode"] for name in spent}
    late = report["delay"]
    metrics |= {"action_age_mean": late["age_mean"], "action_age_max": late["age_max"]}
    metrics["still_share"] = late["still_share"]
    if report["bound"] is not None:
        metrics |= {"bounded_share": report["bound"]["bounded_share"], "bound_max": report["bound"]["max"]}
    metrics |= {name: success[name] for name in ("success_low", "success_high", "num_episodes", "num_success")}
    return {name: value for name, value in metrics.items() if value is not None}


def report_tables(report: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """(name, columns, rows) of each table of a report, for loggers; cells are JSON scalars or None."""
    records = {
        "tasks": report["tasks"],
        "episodes": report["episodes"],
        "latency_ms": [*report["latency"]["parts"], *filter(None, [report["latency"]["total"]])],
        "stages": report["decoding"].get("stages", []),
        "work": [counter for counter in report["work"]["counters"] if counter["total"] is not None],
        "bound": [] if report["bound"] is None else report["bound"]["dims"],
    }
    for name, rows in records.items():
        if rows:
            yield name, list(rows[0]), [list(row.values()) for row in rows]
    if report["time"] is not None:
        yield "time_s", ["part", "seconds"], [[part["part"], part["seconds"]] for part in report["time"]["parts"]]
    if any(counts := report["decoding"].get("accept_counts", [])):
        yield "accept_counts", ["accepted_stages", "proposals"], [list(pair) for pair in enumerate(counts)]


def write_report(run_dir: Path) -> dict[str, Any]:
    """Read a run folder and write report.json, report.html and metrics.json into it.

    Returns:
        The report, as in report.json.

    Raises:
        ResultsError: the folder has no results.jsonl, a line or a trace is damaged, or there are fewer
            episodes than those that its verdict was decided after.
        PlanError: its plan cannot be read.
    """
    if not (run_dir / RESULTS_FILE).is_file():
        raise ResultsError(
            f"{run_dir / RESULTS_FILE} does not exist; give the folder of an evaluation with an episode done"
        )
    results = read_episodes(run_dir / RESULTS_FILE)
    config_path, provenance_path = run_dir / CONFIG_FILE, run_dir / PROVENANCE_FILE
    config = read_yaml(config_path) if config_path.exists() else None
    provenance = cast("dict[str, Any] | None", read_provenance(provenance_path))
    plan, stopped = read_plan(run_dir, results), read_verdict(run_dir)
    ended = sum(result.error is None for result in results)
    if stopped is not None and stopped["num_trials"] > ended:
        raise ResultsError(
            f"{run_dir / VERDICT_FILE} was decided after {stopped['num_trials']} episodes, but {RESULTS_FILE} holds "
            f"{ended} that did not crash; restore it, or remove the verdict and resume the run"
        )
    retried = read_crashed(run_dir / CRASHED_FILE)
    report = build_report(results, plan=plan, config=config, provenance=provenance, stopped=stopped, retried=retried)
    conform(report, Report, REPORT_JSON)
    write(run_dir / REPORT_JSON, report)
    write(run_dir / METRICS_FILE, flat_metrics(report))
    write_atomically(run_dir / REPORT_HTML, render_report(report, run_dir, plan))
    return report


def log_report(logger: Any, report: dict[str, Any], run_dir: Path) -> None:
    """Hand everything in a report to a logger: configuration, figures, tables, page and videos.

    Args:
        logger: One of rsd.training.loggers, or anything with their methods.
    """
    logger.log_hyperparams(report["config"])
    logger.log_metrics(flat_metrics(report))
    for name, columns, rows in report_tables(report):
        logger.log_table(name, columns, rows)
    videos = [path for path in sorted(run_dir.glob(f"videos/*{VIDEO}")) if is_video(run_dir, f"videos/{path.name}")]
    logger.log_files([run_dir / REPORT_HTML, *videos])
    log_results(logger, run_dir)


def log_results(logger: Any, run_dir: Path) -> None:
    """Hand over what an evaluation has made, named by the content of its results; nothing more will come."""
    with open(run_dir / RESULTS_FILE, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    content = {"kind": "evaluation", "folder": str(run_dir.resolve()), "digest": digest}
    files = [run_dir / name for name in (REPORT_JSON, METRICS_FILE, PLAN_FILE) if (run_dir / name).is_file()]
    logger.log_made(content, files)
    logger.close()


def render_report(report: dict[str, Any], run_dir: Path, plan: Plan | None) -> str:
    """The HTML page of a report; small videos are put inside, larger ones are linked relative to `run_dir`."""
    config = report["config"]
    recorded = recorded_episodes(report, run_dir, plan)
    return render_page(
        "report.html",
        report=report,
        failures=_failures(report, recorded),
        grid=_trial_grid(report, {(episode["task_id"], episode["init_state_id"]) for episode in recorded}),
        recorded=recorded,
        choices=_choices(report),
        base_layers=next(c["per_chunk"] for c in report["work"]["counters"] if c["counter"] == "base_layers"),
        config_yaml=None if config is None else OmegaConf.to_yaml(OmegaConf.create(config)),
    )


def _choices(report: dict[str, Any]) -> dict[str, Any]:
    """What the head of the page names: the groups' choices, but model and decoding as the plan describes them."""
    provenance, plan = report["provenance"], report["plan"]
    choices = {} if provenance is None else used_choices(provenance.get("choices", {}), report["config"] or {})
    policy = {} if plan is None else plan["policy"]
    return {name: policy[name] for name in ("model", "decoding") if name in policy} | choices


def _failures(report: dict[str, Any], recorded: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Episodes that failed, crashed or were run again, each with a link into the player where it is recorded."""
    num_drafted = len(report["decoding"].get("stages", []))
    players = {(one["task_id"], one["init_state_id"]): one for one in recorded}
    rows = []
    for episode in report["episodes"]:
        place = episode["task_id"], episode["init_state_id"]
        again = [one["error"] for one in report["retried"] if (one["task_id"], one["init_state_id"]) == place]
        if episode["success"] and not again:
            continue
        played = players.get(place)
        rejected = None if played is None else first_rejection(played, num_drafted)
        link = None if played is None else f"#task{place[0]}-init{place[1]}"
        outcome = "crashed" if episode["error"] else "success" if episode["success"] else "failure"
        rows.append({**episode, "outcome": outcome, "again": again, "rejected": rejected, "link": link})
    return sorted(rows, key=lambda row: OUTCOMES.index(row["outcome"]))


def _trial_grid(report: dict[str, Any], recorded: set[tuple[int, int]]) -> list[dict[str, Any]]:
    """For each task its episodes by init state, with whether they were recorded; None where one is missing.

    An episode stands at the place of its init state, unless there are more than WIDEST places: then those of a task
    that are there follow each other, and no number makes the page large.
    """
    rows: dict[int, dict[int, dict[str, Any]]] = {task["task_id"]: {} for task in report["tasks"]}
    for episode in report["episodes"]:
        place = episode["task_id"], episode["init_state_id"]
        rows[place[0]][place[1]] = {**episode, "recorded": place in recorded}
    width = 1 + max((episode["init_state_id"] for episode in report["episodes"]), default=-1)
    if report["plan"] is not None:
        width = max(width, report["plan"]["num_trials"])
    return [
        {"task_id": task_id, "cells": [row.get(state) for state in (range(width) if width <= WIDEST else sorted(row))]}
        for task_id, row in rows.items()
    ]


@reported
def main() -> None:
    """Command line: make the reports of one or more run folders again."""
    parser = Options(description="Make report.json, report.html and metrics.json of evaluations again.")
    parser.add_argument("run_dir", type=any_path, nargs="+", help="folder that holds results.jsonl")
    for run_dir in parser.parse_args().run_dir:
        write_report(run_dir)
        print(run_dir / REPORT_HTML)


if __name__ == "__main__":
    main()
