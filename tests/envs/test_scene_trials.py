"""What the trials conclude from states and pictures; the simulator itself is tried in tests/sim."""

import numpy as np
import pytest

from rsd.envs.scene_trials import BLOCKS, REFERENCE, block_means, judge_pictures, judge_rest
from rsd.types import Observation

POSITIONS, VELOCITIES = [1, 4], [7, 10]  # two objects: time, positions, velocities
BEFORE = np.zeros(13)


def after(**changes: float) -> np.ndarray:
    """The state in which the second object has fallen by 7 cm, and what else is said."""
    state = BEFORE.copy()
    state[6] = -0.07
    for name, value in changes.items():
        state[{"x": 4, "y": 5, "speed": 12}[name]] = value
    return state


def test_objects_that_fell_and_rest_pass():
    trial = judge_rest(BEFORE, after(x=0.0146, speed=0.0001), POSITIONS, VELOCITIES)
    assert trial.passed and trial.found == ("objects drifted 14.6 mm and move at 0.1 mm/s after the waiting steps")


@pytest.mark.parametrize("changes", [{"y": -0.034}, {"speed": 0.059}])
def test_objects_that_slide_fail_and_the_version_is_named(changes):
    trial = judge_rest(BEFORE, after(**changes), POSITIONS, VELOCITIES)
    assert not trial.passed
    assert "expected at most 20 mm and 5 mm/s" in trial.found and trial.text.endswith("pip install mujoco==3.2.3")


def observation(change) -> Observation:
    """Pictures of the reference's block colours, each block plain, changed."""
    images = {}
    for view, (_, blocks) in REFERENCE.items():
        colours = np.frombuffer(bytes.fromhex(blocks), dtype=np.uint8).reshape(BLOCKS, BLOCKS, 3)
        images[view] = change(colours.repeat(64, axis=0).repeat(64, axis=1))
    return Observation(images, np.zeros(8), "")


def test_other_pixels_with_the_same_colours_pass():
    trial = judge_pictures(observation(lambda picture: picture + 3))
    assert trial.passed and "differ by up to 3.0 of 255 levels, as other drivers' do" in trial.found


@pytest.mark.parametrize(
    "change",
    [np.zeros_like, lambda picture: picture[:, ::-1], lambda picture: picture[::-1], lambda picture: picture // 10 * 9],
    ids=["black", "mirrored", "upside down", "darker"],
)
def test_wrong_pictures_fail(change):
    trial = judge_pictures(observation(change))
    assert not trial.passed and trial.text.endswith("try MUJOCO_GL=osmesa")


def test_block_means():
    picture = np.zeros((8, 8, 3))
    picture[0:2, 6:8, 1] = [[4, 4], [4, 8]]
    means = block_means(picture)
    assert means.shape == (4, 4, 3) and means[0, 3].tolist() == [0, 5, 0] and means.sum() == 5
