"""Every choice of the group `env` builds the environment's constructor call."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rsd.envs.libero import LiberoEnv

CHOICES = sorted((Path(__file__).parents[2] / "conf" / "env").glob("libero_*.yaml"))
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_choice(path):
    config = OmegaConf.create({"env": OmegaConf.load(path)})
    make = instantiate(config.env.make)
    assert make.func is LiberoEnv
    assert make.keywords["suite"] == config.env.suite == path.stem
    assert make.keywords["max_steps"] == config.env.max_steps == MAX_STEPS[path.stem]
    inspect.signature(LiberoEnv).bind(**make.keywords, task_id=3)


def test_all_four_suites_are_there():
    assert {path.stem for path in CHOICES} >= set(MAX_STEPS)
