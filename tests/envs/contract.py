"""Every promise of the Env protocol as a test. A subclass gives a fixture `env` and `succeed`, and inherits all.

class TestMyEnv(EnvContract):
    @pytest.fixture
    def env(self): ...
    def succeed(self, env): ...
"""

from __future__ import annotations

import numpy as np
import pytest

from rsd.types import Env, Observation


class EnvContract:
    """Pictures are 256 x 256 unless the subclass says otherwise."""

    image_size = 256
    num_steps = 6

    @pytest.fixture
    def env(self) -> Env:
        raise NotImplementedError

    def succeed(self, env: Env) -> bool:
        """From a running episode to its success; returns what the last step returned."""
        raise NotImplementedError

    def actions(self, env: Env) -> np.ndarray:
        """A few small random motions, [num_steps, A]."""
        actions = np.random.default_rng(7).uniform(-0.5, 0.5, (self.num_steps, env.task.action_dim))
        actions[:, -1] = -1.0  # gripper open
        return actions

    def check(self, observation: Observation, env: Env) -> None:
        assert tuple(observation.images) == env.task.views
        for picture in observation.images.values():
            assert picture.shape == (self.image_size, self.image_size, 3)
            assert picture.dtype == np.uint8
            assert picture.flags["C_CONTIGUOUS"]
            assert picture.max() > picture.min()
        assert observation.proprio.shape == (env.task.proprio_dim,)
        assert np.issubdtype(observation.proprio.dtype, np.floating)
        assert np.isfinite(observation.proprio).all()
        assert observation.instruction == env.task.instruction

    def test_describes_its_task(self, env: Env) -> None:
        task = env.task
        assert task.suite and task.instruction and task.protocol and task.versions
        assert task.task_id >= 0 and task.num_init_states > 0 and task.max_steps > 0 and task.control_hz > 0
        assert task.action_dim == len(task.action_names) and task.limits[0] < task.limits[1]

    def test_says_how_long_pictures_took(self, env: Env) -> None:
        env.reset(0)
        assert env.reset_rendering_s > 0
        assert env.step(self.actions(env)[0]).rendering_s > 0
        assert env.step(self.actions(env)[1], observe=False).rendering_s == 0

    def test_reset_and_step_return_observations(self, env: Env) -> None:
        self.check(env.reset(0), env)
        step = env.step(self.actions(env)[0])
        self.check(step.observation, env)
        assert step.success is False

    def test_observations_are_not_overwritten_by_later_steps(self, env: Env) -> None:
        first = env.reset(0)
        picture, proprio = first.images["image"].copy(), first.proprio.copy()
        for action in self.actions(env):
            env.step(action)
        np.testing.assert_array_equal(first.images["image"], picture)
        np.testing.assert_array_equal(first.proprio, proprio)

    def test_step_leaves_the_action_alone(self, env: Env) -> None:
        env.reset(0)
        action = self.actions(env)[0]
        given = action.copy()
        env.step(given)
        np.testing.assert_array_equal(given, action)

    def test_unobserved_steps_give_none_and_the_same_physics(self, env: Env) -> None:
        env.reset(0)
        for action in self.actions(env):
            seen = env.step(action).observation
        env.reset(0)
        for action in self.actions(env)[:-1]:
            assert env.step(action, observe=False).observation is None
        unseen = env.step(self.actions(env)[-1]).observation
        self.assert_equal(seen, unseen)

    def test_an_episode_depends_on_its_init_state_alone(self, env: Env) -> None:
        first = env.reset(0)
        assert not np.array_equal(env.reset(1).images["image"], first.images["image"])
        for action in self.actions(env):
            env.step(action, observe=False)
        self.assert_equal(env.reset(0), first)

    def test_the_callers_random_numbers_do_not_matter_and_are_not_touched(self, env: Env) -> None:
        np.random.seed(1)  # noqa: NPY002
        first = env.reset(0)
        drawn = np.random.random()  # noqa: NPY002
        np.random.seed(1)  # noqa: NPY002
        assert np.random.random() == drawn  # noqa: NPY002
        self.assert_equal(env.reset(0), first)

    @pytest.mark.parametrize("beyond", [-1, 0])
    def test_unknown_init_state_raises_index_error(self, env: Env, beyond: int) -> None:
        with pytest.raises(IndexError, match="init_state_id"):
            env.reset(beyond if beyond < 0 else env.task.num_init_states)

    def test_bad_actions_raise_value_error_and_change_nothing(self, env: Env) -> None:
        env.reset(0)
        expected = env.step(self.actions(env)[0]).observation
        env.reset(0)
        num_dims = env.task.action_dim
        for bad in (np.zeros(num_dims - 1), np.zeros((1, num_dims)), np.full(num_dims, np.nan)):
            with pytest.raises(ValueError, match="action"):
                env.step(bad)
        self.assert_equal(env.step(self.actions(env)[0]).observation, expected)

    def test_step_before_reset_raises_runtime_error(self, env: Env) -> None:
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            env.step(self.actions(env)[0])

    def test_step_after_success_raises_runtime_error_until_reset(self, env: Env) -> None:
        env.reset(0)
        assert self.succeed(env) is True
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            env.step(self.actions(env)[0])
        self.check(env.reset(0), env)
        assert env.step(self.actions(env)[0]).success is False

    def test_close_twice(self, env: Env) -> None:
        env.reset(0)
        env.close()
        env.close()
        with pytest.raises(RuntimeError):
            env.step(self.actions(env)[0])

    @staticmethod
    def assert_equal(one: Observation, other: Observation) -> None:
        """Equal bit for bit."""
        assert set(one.images) == set(other.images)
        for view, picture in one.images.items():
            np.testing.assert_array_equal(picture, other.images[view])
        np.testing.assert_array_equal(one.proprio, other.proprio)
        assert one.instruction == other.instruction
