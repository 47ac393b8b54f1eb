"""What the terminal says."""

import io

import pytest
from rich.console import Console

from rsd.evaluation.progress import EvaluationProgress, follow, format_duration, format_success
from rsd.evaluation.statistics import summarize_success
from rsd.types import EpisodeResult


def episode(init_state_id: int, *, success: bool = True, error: str | None = None) -> EpisodeResult:
    return EpisodeResult("s", 0, "do it", init_state_id, 0, success, 10, error=error, wall_s=30.0)


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with EvaluationProgress(num_planned=10, done=[episode(0)], console=Console(file=out, width=300)) as progress:
        progress.update(episode(1, success=False))
        progress.update(episode(2, success=False, error="RuntimeError: [boom]"))
    first, second = out.getvalue().splitlines()
    assert first.startswith("[2/10] task 0 init 1: failure, 10 steps, 30.0 s | so far 1/2 50.0 % [9.5, 90.5]")
    assert first.endswith("errors 0, ETA 4 min")
    assert "error: RuntimeError: [boom]" in second and second.endswith("errors 1, ETA 4 min")


def test_a_live_table_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    with EvaluationProgress(num_planned=2, done=[], console=console) as progress:
        progress.update(episode(0))
    text = console.export_text()
    assert "1 of 2 episodes · 1/1 100.0 % [20.7, 100.0], errors 0, ETA 30 s" in text and "do it" in text


def test_follow_says_whether_it_was_interrupted():
    def interrupted():
        yield episode(0)
        raise KeyboardInterrupt

    assert follow([episode(0)], num_planned=1, done=[])
    assert not follow(interrupted(), num_planned=2, done=[])


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (720, "12 min"), (11100, "3 h 05 min")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_success_without_episodes():
    assert format_success(summarize_success([])) == "no episode yet"
    assert format_success(summarize_success([episode(0, success=False, error="E: x")])) == "no episode without error"
