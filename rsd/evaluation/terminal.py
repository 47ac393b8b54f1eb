"""What the terminal shows during an evaluation: a live table on a terminal, one plain line an episode elsewhere.

The time left is a rate of the wall clock: episodes ended since this start ÷ time since then. It is right for any number
of workers, but pessimistic until each of them has ended its first episode. Durations of the episodes do not enter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rsd.evaluation.report import REPORT_HTML
from rsd.evaluation.statistics import summarize_success, summarize_tasks
from rsd.progress import format_duration, time_left
from rsd.types import EpisodeResult


class EvaluationProgress:
    """Context manager; `update` takes each episode as it ends. The clock starts when it is entered.

    Args:
        num_planned: Episodes of the whole run.
        done: Episodes of earlier starts of this run.
        console: Where to print; whether it is a terminal decides the form.
        clock: Seconds, from any origin.
    """

    def __init__(
        self,
        *,
        num_planned: int,
        done: list[EpisodeResult],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_planned = num_planned
        self._num_before = len(done)
        self._results = list(done)
        self._clock = clock
        self._start = clock()
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live = Live(self._table(), console=self._console) if self._console.is_terminal else None

    def __enter__(self) -> EvaluationProgress:
        self._start = self._clock()
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.vertical_overflow = "visible"
            self._live.update(self._table(whole=True))
            self._live.stop()
        else:
            for line in task_lines(self._results):
                self._console.print(line, markup=False)

    def update(self, result: EpisodeResult) -> None:
        """Count an episode that was just written to disk."""
        self._results.append(result)
        if self._live:
            self._live.update(self._table(), refresh=True)
        else:
            self._console.print(self._line(result), markup=False)

    def _line(self, result: EpisodeResult) -> str:
        outcome = f"error: {result.error}" if result.error else "success" if result.success else "failure"
        summary = summarize_success(self._results)
        place = f"[{len(self._results)}/{self._num_planned}] task {result.task_id} init {result.init_state_id}"
        so_far = f"{format_rate(summary)}{_errors(summary)}, {self._left()}"
        return f"{place}: {outcome}, {result.num_steps} steps, {result.wall_s:.0f} s | {so_far}"

    def _left(self) -> str:
        remaining = self._num_planned - len(self._results)
        if remaining == 0:
            return "done"
        left_s = time_left(len(self._results) - self._num_before, remaining, self._clock() - self._start)
        return "ETA after the first episode" if left_s is None else f"ETA {format_duration(left_s)}"

    def _table(self, whole: bool = False) -> Group:
        """All tasks, or those that fit on the terminal: the ones whose last episode is most recent."""
        summary = summarize_success(self._results)
        progress = f"{len(self._results)} of {self._num_planned} episodes"
        title = f"{progress} · {format_success(summary)}{_errors(summary)}, {self._left()}"
        tasks = summarize_tasks(self._results)
        recent = list(dict.fromkeys(result.task_id for result in reversed(self._results)))
        shown = recent if whole else recent[: max(1, self._console.height - 4)]  # title, header, footer, cursor
        table = Table(box=None, pad_edge=False)
        for name in ("task", "done", "success", "errors", "instruction"):
            table.add_column(name, justify="left" if name in ("success", "instruction") else "right", no_wrap=True)
        for task in tasks:
            if task["task_id"] in shown:
                cells = ("task_id", "num_episodes", "success", "num_errors", "instruction")
                table.add_row(*(str((task | {"success": format_success(task)})[name]) for name in cells))
        hidden = [Text(f"and {len(tasks) - len(shown)} more tasks", style="dim")] if len(shown) < len(tasks) else []
        return Group(Text(title, style="bold"), table, *hidden)


def follow(episodes: Iterable[EpisodeResult], *, num_planned: int, done: list[EpisodeResult]) -> bool:
    """Run the episodes with a live display; True when all were run, False after Ctrl-C."""
    try:
        with EvaluationProgress(num_planned=num_planned, done=done) as progress:
            for result in episodes:
                progress.update(result)
    except KeyboardInterrupt:
        return False
    return True


def show_report(report: dict, run_dir: Path) -> None:
    """Print the outcome, what makes it not comparable, and where the report is."""
    console = Console(highlight=False, soft_wrap=True)
    success = report["success"]
    state = ""
    if report["complete"] is False:
        why = "incomplete" if report["stopped"] is None else "stopped early"
        state = f"{why}: {success['num_episodes']} of {report['num_planned']} episodes, "
    console.print(f"{state}success {format_success(success)}, errors {success['num_errors']}", markup=False)
    for caveat in report["caveats"]:
        console.print(f"note: {caveat['title']} {caveat['text']}", markup=False)
    console.print(f"report: {run_dir / REPORT_HTML}", markup=False)


def task_lines(results: list[EpisodeResult]) -> list[str]:
    """A line for each task: successes with interval, errors, instruction."""
    return [
        f"task {task['task_id']}: {format_success(task)}{_errors(task)}  {task['instruction']}"
        for task in summarize_tasks(results)
    ]


def _errors(summary: dict) -> str:
    """ ", 2 errors", or nothing when there is none."""
    count = summary["num_errors"]
    return f", {count} error{'' if count == 1 else 's'}" if count else ""


def format_rate(summary: dict) -> str:
    """ "7/10 70.0 %": successes of the episodes without error, and their rate."""
    num_trials = summary["num_episodes"] - summary["num_errors"]
    if not num_trials:
        return "no episode yet" if not summary["num_episodes"] else "no episode without error"
    return f"{summary['num_success']}/{num_trials} {100 * summary['success_rate']:.1f} %"


def format_success(summary: dict) -> str:
    """ "7/10 70.0 % [39.7, 89.2]": successes of the episodes without error, rate, 95 % Wilson interval."""
    if summary["success_rate"] is None:
        return format_rate(summary)
    return f"{format_rate(summary)} [{100 * summary['success_low']:.1f}, {100 * summary['success_high']:.1f}]"
