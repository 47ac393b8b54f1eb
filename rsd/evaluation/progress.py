"""What the terminal shows during an evaluation: a live line on a terminal, one plain line an episode elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rsd.evaluation.statistics import summarize_success, summarize_tasks
from rsd.types import EpisodeResult


class EvaluationProgress:
    """Context manager; `update` takes each episode as it ends.

    Args:
        num_planned: Episodes of the whole run.
        done: Episodes of earlier starts of this run.
        console: Where to print; whether it is a terminal decides the form.
    """

    def __init__(self, *, num_planned: int, done: list[EpisodeResult], console: Console | None = None) -> None:
        self._num_planned = num_planned
        self._results = list(done)
        self._new_wall_s: list[float] = []
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live = Live(self._table(), console=self._console) if self._console.is_terminal else None

    def __enter__(self) -> EvaluationProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, result: EpisodeResult) -> None:
        """Count an episode that was just written to disk."""
        self._results.append(result)
        self._new_wall_s.append(result.wall_s)
        if self._live:
            self._live.update(self._table())
        else:
            outcome = f"error: {result.error}" if result.error else "success" if result.success else "failure"
            place = f"[{len(self._results)}/{self._num_planned}] task {result.task_id} init {result.init_state_id}"
            line = f"{place}: {outcome}, {result.num_steps} steps, {result.wall_s:.1f} s | so far {self._summary()}"
            self._console.print(line, markup=False)

    def _summary(self) -> str:
        summary = summarize_success(self._results)
        return f"{format_success(summary)}, errors {summary['num_errors']}, ETA {self._eta()}"

    def _eta(self) -> str:
        remaining = self._num_planned - len(self._results)
        if remaining == 0:
            return "done"
        if not self._new_wall_s:
            return "after the first episode"
        return format_duration(remaining * sum(self._new_wall_s) / len(self._new_wall_s))

    def _table(self) -> Group:
        title = f"{len(self._results)} of {self._num_planned} episodes · {self._summary()}"
        table = Table(box=None, pad_edge=False)
        for name in ("task", "done", "success", "errors", "instruction"):
            table.add_column(name, justify="left" if name in ("success", "instruction") else "right")
        for task in summarize_tasks(self._results):
            cells = (
                task["task_id"],
                task["num_episodes"],
                format_success(task),
                task["num_errors"],
                task["instruction"],
            )
            table.add_row(*map(str, cells))
        return Group(Text(title, style="bold"), table)


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
    """Print the outcome and where the report is."""
    console = Console(highlight=False, soft_wrap=True)
    success = report["success"]
    state = ""
    if report["complete"] is False:
        state = f"incomplete: {success['num_episodes']} of {report['num_planned']} episodes, "
    console.print(f"{state}success {format_success(success)}, errors {success['num_errors']}", markup=False)
    console.print(f"report: {run_dir / 'report.html'}", markup=False)


def format_success(summary: dict) -> str:
    """ "7/10 70.0 % [39.7, 89.2]": successes of the episodes without error, rate, 95 % Wilson interval."""
    num_trials = summary["num_episodes"] - summary["num_errors"]
    if not num_trials:
        return "no episode yet" if not summary["num_episodes"] else "no episode without error"
    low, high = 100 * summary["success_low"], 100 * summary["success_high"]
    return f"{summary['num_success']}/{num_trials} {100 * summary['success_rate']:.1f} % [{low:.1f}, {high:.1f}]"


def format_duration(seconds: float) -> str:
    """ "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
