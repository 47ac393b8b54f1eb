"""The weights in released/ are whole, and are found and loaded as eval.py does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

import rsd
from rsd.commands.configured import configured_policy
from rsd.types import Observation, Request

ROOT = Path(__file__).parents[1]
STOVE = "pick up the black bowl on the stove and place it on the plate"


@pytest.fixture(scope="module")
def policy():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("eval", ["experiment=released", "decoding=l1"])
    with open_dict(cfg):
        cfg.paths.checkpoints = str(ROOT / cfg.paths.checkpoints)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield configured_policy(cfg, [])
    torch.set_num_threads(before)


def test_the_folder_is_the_same_policy(policy):
    (expected,) = policy.predict([Request(observation(90, STOVE), 0)])
    (chunk,) = rsd.load(ROOT / "released").predict([Request(observation(90, STOVE), 0)])
    np.testing.assert_array_equal(chunk.actions, expected.actions)


def observation(level: int, instruction: str) -> Observation:
    images = {view: np.full((256, 256, 3), level, dtype=np.uint8) for view in ("image", "wrist_image")}
    return Observation(images, np.array([-0.2, 0.0, 1.17, 3.14, 0.0, 0.0, 0.04, -0.04]), instruction)


def test_pictures_and_words_change_the_chunk(policy):
    cabinet = "pick up the black bowl on the wooden cabinet and place it on the plate"
    shown = [observation(0, STOVE), observation(255, STOVE), observation(0, cabinet)]
    black, white, other = (policy.predict([Request(one, 0)])[0].actions for one in shown)
    assert black.shape == (8, 7) and np.isin(black[:, 6], (-1, 1)).all()
    assert np.abs(black - white).max() > 0.01 and np.abs(black - other).max() > 0.01


def test_words_it_was_not_trained_on_are_refused(policy):
    with pytest.raises(ValueError, match=r"has words \['kettle'\] that the base model was not trained on"):
        policy.predict([Request(observation(0, "pick up the kettle"), 0)])
