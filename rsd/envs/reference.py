"""LIBERO's own OffScreenRenderEnv, driven by the steps of OpenVLA-OFT's evaluation: what LiberoEnv must equal.

For the test that holds them equal and for the benchmark. Every step renders, every reset compiles the scene.
"""

from __future__ import annotations

import numpy as np

from rsd.envs.gl import check_simulator
from rsd.envs.rotation import axis_angle
from rsd.envs.suites import load_task, quiet, silence_robosuite
from rsd.types import Observation


class ReferenceEnv:
    """A plain OffScreenRenderEnv with two cameras.

    Args:
        suite, task_id: Which task.
        image_size: Height and width of the pictures.
    """

    def __init__(self, suite: str, task_id: int, image_size: int = 256) -> None:
        check_simulator()
        silence_robosuite()
        task = load_task(suite, task_id)
        self.instruction = task.instruction
        self.init_states = task.init_states
        with quiet():
            from libero.libero.envs import OffScreenRenderEnv

            self.env = OffScreenRenderEnv(
                bddl_file_name=str(task.bddl_file), camera_heights=image_size, camera_widths=image_size
            )
        self.num_initializers = len(self.env.env.object_property_initializers)

    def reset(self, init_state_id: int | None, seed: int = 0, num_wait_steps: int = 10) -> Observation:
        """The first episode of a fresh environment seeded with `seed`; init state None: from its random placement."""
        del self.env.env.object_property_initializers[self.num_initializers :]  # LIBERO adds some at every reset
        self._make_current()
        with quiet():
            self.env.seed(seed)
            self.env.reset()
        random = init_state_id is None
        observables = self.env.set_init_state(self.env.get_sim_state() if random else self.init_states[init_state_id])
        observation = self._observation(observables)
        for _ in range(num_wait_steps):
            observation, _ = self.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        return observation

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        """Execute one action [7]; returns (observation, success)."""
        self._make_current()
        observables, _, success, _ = self.env.step(action.tolist())
        return self._observation(observables), success

    def close(self) -> None:
        self._make_current()
        self.env.close()

    def _make_current(self) -> None:
        """robosuite draws into, and deletes from, whichever GL context is current: ours, not another environment's."""
        self.env.sim._render_context_offscreen.gl_ctx.make_current()

    def _observation(self, observables: dict[str, np.ndarray]) -> Observation:
        cameras = {"image": "agentview_image", "wrist_image": "robot0_eye_in_hand_image"}
        images = {view: np.ascontiguousarray(observables[name][::-1, ::-1]) for view, name in cameras.items()}
        pose = observables["robot0_eef_pos"], axis_angle(observables["robot0_eef_quat"])
        proprio = np.concatenate([*pose, observables["robot0_gripper_qpos"]])
        return Observation(images=images, proprio=proprio, instruction=self.instruction)
