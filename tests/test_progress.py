"""How far a loop is: lines in a log, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from rsd.progress import Progress, format_duration, time_left, track


class Clock:
    """Seconds that pass only when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_now_and_then_and_at_the_end():
    lines, clock, console = [], Clock(), Console(file=io.StringIO())
    options = {"console": console, "report": lines.append, "interval_s": 10.0, "clock": clock}
    with Progress("frames", total=100, done=20, **options) as progress:
        for _ in range(8):
            clock.now += 5
            progress.advance(10)
    assert lines == [
        "40 of 100 frames, 2.0/s, 30 s left",
        "60 of 100 frames, 2.0/s, 20 s left",
        "80 of 100 frames, 2.0/s, 10 s left",
        "100 of 100 frames, 2.0/s, after 40 s",
    ]


def test_every_unit_has_its_line_and_note_where_that_is_wanted():
    out, clock = io.StringIO(), Clock()
    with Progress("episodes", total=3, console=Console(file=out, width=99), interval_s=0, clock=clock) as progress:
        clock.now += 4
        progress.reach(0, "task 0: failure")
        clock.now += 4
        progress.reach(1, "task 0: [success]")
    assert out.getvalue().splitlines() == [
        "0 of 3 episodes, 0.0/s, after 4 s, task 0: failure",
        "1 of 3 episodes, 0.1/s, 16 s left, task 0: [success]",
    ]


def test_a_note_is_asked_for_only_when_it_is_shown():
    clock = Clock()
    progress = Progress("steps", total=9, console=Console(file=io.StringIO()), report=print, clock=clock)
    assert not progress.due(1) and progress.due(9)
    clock.now += 10
    assert progress.due(2)


def test_a_bar_on_a_terminal_and_no_lines():
    lines, console = [], Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    with Progress("steps", total=2, console=console, report=lines.append) as progress:
        progress.reach(2, "loss 0.5")
    text = console.export_text()
    assert "steps" in text and "2/2" in text and "loss 0.5" in text and lines == []


def test_a_loop_that_only_counts():
    lines = []
    with track("frames", total=3, done=1, report=lines.append) as advance:
        advance(1)
        advance(1)
    (line,) = lines
    assert line.startswith("3 of 3 frames, ")


def test_time_left():
    assert time_left(4, 12, 30.0) == 90 and time_left(0, 12, 30.0) is None and time_left(4, 0, 30.0) == 0


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (720, "12 min"), (11100, "3 h 05 min")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text
