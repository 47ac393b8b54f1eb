"""robosuite's control loop without the work it repeats: same bits, two thirds of the time.

Each of the 25 physics steps of a control step runs MuJoCo's forward dynamics three times on the same positions and
velocities: once in robosuite's loop, once in its controller, once inside mj_step. The stages that depend on positions
and velocities only (kinematics, inertia, collisions, bias forces) give the same result each time, so only the first
call needs them. The acceleration stage cannot be skipped: each run moves the constraint solver's warm start, and with
it the last bits of the trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

BAD_VALUE = 1e10  # MuJoCo's mjMAXVAL: larger values or NaN make mj_step reset the simulation


class SharedStages:
    """Takes over `forward` and `step` of one robosuite MjSim. Outside `control_step` both behave as before.

    Args:
        sim: robosuite.utils.binding_utils.MjSim.

    Raises:
        ValueError: the model integrates with Runge-Kutta, whose step cannot be split.
    """

    def __init__(self, sim: Any) -> None:
        import mujoco

        self._mujoco = mujoco
        self._model, self._data = sim.model._model, sim.data._data
        if self._model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            raise ValueError("the model integrates with RK4; MuJoCo can split the steps of Euler and implicit only")
        self._skip_to_acceleration = int(mujoco.mjtStage.mjSTAGE_VEL)
        self._inside = False
        self._fresh = False  # whether the stages in data belong to its positions and velocities
        sim.forward = self._forward
        sim.step = self._step

    @contextmanager
    def control_step(self) -> Iterator[None]:
        """Inside, nobody but MuJoCo's integrator may change positions, velocities or the model."""
        self._inside, self._fresh = True, False
        try:
            yield
        finally:
            self._inside = False

    def _forward(self) -> None:
        if self._inside and self._fresh:
            self._mujoco.mj_forwardSkip(self._model, self._data, self._skip_to_acceleration, 0)
        else:
            self._mujoco.mj_forward(self._model, self._data)
        self._fresh = True

    def _step(self, with_udd: bool = True) -> None:
        if self._inside and self._fresh and self._is_sane():
            self._mujoco.mj_step2(self._model, self._data)
        else:
            self._mujoco.mj_step(self._model, self._data)
        self._fresh = False

    def _is_sane(self) -> bool:
        return bool((np.abs(self._data.qpos) < BAD_VALUE).all() and (np.abs(self._data.qvel) < BAD_VALUE).all())
