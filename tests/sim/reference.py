"""LIBERO's own OffScreenRenderEnv, driven by the steps of OpenVLA-OFT's evaluation: what LiberoEnv must equal."""

from __future__ import annotations

import numpy as np

from rsd.envs.suites import load_task, quiet


class ReferenceEnv:
    """A plain OffScreenRenderEnv: everything computed and rendered at every step, hard resets."""

    def __init__(self, suite: str, task_id: int, image_size: int = 256) -> None:
        task = load_task(suite, task_id)
        self.init_states = task.init_states
        with quiet():
            from libero.libero.envs import OffScreenRenderEnv

            self.env = OffScreenRenderEnv(
                bddl_file_name=str(task.bddl_file), camera_heights=image_size, camera_widths=image_size
            )
        self.num_initializers = len(self.env.env.object_property_initializers)

    def reset(self, init_state_id: int | None, seed: int = 0, num_wait_steps: int = 10) -> dict[str, np.ndarray]:
        """The first episode of a fresh environment with this seed; with None, from its random placement."""
        del self.env.env.object_property_initializers[self.num_initializers :]  # LIBERO adds some at every reset
        self._make_current()
        with quiet():
            self.env.seed(seed)
            self.env.reset()
        random = init_state_id is None
        observation = self.env.set_init_state(self.env.get_sim_state() if random else self.init_states[init_state_id])
        for _ in range(num_wait_steps):
            observation, _ = self.step([0, 0, 0, 0, 0, 0, -1])
        return observation

    def step(self, action: list[float]) -> tuple[dict[str, np.ndarray], bool]:
        self._make_current()
        observation, _, done, _ = self.env.step(list(action))
        return observation, done

    def close(self) -> None:
        self._make_current()
        self.env.close()

    def _make_current(self) -> None:
        """robosuite draws into, and deletes from, whichever GL context is current: ours, not another environment's."""
        self.env.sim._render_context_offscreen.gl_ctx.make_current()
