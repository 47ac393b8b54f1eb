"""PointMassEnv keeps the Env contract, and counts its pictures."""

import numpy as np
import pytest

from tests.envs.contract import EnvContract
from tests.fakes import PointMassEnv


class TestPointMassEnv(EnvContract):
    @pytest.fixture
    def env(self):
        env = PointMassEnv(task_id=1)
        yield env
        env.close()

    def succeed(self, env):
        return any(env.step(env.direction, observe=False).success for _ in range(env.task.max_steps))


def test_unobserved_steps_render_nothing():
    env = PointMassEnv()
    env.reset(0)
    before = env.num_renders
    env.step(np.zeros(7), observe=False)
    assert env.num_renders == before
    env.step(np.zeros(7))
    assert env.num_renders == before + 2
