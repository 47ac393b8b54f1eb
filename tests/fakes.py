"""Small real implementations of the protocols, for tests that must not load a simulator or a large model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rsd.types import IMAGE_VIEWS, Observation, Step, Task

STEP_M = 0.05  # how far an action of 1 moves the point
GOAL_RADIUS_M = 0.05
START_MAX_M = 0.3  # episodes begin within this of the origin, in each direction; goals lie far beyond


class PointMassEnv:
    """A point in the unit cube that must reach a goal and close its gripper there.

    Actions have LIBERO's seven dims: the first three move the point by at most STEP_M a step, the rotation turns
    nothing, the last one is the gripper. Proprio has LIBERO's eight dims. The pictures show the point (red) and the
    goal (green), from above in "image" and from the side in "wrist_image". A straight line solves it in about twenty
    steps; `direction` gives the way.
    """

    def __init__(
        self,
        *,
        suite: str = "point_mass",
        task_id: int = 0,
        max_steps: int = 60,
        image_size: int = 256,
        num_init_states: int = 5,
        end_at_success: bool = True,
        instruction: str | None = None,
    ) -> None:
        self.task = Task(
            suite=suite,
            task_id=task_id,
            instruction=instruction or f"move the point to goal {task_id}",
            num_init_states=num_init_states,
            max_steps=max_steps,
            views=IMAGE_VIEWS,
            proprio_dim=8,
            action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            control_hz=20,
            limits=(-1.0, 1.0),
            protocol="point_mass-1",
            versions={"point_mass": "1"},
        )
        self.reset_rendering_s = 0.0
        self.num_renders = 0  # pictures drawn so far, so that tests can hold "observe=False renders nothing"
        self._image_size = image_size
        self._end_at_success = end_at_success
        self._position = np.zeros(3)
        self._goal = np.zeros(3)
        self._gripper = -1.0
        self._running = False  # between a reset and its success, or `close`

    @property
    def direction(self) -> np.ndarray:
        """The action that leads to success: towards the goal, gripper closed once there, [7], float64."""
        offset = self._goal - self._position
        at_goal = float(np.linalg.norm(offset) <= GOAL_RADIUS_M)
        action = np.zeros(7)
        action[:3] = np.clip(offset / STEP_M, -1, 1)
        action[6] = 2 * at_goal - 1
        return action

    def reset(self, init_state_id: int) -> Observation:
        if not 0 <= init_state_id < self.task.num_init_states:
            raise IndexError(f"init_state_id {init_state_id} is not in 0..{self.task.num_init_states - 1}")
        random = np.random.default_rng([self.task.task_id, init_state_id])
        self._position = random.uniform(0.0, START_MAX_M, 3)
        self._goal = random.uniform(0.6, 0.9, 3)
        self._gripper = -1.0
        self._running = True
        observation, self.reset_rendering_s = self._observe()
        return observation

    def init_state(self, init_state_id: int) -> np.ndarray:
        return np.array([self.task.task_id, init_state_id])

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,):
            raise ValueError(f"action has shape {action.shape}; expected (7,)")
        if not np.isfinite(action).all():
            raise ValueError(f"action is not finite: {action}")
        if not self._running:
            raise RuntimeError("call reset() first: there is no episode, or it has ended in success")
        self._position = np.clip(self._position + STEP_M * np.clip(action[:3], -1, 1), 0, 1)
        self._gripper = float(np.clip(action[6], -1, 1))
        success = bool(np.linalg.norm(self._goal - self._position) <= GOAL_RADIUS_M and self._gripper > 0)
        self._running = not (success and self._end_at_success)
        observation, rendering_s = self._observe() if observe else (None, 0.0)
        return Step(observation, success, rendering_s)

    def close(self) -> None:
        self._running = False

    def _observe(self) -> tuple[Observation, float]:
        """What is seen, and the seconds that the pictures took."""
        start = time.perf_counter()
        images = {"image": self._draw((0, 1)), "wrist_image": self._draw((0, 2))}
        rendering_s = time.perf_counter() - start
        opening = 0.02 * (1 - self._gripper)
        proprio = np.concatenate([self._position, np.zeros(3), [opening, -opening]])  # [P]
        return Observation(images=images, proprio=proprio, instruction=self.task.instruction), rendering_s

    def _draw(self, axes: tuple[int, int]) -> np.ndarray:
        self.num_renders += 1
        size = self._image_size
        picture = np.full((size, size, 3), 60, dtype=np.uint8)
        half = max(size // 32, 1)
        for point, color in ((self._goal, (40, 200, 40)), (self._position, (220, 40, 40))):
            column, row = (int(point[axis] * (size - 1)) for axis in axes)
            picture[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1] = color
        return picture


def point_mass_tasks(*, num_tasks: int, **options: Any) -> list[Task]:
    """What the environments of the first tasks say of themselves; options are PointMassEnv's."""
    return [PointMassEnv(task_id=task_id, **options).task for task_id in range(num_tasks)]
