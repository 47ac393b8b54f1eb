"""What demonstrations do over time, on motions that were made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rsd.data.motion import correlations, dim_figures, gripper_events, idle_figures, idle_steps, jumps, responses


def test_figures_of_a_dim_leave_out_and_count_what_is_not_finite():
    values = np.array([[0.0, 5], [1, 5], [2, 5], [3, 5], [np.nan, 5], [4, 5]])
    moving, still = dim_figures(values)
    assert (moving["min"], moving["median"], moving["max"], moving["num_bad"]) == (0, 2, 4, 1)
    assert moving["std"] == pytest.approx(np.sqrt(2)) and moving["distinct"] == 5
    assert sum(moving["histogram"]["counts"]) == 5
    assert (still["std"], still["distinct"], still["histogram"]["counts"][0]) == (0, 1, 6)
    assert dim_figures(np.full((3, 1), np.inf)) == [{"num_bad": 3}]


def test_idle_steps_rest_in_every_dim_and_leave_the_gripper_as_it_is():
    motion = np.array([[0, 0], [0, 0.001], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0]], dtype=float)
    gripper = np.array([[0], [0], [0], [1], [1], [1], [1], [1]], dtype=float)
    (idle,) = idle_steps([motion], [gripper])
    assert idle.tolist() == [True, True, False, False, False, True, True, True]  # the gripper closes in step 3
    found = idle_figures([idle, np.ones(2, dtype=bool)])
    assert found["share"] == 0.7 and found["per_episode"] == [5 / 8, 1]
    assert (found["at_start"], found["at_end"], found["inside"]) == ([2, 2], [3, 0], [0, 0])


def test_gripper_events_are_the_steps_of_the_turns():
    events = gripper_events(np.array([1, 1, 0, 0, 1, 0.2]))
    assert (events.closings, events.openings, events.starts_closed) == ([2, 5], [4], False)
    assert gripper_events(np.zeros(3)) == ([], [], True)
    assert gripper_events(np.zeros(0)) == ([], [], False)


def test_a_jump_is_far_more_than_the_dim_otherwise_does():
    t = np.linspace(0, 6, 200)
    smooth = np.stack([np.sin(t), np.cos(t)], axis=1)
    broken = smooth.copy()
    broken[120:, 1] += 5
    assert jumps([smooth, smooth]) == []
    (found,) = jumps([smooth, broken])
    assert (found["episode"], found["step"], found["dim"]) == (1, 120, 1)
    assert found["change"] == pytest.approx(5, abs=0.05)
    assert jumps([smooth, broken], skip=[1]) == [] and jumps([]) == [] and jumps([smooth[:1]]) == []


def test_noise_jumps_nowhere():
    noise = [np.random.default_rng(seed).normal(size=(100, 3)) for seed in range(5)]
    assert jumps(noise) == []


@pytest.fixture
def moved():
    """Noise as actions of two dims, and the state that 0.05 of it moves, in the other order."""
    random = np.random.default_rng(0)
    actions = [random.normal(size=(60, 2)) for _ in range(4)]
    before = [np.concatenate([np.zeros((1, 2)), np.cumsum(0.05 * one, axis=0)[:-1]])[:, ::-1] for one in actions]
    return actions, before


def test_a_step_shows_in_the_next_difference_with_its_unit_and_its_order(moved):
    first, second = responses(*moved)
    assert (first["kind"], first["state_dim"], second["state_dim"]) == ("step", 1, 0)
    assert first["step"] == pytest.approx(1) and first["slope"] == pytest.approx(0.05)
    assert abs(first["own"]) < 0.3 and abs(first["early"]) < 0.4


def test_a_goal_shows_in_the_next_value():
    t = np.linspace(0, 3, 50)
    states = [np.stack([np.sin(t + k), 57.3 * np.cos(t + k)], axis=1) for k in range(3)]
    goals = [np.concatenate([one[1:], one[-1:]]) * [1, 1 / 57.3] for one in states]
    same, other_unit = responses(goals, states)
    assert (same["kind"], same["state_dim"]) == ("goal", 0) and same["slope"] == pytest.approx(1)
    assert other_unit["kind"] == "goal" and other_unit["slope"] == pytest.approx(57.3)


def test_states_that_were_recorded_late_fit_the_step_before(moved):
    actions, before = moved
    late = [np.concatenate([one[1:], one[-1:]]) for one in before]
    first, _ = responses(actions, late)
    assert first["kind"] == "unclear" and abs(first["step"]) < 0.3
    assert first["early"] > 0.9


def test_without_states_nothing_responds():
    assert responses([], []) == []
    assert responses([np.ones((3, 2))], [np.zeros((3, 0))]) == []
    assert correlations(np.ones((4, 1)), np.arange(4.0)[:, None]).tolist() == [[0]]
