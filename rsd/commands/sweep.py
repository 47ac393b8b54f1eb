"""One table over the runs of a multirun: sweep.csv and sweep.html in the sweep's folder.

Each job's folder holds overrides.yaml, metrics.json (flat: name to number) if the job got that far, and job.json
(status, error, result) once it has ended. The table is made from these files alone, after every job, and after a job
that was resumed by itself:

    python -m rsd.commands.sweep SWEEP_DIR [--publish JOB] [--checkpoints DIR]

A sweep that is started in the folder of another one finds runs where its jobs would go. These are refused, and the
table keeps the runs that are there.

Jobs publish no checkpoint themselves (rsd/commands/publishing.py). When the last one has ended, and none failed, every
checkpoint that shares its published name with no other job is published; among those that share one, --publish chooses.
Shards of an evaluation (shard=0,1,2 shards=3) are merged at the end, too: rsd/evaluation/shards.py.
The column "published" tells what the names point to at that moment. Names are those that the jobs' folders hold, which
may be a stranger's: they are held to paths.checkpoints of the command that publishes, or to --checkpoints.

Of a search (search.json) the column "front" says which runs no other one beats in all objectives; the page plots these,
or what main returned, against what was swept.

A neighbour's folder that cannot be read never costs a job its own record: what is missing then is the table.

This module knows Hydra, because only Hydra's callbacks are told when a multirun ends.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rsd.commands.error_reports import JobError
from rsd.commands.jobs import JOB_FILE, Ended, Job, failed_line, finish_sweep, is_done
from rsd.commands.objectives import SearchRecord, objective, on_front, read_search
from rsd.commands.publishing import CHECKPOINTS, Offer, PublishError, publish_offer, read_offer, rivals
from rsd.commands.quoting import quoted
from rsd.commands.sweep_plots import Figure, sweep_plots
from rsd.errors import RSDError, SettingError
from rsd.evaluation.page import render_page
from rsd.evaluation.shards import merge_below
from rsd.evaluation.terminal import show_report
from rsd.files import write_atomically
from rsd.locks import is_held_elsewhere, let_go, opened_here
from rsd.options import Options, any_path, old_folder, reported
from rsd.processes import is_first_process
from rsd.record import read, write
from rsd.runs import (
    CONFIG_FILE,
    METRICS_FILE,
    OVERRIDES_FILE,
    is_job_of_sweep,
    read_overrides,
    read_yaml,
)

CSV_FILE = "sweep.csv"
HTML_FILE = "sweep.html"
UNFINISHED = "not finished"


@dataclass(frozen=True)
class SweepRun:
    """A row: the job's folder name, its overrides as key to value, its status, error and metrics.

    `result` is what the command's main returned, one of the metrics; None for a job that has none.
    `offer` is the checkpoint that it made, and the name to publish it under; None for a job without one.
    """

    name: str
    overrides: dict[str, str]
    status: str
    error: str | None
    metrics: dict[str, Any]
    result: float | None = None
    offer: Offer | None = None

    @property
    def published(self) -> str:
        """The name that points to its checkpoint; "no" when none does, nothing for a job without a checkpoint."""
        if self.offer is None:
            return ""
        return str(self.offer.name) if self.offer.is_published else "no"


def _read(path: Path, kind: Any) -> Any:
    """A record of a job; None where there is none."""
    remedy = "remove it, or that job's folder"
    return read(path, kind, error=SettingError, remedy=remedy) if path.is_file() else None


def read_sweep(sweep_dir: Path) -> list[SweepRun]:
    """The jobs of a sweep in the order of their numbers; failed and unfinished ones included."""
    folders = [path.parents[1] for path in sweep_dir.glob("*/.hydra/overrides.yaml")]
    folders.sort(key=lambda folder: (len(folder.name), folder.name))
    runs = []
    for folder in folders:
        own = folder / OVERRIDES_FILE  # of the run; Hydra's are those of the last start, and of a job that never began
        overrides = read_yaml(own if own.is_file() else folder / ".hydra" / "overrides.yaml", list[str])
        parts = (str(override).lstrip("+~").partition("=") for override in overrides)
        pairs = {key: value.strip("'") for key, _, value in parts}
        ended: Ended | None = _read(folder / JOB_FILE, Ended)
        job = Ended(status=UNFINISHED, error=None) if ended is None else ended
        metrics: dict[str, Any] = _read(folder / METRICS_FILE, dict[str, float]) or {}
        status, error, result = job["status"], job["error"], job.get("result")
        runs.append(SweepRun(folder.name, pairs, status, error, metrics, result, read_offer(folder)))
    return runs


def sweep_columns(runs: Sequence[SweepRun]) -> tuple[list[str], list[str]]:
    """Names of the overrides that differ between runs, and names of all metrics, both in the order of appearance."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    differing = [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]
    return differing, list(dict.fromkeys(name for run in runs for name in run.metrics))


def write_sweep(sweep_dir: Path, checkpoints: Path) -> Table:
    """Write sweep.csv and sweep.html.

    Args:
        checkpoints: The folder in which checkpoints are published.

    Returns:
        The same rows as a table for the terminal.
    """
    runs = read_sweep(sweep_dir)
    overrides, metrics = sweep_columns(runs)
    published = ["published"] if any(run.offer for run in runs) else []
    search = read_search(sweep_dir)
    figures = sweep_figures(runs, search)
    directions = [] if search is None else list(search["objectives"].values())
    best = on_front(list(zip(*(figure.values for figure in figures), strict=True)), directions) if search else []
    front = ["front"] if search else []
    judged = {figure.name: figure.values for figure in figures if search and figure.name not in overrides}
    metrics = [*judged, *(name for name in metrics if name not in judged)]
    header = ["run", *overrides, "status", *front, *published, *metrics]
    num_text = len(header) - len(metrics)  # columns before the numbers
    rows = [
        [
            run.name,
            *(run.overrides.get(key, "") for key in overrides),
            run.status,
            *("yes" if best[index] else "" for _ in front),
            *(run.published for _ in published),
            *(judged[name][index] if name in judged else run.metrics.get(name) for name in metrics),
        ]
        for index, run in enumerate(runs)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *(["" if cell is None else cell for cell in row] for row in rows)])
    write_atomically(sweep_dir / CSV_FILE, text.getvalue())
    common = {key: value for key, value in (runs[0].overrides.items() if runs else ()) if key not in overrides}
    shown = [{"cells": [format_cell(cell) for cell in row], "run": run} for row, run in zip(rows, runs, strict=True)]
    page = render_page(
        "sweep.html",
        header=header,
        status_column=1 + len(overrides),
        num_text=num_text,
        rows=shown,
        common=common,
        waiting=describe_waiting(sweep_dir, runs, checkpoints),
        objectives={} if search is None else search["objectives"],
        plots=sweep_plots(
            [run.name for run in runs],
            [Figure(key, [run.overrides.get(key) for run in runs]) for key in overrides],
            figures,
            best or [False] * len(runs),
            is_search=search is not None,
        ),
    )
    write_atomically(sweep_dir / HTML_FILE, page)
    for figure in reversed(figures):  # the terminal shows them first
        if search is None and figure.name not in metrics[:1]:
            header.insert(num_text, figure.name)
            for row, value in zip(rows, figure.values, strict=True):
                row.insert(num_text, value)
    return _terminal_table(header, [[format_cell(cell) for cell in row] for row in rows], num_text=num_text)


def sweep_figures(runs: Sequence[SweepRun], search: SearchRecord | None) -> list[Figure]:
    """What the runs are judged by: a search's objectives, or what main returned."""
    if search is None:
        name = result_name(runs)
        return [] if name is None else [Figure(name, [run.result for run in runs])]
    names = search["objectives"]
    return [Figure(name, [objective(name, run.metrics, run.result, run.overrides) for run in runs]) for name in names]


def result_name(runs: Sequence[SweepRun]) -> str | None:
    """The metric that the runs' results are, without the stage, whose number may differ; None without results."""
    found = {
        re.sub(r"/\d+$", "", next((name for name, value in run.metrics.items() if value == run.result), "result"))
        for run in runs
        if run.result is not None
    }
    if len(found) > 1:
        return "result"
    return next(iter(found), None)


def publish_unshared(sweep_dir: Path, checkpoints: Path) -> None:
    """Publish the checkpoints whose name no other job of the sweep offers, inside of that folder."""
    for group in rivals([run.offer for run in read_sweep(sweep_dir) if run.offer is not None]):
        if len(group) == 1:
            try:
                publish_offer(group[0], checkpoints)
            except PublishError as error:  # the others are published all the same
                print(f"error: {error}", file=sys.stderr)


def publish_job(sweep_dir: Path, job: str, checkpoints: Path) -> None:
    """Publish one job's checkpoint, whatever its name points to now.

    Raises:
        SettingError: there is no such job, or it made no checkpoint.
        PublishError: see `publish_offer`.
    """
    offers = {run.name: run.offer for run in read_sweep(sweep_dir) if run.offer is not None}
    if job not in offers:
        raise SettingError(f"job {job!r} of {sweep_dir} has no checkpoint to publish; those with one: {list(offers)}")
    publish_offer(offers[job], checkpoints)


def describe_waiting(sweep_dir: Path, runs: Sequence[SweepRun], checkpoints: Path) -> list[str]:
    """A line for each published name that none of its jobs has: which they are, and the command that chooses one."""
    folder = [] if checkpoints == CHECKPOINTS else ["--checkpoints", str(checkpoints)]
    lines = []
    for group in rivals([run.offer for run in runs if run.offer is not None]):
        if not any(offer.is_published for offer in group):
            jobs = [run.name for run in runs if run.offer in group]
            made = f"made by job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)}; publish one"
            there = group[0].lies_in(checkpoints)
            own = folder if there else ["--checkpoints", str(group[0].name.parent)]
            command = shlex.join(["python", "-m", "rsd.commands.sweep", str(sweep_dir), "--publish", jobs[0], *own])
            warning = "" if there else f"outside of {checkpoints}, "
            lines.append(f"not published: {group[0].name}, {warning}{made} with: {command}")
    return lines


def _terminal_table(header: list[str], rows: list[list[str]], *, num_text: int) -> Table:
    """As many columns as the terminal is wide, the first number in any case; the files have all of them."""
    table = Table(title=f"{len(rows)} runs", title_justify="left", box=None, pad_edge=False)
    room = Console().width
    for index, name in enumerate(header):
        room -= 2 + max(len(cell) for cell in [name, *(row[index] for row in rows)])
        if index > num_text and room < 0:
            table.caption = f"{len(header) - index} more columns in {CSV_FILE}"
            break
        table.add_column(name, justify="left" if index < num_text else "right", no_wrap=index >= num_text)
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    return table


def format_cell(value: Any) -> str:
    """Four significant digits for numbers; a dash for what is missing."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class SweepTable(Callback):
    """Hydra callback that keeps the table up to date; see conf/hydra/callbacks/sweep.yaml.

    Hydra does not call on_multirun_end when a job has failed; `end_sweep` prints the table then.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how the job ended, and write the table; the last one that `resume=` completes ends its sweep, too."""
        assert job_return.hydra_cfg is not None  # it is set before the job starts
        hydra_cfg = job_return.hydra_cfg.hydra
        job_dir = Path(hydra_cfg.runtime.output_dir)
        is_alone = hydra_cfg.mode != RunMode.MULTIRUN
        if not is_first_process() or (is_alone and not is_job_of_sweep(job_dir)):
            return
        failed = job_return.status == JobStatus.FAILED
        returned = job_return._return_value
        line = str(returned) if isinstance(returned, JobError) else f"{type(returned).__name__}: {returned}"
        job = {
            "status": "failed" if failed else "done",
            "error": line if failed else None,
            "result": None if failed else returned,
        }
        cfg = job_return.cfg
        goes_on = is_alone or (cfg is not None and cfg.get("resume") is not None)
        if opened_here(job_dir) or not (job_dir / CONFIG_FILE).is_file() or (goes_on and _may_tell(job_dir)):
            write(job_dir / JOB_FILE, job)
        let_go(job_dir)
        sweep_dir = job_dir.parent  # hydra.sweep.dir cannot be resolved here: it points into the user's config
        checkpoints = _checkpoints(config, hydra_cfg.overrides.task, job_dir if is_alone else None)
        try:
            statuses = {run.status for run in read_sweep(sweep_dir)}
            if is_alone and statuses == {"done"}:
                publish_unshared(sweep_dir, checkpoints)
            table = write_sweep(sweep_dir, checkpoints)
        except RSDError as error:
            told = f"error: {_without_table(error, sweep_dir)}"
            if is_alone:
                sys.exit(told)  # Hydra takes every other exception of a callback for a warning
            print(told, file=sys.stderr)  # the jobs after it go on, and the sweep's end fails
            return
        if is_alone:
            _show(table, sweep_dir, checkpoints)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Publish the checkpoints whose names are not shared, and print the table."""
        sweep_dir, checkpoints = Path(config.hydra.sweep.dir), _checkpoints(config)
        try:
            publish_unshared(sweep_dir, checkpoints)
            table = write_sweep(sweep_dir, checkpoints)
        except RSDError as error:
            sys.exit(f"error: {_without_table(error, sweep_dir)}")
        finish_sweep(sweep_dir)
        _show(table, sweep_dir, checkpoints)
        try:
            for folder, report in merge_below(sweep_dir):
                show_report(report, folder)
        except RSDError as error:
            sys.exit(f"error: the shards were not merged: {error}")


def end_sweep(config: DictConfig, jobs: Sequence[Job]) -> None:
    """What a sweeper does at its end: the table and the failures where there are any; else Hydra calls on_multirun_end.

    Raises:
        JobError: a job failed.
    """
    sweep_dir, checkpoints = Path(config.hydra.sweep.dir), _checkpoints(config)
    if failed := [job for job in jobs if not is_done(job, sweep_dir)]:
        _show(write_sweep(sweep_dir, checkpoints), sweep_dir, checkpoints)
        raise JobError(failed_line(failed, jobs, sweep_dir))


def _checkpoints(config: DictConfig, overrides: Sequence[str] = (), resumed: Path | None = None) -> Path:
    """The folder in which a command publishes: paths.checkpoints as this command's own user has it.

    Args:
        overrides: Of the command, those of a resumed run among them.
        resumed: Folder of a run that is resumed. Paths that only its own overrides name are a stranger's, perhaps.
    """
    is_run = resumed is not None and (resumed / OVERRIDES_FILE).is_file()
    stored = Counter(quoted(one, False) for one in (read_overrides(resumed) if resumed and is_run else []))
    typed = Counter(overrides) - stored
    own, others = ({one.lstrip("+~").partition("=")[0] for one in some} for some in (typed, stored))
    if any(key.partition(".")[0] == "paths" for key in others - own):
        return CHECKPOINTS
    named = OmegaConf.select(config, "paths.checkpoints")
    return CHECKPOINTS if named is None else Path(named)


def _without_table(error: RSDError, sweep_dir: Path) -> str:
    return (
        f"{error}. Each job keeps its own record; nothing was published, and the table is as it was; then make it "
        f"with: {shlex.join(['python', '-m', 'rsd.commands.sweep', str(sweep_dir)])}"
    )


def _may_tell(job_dir: Path) -> bool:
    """Whether a resume that failed before its run went on may replace the record of how the job ended.

    A job that is done stays done, and one that another process goes on with tells of itself.
    """
    job: Ended | None = _read(job_dir / JOB_FILE, Ended)
    return (job is None or job["status"] != "done") and not is_held_elsewhere(job_dir)


def _show(table: Table, sweep_dir: Path, checkpoints: Path) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(
        f"Table of the runs: {sweep_dir / HTML_FILE} and {sweep_dir / CSV_FILE}", soft_wrap=True, markup=False
    )
    for line in describe_waiting(sweep_dir, read_sweep(sweep_dir), checkpoints):
        console.print(line, soft_wrap=True, markup=False)


@reported
def main() -> None:
    """Command line: make the table of a sweep again."""
    parser = Options(description="Make sweep.csv and sweep.html of a multirun again.")
    parser.add_argument("sweep_dir", type=old_folder, help="the sweep's folder, with one folder a job")
    parser.add_argument("--publish", metavar="JOB", help="publish the checkpoint of this job, for example 0")
    parser.add_argument(
        "--checkpoints", type=any_path, default=CHECKPOINTS, metavar="DIR", help="folder in which that may be published"
    )
    options = parser.parse_args()
    sweep_dir = options.sweep_dir
    if not read_sweep(sweep_dir):
        raise SettingError(f"{sweep_dir} holds no job; give the folder that a multirun has named")
    if options.publish is not None:
        publish_job(sweep_dir, options.publish, options.checkpoints)
    _show(write_sweep(sweep_dir, options.checkpoints), sweep_dir, options.checkpoints)


if __name__ == "__main__":
    main()
