"""One LIBERO task behind the Env protocol, in a given evaluation protocol, rendering only what is looked at.

What surprises:
* robosuite samples each observable *inside* the control step: one physics step (2 ms) before its end in an episode that
  began by setting a state. A picture rendered after the step is another picture. So the cameras stay robosuite's own
  observables and are told, before each step, whether anybody will look.
* The positions of LIBERO's fixtures (cabinet, stove) are not part of the init states: every reset draws them anew, and
  upstream's depend on how many episodes came before. Here every reset starts from `seed`, so an episode depends on its
  init state alone, and equals the first episode of a fresh OffScreenRenderEnv with that seed.
* After the first, resets do not compile the scene again (2 to 4 s): they restore what robosuite changed (30 ms).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from rsd.envs.exchange import Exchange, exchange_places
from rsd.envs.gl import SimulatorError, check_simulator
from rsd.envs.physics import SharedStages
from rsd.envs.placements import check_placement, object_columns
from rsd.envs.rotation import axis_angle
from rsd.envs.suites import NoSuchTaskError, SuiteTask, load_task, quiet, silence_robosuite, suite_name
from rsd.errors import SettingError
from rsd.settings import Count, Finite, Length, Natural, Seed, Side, Views, checked
from rsd.types import Observation, Step, Task

ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")  # end-effector position and rotation deltas, gripper
ACTION_DIM = len(ACTION_NAMES)
ACTION_LIMITS = (-1.0, 1.0)  # robosuite's controller clips to them
PROPRIO_DIM = 8  # end-effector position and axis-angle, two finger joints
CONTROL_HZ = 20
CAMERAS = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}  # RLDS name → LIBERO's camera
PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
WAITING_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # stand still, gripper open, while the objects settle
MODEL_STATE = ("body_pos", "body_quat", "site_rgba")  # parts of the model that LIBERO writes to during an episode
UNSEEN = np.zeros((1, 1, 3), dtype=np.uint8)  # what a camera shows while nobody looks


@checked
def libero_tasks(
    *,
    suite: str,
    variant: str | None,
    num_tasks: Count,
    max_steps: Count,
    protocol: str,
    views: Views = tuple(CAMERAS),
    allow_mujoco_version: str | None = None,
) -> list[Task]:
    """What the environments of a suite's tasks will say of themselves; nothing is simulated.

    Args:
        num_tasks: How many tasks the suite has.
        suite, variant, max_steps, protocol, views, allow_mujoco_version: As in LiberoEnv.
    """
    versions, name = check_simulator(allow_mujoco_version), suite_name(suite, variant)
    return [
        _describe(name, task_id, load_task(name, task_id), max_steps, views, protocol, versions)
        for task_id in range(num_tasks)
    ]


class LiberoEnv:
    """A LIBERO task with its evaluation init states.

    Args:
        suite: libero_spatial, libero_object, libero_goal, libero_10, libero_90, or any other that the package knows.
        task_id: Number of the task in the suite, in the suite's default order.
        variant: A perturbed version of the suite (swap, object, lan, task, …), or None.
        max_steps: Step limit after the waiting steps; kept for the caller, not enforced here.
        image_size: Height and width of the pictures.
        rotate_images: Turn pictures by 180 degrees, as in the RLDS sets; False leaves them upside down.
        num_wait_steps: Steps in which the robot stands still after a reset; part of the reset.
        waiting_action: What it is told in these steps, [7].
        seed: Seeds the placement of fixtures at every reset.
        views: Which pictures observations hold; each costs rendering time.
        protocol: Name and version of the evaluation protocol that these values belong to, to be stored with results.
        end_at_success: False lets steps go on after success, for recording what follows it.
        allow_mujoco_version: Accept this version of MuJoCo although scores are not comparable.
        exchange: Put objects into each other's places in `reset_random`; None for the suite's own placements.

    Attributes:
        task: See `Env`; its versions are what `check_simulator` found.
        simulator: The underlying OffScreenRenderEnv, for readers of privileged state (`simulator.sim.data`). Its
            observations are cut down to what `Observation` holds.
        reset_rendering_s: See `Env`.
        moved: Where objects were put by `exchange` in the last reset, name → [2], m, world frame; empty without.
    """

    @checked
    def __init__(
        self,
        *,
        suite: str,
        task_id: Natural,
        max_steps: Count,
        variant: str | None = None,
        image_size: Side = 256,
        rotate_images: bool = True,
        num_wait_steps: Natural = 10,
        waiting_action: Annotated[Sequence[Finite], Length(ACTION_DIM)] = WAITING_ACTION,
        seed: Seed = 0,
        views: Views = ("image", "wrist_image"),
        protocol: str = "openvla_oft-1",
        end_at_success: bool = True,
        allow_mujoco_version: str | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        if not views or not set(views) <= set(CAMERAS):
            raise SettingError(f"views {list(views)} are not known; expected some of {list(CAMERAS)}")
        versions = check_simulator(allow_mujoco_version)
        silence_robosuite()
        name = suite_name(suite, variant)
        task = load_task(name, task_id)
        self.task = _describe(name, task_id, task, max_steps, views, protocol, versions)
        self.reset_rendering_s = 0.0
        self._rendering_s = 0.0  # of the running call
        self._end_at_success = end_at_success
        self._views = tuple(views)
        self._rotate_images = rotate_images
        self._num_wait_steps = num_wait_steps
        self._waiting_action = np.asarray(waiting_action, dtype=np.float64)
        self._seed = seed
        self._exchange, self.moved = exchange, dict[str, np.ndarray]()
        self._init_states = task.init_states
        self._looking = False
        self._ready = False  # an episode is running
        with quiet(), _numpy_seed(seed):
            from libero.libero.envs import OffScreenRenderEnv

            self.simulator = OffScreenRenderEnv(
                bddl_file_name=str(task.bddl_file),
                camera_names=[CAMERAS[view] for view in self._views],
                camera_heights=image_size,
                camera_widths=image_size,
                control_freq=CONTROL_HZ,
                ignore_done=True,  # the step limit is the caller's
            )
            self._compile_scene()
        self._physics = SharedStages(self.simulator.sim)

    def reset(self, init_state_id: int) -> Observation:
        """See `Env.reset`."""
        if not 0 <= init_state_id < self.task.num_init_states:
            raise NoSuchTaskError(
                f"init_state_id {init_state_id} is not an init state of {self.task.suite} task {self.task.task_id}; "
                f"expected 0..{self.task.num_init_states - 1}"
            )
        return self._start(self._seed, self._init_states[init_state_id])

    def reset_random(self, seed: int) -> Observation:
        """Like `reset`, from a random placement of objects and fixtures that depends on `seed` alone.

        For demonstrations: the evaluation init states are fixed arrays and are not used.

        Raises:
            PlacementError: the random placement happens to be one of them.
        """
        return self._start(seed, None)

    def reset_state(self, state: np.ndarray) -> Observation:
        """Like `reset`, from a recorded state, [state]: time, positions and velocities, as LIBERO's HDF5 files have it.

        Raises:
            SettingError: it is of another scene.
        """
        if (expected := self._init_states.shape[1:]) != state.shape:
            raise SettingError(
                f"a state of shape {list(state.shape)} is not of {self.task.suite} task {self.task.task_id}, whose "
                f"states have shape {list(expected)}; give the files of this suite"
            )
        return self._start(self._seed, state)

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        """See `Env.step`. The action is robosuite's: end-effector deltas in units of its controller, [7]."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,):
            raise ValueError(f"action has shape {action.shape}; expected ({ACTION_DIM},)")
        if not np.isfinite(action).all():
            raise ValueError(f"action is not finite: {action.tolist()}")
        if not self._ready:
            raise RuntimeError("no episode is running: it has ended in success, or not begun; call reset() first")
        self._rendering_s = 0.0
        observables, success = self._advance(action, observe)
        self._ready = not (success and self._end_at_success)
        return Step(self._observation(observables) if observe else None, success, self._rendering_s)

    def init_state(self, init_state_id: int) -> np.ndarray:
        """An evaluation init state as it is stored: time, positions and velocities, [state]."""
        return self._init_states[init_state_id].copy()

    def close(self) -> None:
        """Free the simulator and its GL context; further calls do nothing."""
        self._ready = False
        if self.simulator is not None:
            self._make_current()
            self.simulator.close()
            self.simulator = None

    def _compile_scene(self) -> None:
        """Reset once the way robosuite does, with the cameras gated; keep what later resets must restore."""
        domain = self.simulator.env
        create_sensors, initialize_sim = domain._create_camera_sensors, domain._initialize_sim

        def create_gated_sensors(*args: Any, **kwargs: Any) -> tuple[list[Callable], list[str]]:
            sensors, names = create_sensors(*args, **kwargs)
            return [self._gated(sensor) for sensor in sensors], names

        def initialize_and_remember(*args: Any, **kwargs: Any) -> None:
            initialize_sim(*args, **kwargs)
            self._compiled = {name: getattr(domain.sim.model, name).copy() for name in MODEL_STATE}

        domain._create_camera_sensors = create_gated_sensors
        domain._initialize_sim = initialize_and_remember
        self.simulator.reset()
        domain.hard_reset = False
        wanted = (*PROPRIO, *(f"{CAMERAS[view]}_image" for view in self._views))
        domain._observables = {name: domain._observables[name] for name in wanted}

        sim, reset_data = domain.sim, domain.sim.reset

        def reset_like_compiled() -> None:
            for name, values in self._compiled.items():
                getattr(sim.model, name)[:] = values
            reset_data()
            sim.forward()  # robosuite does this when it compiles,
            sim.forward()  # and once more for the render context: the solver's warm start remembers

        sim.reset = reset_like_compiled

    def _gated(self, sensor: Callable) -> Callable:
        """The camera's sensor, which renders only while somebody looks."""

        def gated(cache: dict[str, Any]) -> np.ndarray:
            if not self._looking:
                return UNSEEN
            start = time.perf_counter()
            self._make_current()
            picture = sensor(cache)
            self._rendering_s += time.perf_counter() - start
            return picture

        gated.__modality__ = sensor.__modality__  # type: ignore[attr-defined]  # robosuite marks functions in this way
        return gated

    def _make_current(self) -> None:
        """robosuite draws into whichever GL context was made last; with two environments that is the wrong one."""
        self.simulator.sim._render_context_offscreen.gl_ctx.make_current()

    def _start(self, seed: int, init_state: np.ndarray | None) -> Observation:
        """Place everything, run the waiting steps, and look at the last one."""
        if self.simulator is None:
            raise RuntimeError("the environment is closed")
        self._ready = False
        self._rendering_s = 0.0
        for robot in self.simulator.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)  # robosuite's reset forgets it
        with quiet(), _numpy_seed(seed):
            self.simulator.reset()
        self.moved = {}
        if init_state is None:
            if self._exchange is not None and self._exchange.chosen(seed):
                self.moved = exchange_places(self.simulator.env, self._exchange, seed)
            init_state = self.simulator.get_sim_state()  # setting it shifts the instant at which pictures are sampled
            columns = object_columns(self.simulator.sim.model)
            task = f"{self.task.suite} task {self.task.task_id}"
            for states in [self._init_states, *(self._swap_states if self.moved else ())]:
                check_placement(init_state, states, columns, task=task, seed=seed)
        self._looking = self._num_wait_steps == 0
        observables = self.simulator.set_init_state(init_state)
        for step in range(self._num_wait_steps):
            observables, _ = self._advance(self._waiting_action, observe=step == self._num_wait_steps - 1)
        self._looking = False
        self._ready = True
        self.reset_rendering_s = self._rendering_s
        return self._observation(observables)

    @cached_property
    def _swap_states(self) -> list[np.ndarray]:
        """LIBERO-PRO's evaluation states of this task with objects exchanged, where it has them for this scene."""
        try:
            states = load_task(suite_name(self.task.suite, "swap"), self.task.task_id).init_states
        except (SettingError, SimulatorError, NoSuchTaskError):
            return []
        return [states] if states.shape[1:] == self._init_states.shape[1:] else []

    def _advance(self, action: np.ndarray, observe: bool) -> tuple[dict[str, np.ndarray], bool]:
        self._looking = observe
        try:
            with self._physics.control_step():
                observables, _, success, _ = self.simulator.step(action.tolist())
        finally:
            self._looking = False
        return observables, bool(success)

    def _observation(self, observables: dict[str, np.ndarray]) -> Observation:
        images = {}
        for view in self._views:
            picture = observables[f"{CAMERAS[view]}_image"]  # [H, W, 3] uint8
            images[view] = np.ascontiguousarray(picture[::-1, ::-1] if self._rotate_images else picture)
        position, quaternion, gripper = (observables[name] for name in PROPRIO)
        proprio = np.concatenate([position, axis_angle(quaternion), gripper])  # [P]
        return Observation(images=images, proprio=proprio, instruction=self.task.instruction)


def _describe(
    suite: str,
    task_id: int,
    task: SuiteTask,
    max_steps: int,
    views: Sequence[str],
    protocol: str,
    versions: dict[str, str],
) -> Task:
    return Task(
        suite=suite,
        task_id=task_id,
        instruction=task.instruction,
        num_init_states=len(task.init_states),
        max_steps=max_steps,
        views=tuple(views),
        proprio_dim=PROPRIO_DIM,
        action_names=ACTION_NAMES,
        control_hz=CONTROL_HZ,
        limits=ACTION_LIMITS,
        protocol=protocol,
        versions=versions,
    )


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which robosuite's placement draws from, and give the caller's state back."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
