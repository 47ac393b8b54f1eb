"""Environments that withhold something from the policy: does it use its pictures, its instruction, its proprioception?

Two of them break cameras in the middle of an episode, as it happens on a robot: whoever skips calls of the base model
must not become surer by that. The simulation, and what counts as success, are those of the environment inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np

from rsd.envs.suites import load_task
from rsd.errors import SettingError
from rsd.settings import Count, Length, Natural, checked
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
        self.init_state = getattr(self.env, "init_state", None)  # where the environment inside tells its own

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


class BrokenCameras(Ablated):
    """Some cameras fail in the middle of an episode; subclasses say how.

    Args:
        views: Which; None: all.
        start: Control step from which on.
    """

    OPTIONS = ("views", "start")  # that are told of it

    @checked
    def __init__(
        self,
        *,
        make: Callable[..., Env],
        task_id: Natural,
        views: Annotated[Sequence[str], Length()] | None,
        start: Natural,
    ) -> None:
        super().__init__(make=make, task_id=task_id)
        self._views = self.task.views if views is None else tuple(views)
        _check_views(self._views, self.task)
        self._start, self._num_steps = start, 0

    def reset(self, init_state_id: int) -> Observation:
        """See `Env.reset`."""
        self._num_steps = 0
        return super().reset(init_state_id)

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        """See `Env.step`."""
        self._num_steps += 1
        return super().step(action, observe)

    def change(self, observation: Observation) -> Observation:
        if self._num_steps < self._start:
            return observation
        return dataclasses.replace(observation, images={**observation.images, **self.shown(observation.images)})

    def shown(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures of the broken cameras, from those that they would have shown."""
        raise NotImplementedError


class CameraOutage(BrokenCameras):
    """They show black pictures."""

    def shown(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {view: np.zeros_like(images[view]) for view in self._views}


class FrozenCamera(BrokenCameras):
    """They go on showing the first picture that is asked for from then on."""

    def reset(self, init_state_id: int) -> Observation:
        """See `Env.reset`."""
        self._last: dict[str, np.ndarray] = {}
        return super().reset(init_state_id)

    def shown(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._last = self._last or {view: images[view].copy() for view in self._views}
        return self._last


def describe_ablation(ablation: Callable[..., Env] | None, tasks: Sequence[Task]) -> str | None:
    """What plan.json says of an ablation: its class, and options of it that change what is shown.

    Args:
        ablation: Makes the environment from make= and task_id=.
        tasks: Those of the suite.

    Raises:
        SettingError: it is about a view that they do not have.
    """
    if ablation is None:
        return None
    kind, given = _parts(ablation)
    if isinstance(views := given.get("views"), list | tuple):
        _check_views(views, tasks[0])
    told = ", ".join(f"{name}={given.get(name)}" for name in getattr(kind, "OPTIONS", ()))
    return f"{kind.__name__}({told})" if told else str(kind.__name__)


def _parts(ablation: Callable[..., Env]) -> tuple[Any, Mapping[str, Any]]:
    return (ablation.func, ablation.keywords) if isinstance(ablation, partial) else (ablation, {})


def _check_views(views: Sequence[str], task: Task) -> None:
    if unknown := [view for view in views if view not in task.views]:
        raise SettingError(f"ablation.views has {unknown}; the pictures of {task.suite} are {list(task.views)}")


def with_ablation(make_env: Callable[..., Env], ablation: Callable[..., Env] | None) -> Callable[..., Env]:
    """What makes the environments of an evaluation: `make_env` itself without an ablation, else the ablation of it."""
    return make_env if ablation is None else partial(ablation, make=make_env)
