"""Progress of a long loop over frames: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsd.processes import is_first_process

LINE_INTERVAL_S = 10.0


@contextmanager
def track(unit: str, *, total: int, done: int, report: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Show how far a loop is.

    Args:
        unit: What is counted.
        total: Units when the loop is over.
        done: Units that an earlier run did; they do not count for the rate.
        report: Takes a plain line, when the output is not a terminal; and the closing line.

    Yields:
        A function to call with the number of units just done.
    """
    started = time.monotonic()
    count = 0
    last_line = started
    bar = Progress(
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        disable=not sys.stdout.isatty() or not is_first_process(),
    )

    def advance(units: int) -> None:
        nonlocal count, last_line
        count += units
        now = time.monotonic()
        rate = count / max(now - started, 1e-9)
        bar.update(task, advance=units, rate=rate)
        if bar.disable and now - last_line >= LINE_INTERVAL_S:
            last_line = now
            left_s = (total - done - count) / rate
            report(f"{done + count} of {total} {unit}, {rate:.1f}/s, {left_s:.0f} s left")

    with bar:
        task = bar.add_task(unit, total=total, completed=done, rate=0.0)
        yield advance
    seconds = time.monotonic() - started
    report(f"{count} {unit} in {seconds:.1f} s, {count / max(seconds, 1e-9):.1f}/s")
