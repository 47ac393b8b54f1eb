"""Environments that withhold something from the policy: does it use its pictures, its instruction, its proprioception?

The simulation, and what counts as success, are those of the environment inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from rsd.envs.suites import load_task
from rsd.settings import Count, Natural, checked
from rsd.types import Env, Observation, Step, Task


class Ablated:
    """An Env whose observations are changed; subclasses say how.

    Args:
        make: Makes the environment inside, from task_id=.
        task_id: Which task.
    """

    @checked
    def __init__(self, *, make: Callable[..., Env], task_id: Natural) -> None:
        self.env = make(task_id=task_id)

    @property
    def task(self) -> Task:
        """See `Env`: the task as it is, whatever the policy is shown."""
        return self.env.task

    @property
    def reset_rendering_s(self) -> float:
        """See `Env`."""
        return self.env.reset_rendering_s

    def reset(self, init_state_id: int) -> Observation:
        """See `Env.reset`."""
        return self.change(self.env.reset(init_state_id))

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        """See `Env.step`."""
        step = self.env.step(action, observe)
        if step.observation is None:
            return step
        return dataclasses.replace(step, observation=self.change(step.observation))

    def close(self) -> None:
        """See `Env.close`."""
        self.env.close()

    def change(self, observation: Observation) -> Observation:
        """What the policy is shown instead."""
        raise NotImplementedError


class BlackPictures(Ablated):
    """Nothing can be seen."""

    def change(self, observation: Observation) -> Observation:
        images = {view: np.zeros_like(picture) for view, picture in observation.images.items()}
        return dataclasses.replace(observation, images=images)


class ZeroProprio(Ablated):
    """All of proprio is zero: a hand at the world's origin with a closed gripper."""

    def change(self, observation: Observation) -> Observation:
        return dataclasses.replace(observation, proprio=np.zeros_like(observation.proprio))


class OtherInstruction(Ablated):
    """The words are those of the suite's next task (after the last comes the first).

    Args:
        num_tasks: Tasks of the suite.
    """

    @checked
    def __init__(self, *, make: Callable[..., Env], task_id: Natural, num_tasks: Count) -> None:
        super().__init__(make=make, task_id=task_id)
        self._shown = load_task(self.task.suite, (task_id + 1) % num_tasks).instruction

    def change(self, observation: Observation) -> Observation:
        return dataclasses.replace(observation, instruction=self._shown)


def with_ablation(make_env: Callable[..., Env], ablation: Callable[..., Env] | None) -> Callable[..., Env]:
    """What makes the environments of an evaluation: `make_env` itself without an ablation, else the ablation of it."""
    return make_env if ablation is None else partial(ablation, make=make_env)
