"""Quaternion to axis-angle, by hand."""

import numpy as np

from rsd.envs.rotation import axis_angle


def test_quarter_turn_about_z():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(axis_angle(np.array([0, 0, half, half])), [0, 0, np.pi / 2])


def test_the_sign_is_not_canonical():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(axis_angle(np.array([0, 0, -half, -half])), [0, 0, -1.5 * np.pi])


def test_no_rotation_is_zero_and_w_is_clipped():
    for w in (1.0, -1.0, 1.0000001):
        np.testing.assert_array_equal(axis_angle(np.array([0.0, 0.0, 0.0, w])), np.zeros(3))


def test_the_argument_is_left_alone():
    quaternion = np.array([0.0, 0.0, 0.0, 1.5])
    axis_angle(quaternion)
    assert quaternion[3] == 1.5
