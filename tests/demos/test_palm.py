"""How a hand fits between boxes: rectangles by hand-computed gaps, and which grip is taken first."""

import numpy as np
import pytest

from rsd.demos.palm import CLEAR_M, PALM_M, PUSHED_M, ROOM_M, Box, free_grip, gap, height_over, room_to

QUARTER = np.pi / 2
LOW = Box(np.array([0.1, -0.2, 0.45]), np.array([0.04, 0.02, 0.01]))  # a flat one, long along x


def tower(x: float, y: float, half: float = 0.025) -> Box:
    """A neighbour 12 cm tall, so far from the middle of LOW."""
    return Box(LOW.centre + np.array([x, y, 0.05]), np.array([half, half, 0.06]))


@pytest.mark.parametrize(
    ("way", "yaw", "expected"),
    [
        ((0.1, 0.0), 0.0, 0.1 - 0.02 - 0.01),  # half sides 0.02, 0.05 and 0.01, 0.01
        ((0.1, 0.0), QUARTER, 0.1 - 0.05 - 0.01),
        ((0.0, 0.1), 0.0, 0.1 - 0.05 - 0.01),
        ((0.0, 0.04), 0.0, -0.02),  # overlap
        ((0.1, 0.0), np.pi / 4, 0.1 - 0.07 * np.sqrt(0.5) - 0.01),  # a corner towards the side of the other
    ],
)
def test_gap_between_rectangles(way, yaw, expected):
    assert gap(np.array(way), yaw, np.array([0.02, 0.05]), np.array([0.01, 0.01])) == pytest.approx(expected)


def test_a_low_neighbour_is_in_the_way_of_fingers_only():
    flat = Box(LOW.centre + np.array([0.04, 0.06, 0.0]), np.array([0.01, 0.01, 0.01]))
    assert room_to(LOW, np.zeros(2), 0.0, flat) == pytest.approx(0.04 - 0.013 - 0.01 + PUSHED_M)
    assert room_to(LOW, np.zeros(2), 0.0, tower(0.04, 0.06, 0.01)) == pytest.approx(0.04 - PALM_M[0] - 0.01)


@pytest.mark.parametrize(
    ("neighbours", "shift", "degrees"),
    [
        ([], 0.0, 0),
        ([tower(-0.07, 0.1)], 0.0, 0),  # beside the palm
        ([tower(-0.055, 0.1)], 0.01, 0),  # 2 mm of overlap with it
        ([tower(0.055, 0.1)], -0.01, 0),  # away from it on the other side
        ([tower(-0.03, 0.1)], 0.02, -16),  # too far for a shift alone
    ],
)
def test_the_grip_nearest_to_the_middle_that_leaves_room_is_taken(neighbours, shift, degrees):
    way, yaw = free_grip(LOW, 0.0, neighbours)
    np.testing.assert_allclose(way, [shift, 0.0], atol=1e-12)
    assert np.rad2deg(yaw) == pytest.approx(degrees)
    assert all(room_to(LOW, way, yaw, other) > ROOM_M for other in neighbours)


def test_where_no_grip_has_room_the_one_with_the_most_is_taken():
    around = [tower(-0.05, 0.1), tower(0.05, 0.1), tower(-0.05, -0.1), tower(0.05, -0.1)]
    np.testing.assert_allclose(free_grip(LOW, 0.0, around)[0], [0.0, 0.0])


def test_a_wide_object_is_not_gripped_from_a_slant_and_a_short_one_not_at_its_end():
    wide = Box(LOW.centre, np.array([0.04, 0.035, 0.01]))
    short = Box(LOW.centre, np.array([0.02, 0.02, 0.01]))
    assert free_grip(wide, 0.0, [tower(-0.03, 0.1)])[1] == 0.0
    np.testing.assert_allclose(free_grip(short, 0.0, [tower(-0.03, 0.1)])[0], [0.0, 0.0])


def test_an_object_that_lies_along_y_is_gripped_further_along_y():
    along_y = Box(LOW.centre, LOW.half[[1, 0, 2]])
    way, yaw = free_grip(along_y, QUARTER, [tower(0.1, -0.055)])
    np.testing.assert_allclose(way, [0.0, 0.01], atol=1e-12)
    assert yaw == QUARTER


def test_a_hand_passes_over_what_is_near_and_not_over_what_is_far():
    assert height_over(LOW, np.zeros(2), 0.0, [tower(-0.055, 0.1), tower(0.4, 0.0)]) == pytest.approx(0.11 + CLEAR_M)
    assert height_over(LOW, np.zeros(2), 0.0, [tower(0.4, 0.0)]) == pytest.approx(LOW.half[2] + CLEAR_M)


def test_a_hand_comes_in_over_what_it_grips():
    """Lower it tips a bottle over: 4 of 41 demonstrations of LIBERO-Object's task 2 failed, and 8 of 50 episodes."""
    bottle = Box(np.array([0.0, 0.0, 0.073]), np.array([0.018, 0.026, 0.073]))
    assert height_over(bottle, np.zeros(2), 0.0, []) == pytest.approx(0.103)


def test_a_bowl_beside_a_box_does_not_turn_the_hand():
    """LIBERO-Goal's task 6: hands that turned for it taught a policy to miss the box in 17 of 50 episodes."""
    cheese = Box(np.array([0.0, 0.0, 0.009]), np.array([0.041, 0.021, 0.009]))
    bowl = Box(np.array([0.06, 0.12, 0.025]), np.array([0.054, 0.054, 0.025]))
    way, yaw = free_grip(cheese, 0.0, [bowl])
    np.testing.assert_allclose(way, [0.0, 0.0])
    assert yaw == 0.0
