"""The point mass as something to collect demonstrations from; imported by worker processes through the config."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from rsd.envs.placements import PlacementError
from rsd.types import Observation, Step
from tests.fakes import PointMassEnv


class RandomPointMassEnv(PointMassEnv):
    """Random placements, and what a simulator may do besides.

    Args:
        seconds: Each episode takes this long at least.
        deadly: Task that kills the process: always ("3"), or once for each new file in `marks` ("3 once").
        silent: The first episode of all stops its process (SIGSTOP) in its first step; `stopped` in `marks` names it.
        broken: Task whose construction fails.
        reserved: Placement seeds with this remainder of 5 are the evaluation's.
        marks: Folder for notes between processes; every started episode leaves a file there.
        others: Arguments of LiberoEnv that mean nothing here.
    """

    def __init__(
        self,
        *,
        task_id: int,
        marks: str,
        seconds: float = 0.0,
        deadly: str = "",
        silent: bool = False,
        broken: int = -1,
        reserved: int = -1,
        end_at_success: bool = True,
        **others: object,
    ) -> None:
        super().__init__(task_id=task_id, end_at_success=end_at_success)
        if task_id == broken:
            raise ValueError(f"task {task_id} has another goal")
        self._marks, self._seconds, self._deadly = Path(marks), seconds, deadly
        self._silent, self._reserved = silent, reserved
        self.placement = 0

    def reset_random(self, seed: int) -> Observation:
        self.placement = seed
        if seed % 5 == self._reserved:
            raise PlacementError(f"seed {seed} is an evaluation init state")
        (self._marks / f"task-{self.task.task_id}-seed-{seed}-pid-{os.getpid()}").touch()
        time.sleep(self._seconds)
        task, _, once = self._deadly.partition(" ")
        if task == str(self.task.task_id):
            dead = self._marks / "dead"
            if not once or not dead.exists():
                dead.touch()
                os.kill(os.getpid(), 9)
        return self.reset(seed % self.task.num_init_states)

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        stopped = self._marks / "stopped"
        if self._silent and not stopped.exists():
            stopped.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().step(action, observe)


class PointMassExpert:
    """Goes straight for the goal, and gives up on every fifth placement seed."""

    def __init__(self, env: RandomPointMassEnv) -> None:
        self._env = env

    def begin(self) -> None:
        pass

    def scene_is_as_described(self) -> bool:
        return self._env.placement % 5 != 1

    def act(self, observation) -> tuple[np.ndarray, bool]:
        action = self._env.direction
        return (action if self._env.placement % 5 else -action), True

    def joint_state(self) -> np.ndarray:
        return np.zeros(7)

    def holds_something(self) -> bool:
        return False
