"""What the terminal says."""

import io

import pytest
from rich.console import Console

from rsd.evaluation.statistics import summarize_success
from rsd.evaluation.terminal import EvaluationProgress, follow, format_success, show_report
from rsd.types import EpisodeResult


def episode(init_state_id: int, *, task_id=0, success: bool = True, error: str | None = None) -> EpisodeResult:
    return EpisodeResult("s", task_id, "do it", init_state_id, 0, success, 10, error=error, wall_s=30.0)


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_where_there_is_no_terminal():
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=40, soft_wrap=True)
    with EvaluationProgress(num_planned=10, done=[episode(0)], console=console, clock=clock) as progress:
        clock.now += 40
        progress.update(episode(1, success=False))
        clock.now += 40
        progress.update(episode(2, success=False, error="RuntimeError: [boom]"))
        progress.update(episode(0, task_id=3))
    first, second, _, *summary = out.getvalue().splitlines()
    assert first == "[2/10] task 0 init 1: failure, 10 steps, 30 s | 1/2 50.0 %, ETA 5 min"
    assert "error: RuntimeError: [boom]" in second and second.endswith("1/2 50.0 %, 1 error, ETA 5 min")
    assert summary == ["task 0: 1/2 50.0 % [9.5, 90.5], 1 error  do it", "task 3: 1/1 100.0 % [20.7, 100.0]  do it"]


def test_the_time_left_counts_the_wall_clock_and_not_the_episodes():
    """Four workers, episodes of 30 s each: four end every 30 s, and 12 more take 90 s."""
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=300)
    with EvaluationProgress(num_planned=17, done=[episode(9)], console=console, clock=clock) as progress:
        clock.now += 30
        for init_state_id in range(4):
            progress.update(episode(init_state_id))
    assert out.getvalue().splitlines()[3].endswith("ETA 90 s")


def test_a_live_table_on_a_terminal():
    console, clock = Console(file=io.StringIO(), force_terminal=True, width=120, record=True), Clock()
    with EvaluationProgress(num_planned=2, done=[], console=console, clock=clock) as progress:
        console.print("rich draws the live table below such a line")
        clock.now += 20
        progress.update(episode(0))
    text = console.export_text()
    assert "ETA after the first episode" in text
    assert "1 of 2 episodes · 1/1 100.0 % [20.7, 100.0], ETA 20 s" in text and "do it" in text


def test_a_live_table_of_more_tasks_than_fit_shows_the_latest_and_in_the_end_all():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=8, record=True)
    with EvaluationProgress(num_planned=9, done=[], console=console) as progress:
        for task_id in range(9):
            progress.update(episode(0, task_id=task_id))
        during = console.export_text(clear=True)
    rows = [line.split()[0] for line in during.splitlines() if line.rstrip().endswith("do it")]
    assert rows[-4:] == ["5", "6", "7", "8"] and "and 5 more tasks" in during
    rows = [line.split()[0] for line in console.export_text().splitlines() if line.rstrip().endswith("do it")]
    assert rows[-9:] == list("012345678")


def test_follow_says_whether_it_was_interrupted():
    def interrupted():
        yield episode(0)
        raise KeyboardInterrupt

    assert follow([episode(0)], num_planned=1, done=[])
    assert not follow(interrupted(), num_planned=2, done=[])


def test_success_without_episodes():
    assert format_success(summarize_success([])) == "no episode yet"
    assert format_success(summarize_success([episode(0, success=False, error="E: x")])) == "no episode without error"


@pytest.mark.parametrize(
    ("stopped", "state"), [(None, "incomplete: 2 of 5"), ({"verdict": "above"}, "stopped early: 2 of 5")]
)
def test_the_last_words_say_why_episodes_are_missing(stopped, state, tmp_path, capsys):
    report = {"success": summarize_success([episode(0), episode(1)]), "complete": False, "num_planned": 5}
    caveat = {"severity": "bad", "title": "Ablation: black_pictures.", "text": "Inputs were withheld."}
    show_report(report | {"stopped": stopped, "caveats": [caveat]}, tmp_path)
    out = capsys.readouterr().out
    assert "note: Ablation: black_pictures. Inputs were withheld.\n" in out
    assert f"{state} episodes, success 2/2 100.0 %" in out and str(tmp_path / "report.html") in out
