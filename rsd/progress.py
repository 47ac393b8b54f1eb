"""Progress of a long loop: a live bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_INTERVAL_S = 10.0
REFRESH_INTERVAL_S = 0.25  # of the bar


class Progress:
    """Counts up to `total`; a context manager, or `start` and `stop`. The rate is that of this loop alone.

    Args:
        unit: What is counted, in the plural.
        total: Units when the loop is over.
        done: Units that an earlier run did.
        console: Where to show it; whether it is a terminal decides the form.
        report: Takes the plain lines; the console's print if left out.
        interval_s: Shortest time between two plain lines; 0 for a line at every call.
        clock: Seconds, from any origin.
    """

    def __init__(
        self,
        unit: str,
        *,
        total: int,
        done: int = 0,
        console: Console | None = None,
        report: Callable[[str], None] | None = None,
        interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        console = console or Console(highlight=False, soft_wrap=True)
        self._unit, self._total, self._done, self._count = unit, total, done, done
        self._report = report or partial(console.print, markup=False)
        self._clock = clock
        self._bar = Bar(
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._interval_s = interval_s if self._bar.disable else REFRESH_INTERVAL_S
        self._task = self._bar.add_task(unit, total=total, completed=done, note="")
        self._started = self._last_shown = clock()

    def __enter__(self) -> Progress:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the clock, and draw the bar."""
        self._started = self._last_shown = self._clock()
        self._bar.start()

    def stop(self) -> None:
        """Leave the bar as it is; safe to call twice."""
        self._bar.stop()

    def due(self, count: int) -> bool:
        """Whether `reach` would show something now: to find a note may take longer than the unit itself."""
        return count == self._total or self._clock() - self._last_shown >= self._interval_s

    def reach(self, count: int, note: str = "") -> None:
        """Say that `count` units are there now, those of earlier runs included.

        Args:
            note: What else there is to say, of the last unit.
        """
        self._count = count
        if not self.due(count):
            return
        self._last_shown = self._clock()
        seconds = self._last_shown - self._started
        made = count - self._done
        rate = f"{made / max(seconds, 1e-9):.1f}/s"
        self._bar.update(self._task, completed=count, note=", ".join(filter(None, (rate, note))))
        if self._bar.disable:
            left_s = time_left(made, self._total - count, seconds)
            left = f"{format_duration(left_s)} left" if left_s else f"after {format_duration(seconds)}"
            self._report(", ".join(filter(None, (f"{count} of {self._total} {self._unit}", rate, left, note))))

    def advance(self, units: int) -> None:
        """Say that so many more are done."""
        self.reach(self._count + units)


@contextmanager
def track(unit: str, *, total: int, done: int, report: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """`Progress` of a loop that only counts; yields a function to call with the number of units just done."""
    with Progress(unit, total=total, done=done, report=report) as progress:
        yield progress.advance


def time_left(made: int, missing: int, seconds: float) -> float | None:
    """Seconds for what is missing, at the rate of what was made in `seconds`; None before anything was made."""
    return missing * seconds / made if made else None


def format_duration(seconds: float) -> str:
    """ "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
