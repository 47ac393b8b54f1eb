"""Where the time of the episodes went."""

import pytest

from rsd.evaluation.time_shares import summarize_time
from rsd.types import EpisodeResult


def episode(wall_s, **time_s):
    return EpisodeResult("s", 0, "do it", 0, 0, True, 10, wall_s=wall_s, time_s=time_s)


def test_shares_with_what_is_left_as_idle():
    one = episode(10.0, reset=1.0, physics=2.0, rendering=3.0, policy=1.0)
    other = episode(10.0, reset=1.0, physics=2.0, rendering=3.0, policy=2.0)
    old = episode(99.0)
    time = summarize_time([one, other, old])
    assert time["num_episodes"] == 2 and time["wall_s"] == 20.0
    assert {part["part"]: part["seconds"] for part in time["parts"]} == {
        "policy": 3.0,
        "physics": 4.0,
        "rendering": 6.0,
        "reset": 2.0,
        "idle": 5.0,
    }
    assert sum(part["share"] for part in time["parts"]) == pytest.approx(1.0)


def test_rounding_is_not_idle():
    """0.45 - (0.15 + 0.1 + 0.1 + 0.1) is 6e-17, which a report refuses."""
    time = summarize_time([episode(0.45, policy=0.15, physics=0.1, rendering=0.1, reset=0.1)])
    assert time["parts"][-1] == {"part": "idle", "seconds": 0.0, "share": 0.0}


def test_rounding_does_not_make_idle_negative():
    time = summarize_time([episode(1.0, reset=0.25, physics=0.25, rendering=0.25, policy=0.2501)])
    assert time["parts"][-1] == {"part": "idle", "seconds": 0.0, "share": 0.0}


def test_old_results_have_no_times():
    assert summarize_time([episode(10.0)]) is None
    assert summarize_time([]) is None
