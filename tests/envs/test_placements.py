"""Which placements are the evaluation's; the state has time, two free bodies, one hinge, and their velocities."""

from types import SimpleNamespace

import numpy as np
import pytest

from rsd.envs.placements import PlacementError, check_placement, nearest_init_state, object_columns

FREE, HINGE = 0, 3
MODEL = SimpleNamespace(njnt=3, jnt_type=[HINGE, FREE, FREE], jnt_qposadr=[0, 1, 8])
COLUMNS = [2, 9]  # of x: behind the time, the hinge, and the first body's seven numbers
NUM_ENTRIES = 1 + 15 + 13


def state(first: tuple[float, float], second: tuple[float, float], **others: float) -> np.ndarray:
    values = np.full(NUM_ENTRIES, others.get("rest", 0.0))
    values[2:4], values[9:11] = first, second
    return values


INIT_STATES = np.stack([state((0.1, 0.1), (0.2, 0.2)), state((0.3, 0.1), (0.2, 0.0))])


def test_columns_are_those_of_free_bodies():
    assert object_columns(MODEL) == COLUMNS


def test_the_farthest_object_along_one_axis_counts():
    number, distance = nearest_init_state(state((0.3, 0.13), (0.21, 0.0)), INIT_STATES, COLUMNS)
    assert number == 1 and distance == pytest.approx(0.03)


def test_a_placement_of_the_evaluation_is_refused_whatever_else_differs():
    same = state((0.3004, 0.1), (0.2, -0.0009), rest=7.0)
    with pytest.raises(PlacementError, match=r"of libero_x task 3 with seed 5 is evaluation init state 1: .* 0\.90 mm"):
        check_placement(same, INIT_STATES, COLUMNS, task="libero_x task 3", seed=5)


def test_one_object_elsewhere_is_another_placement():
    check_placement(state((0.3, 0.1), (0.2, 0.0011)), INIT_STATES, COLUMNS, task="libero_x task 3", seed=5)
