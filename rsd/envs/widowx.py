"""A WidowX of BridgeData V2 behind the Env protocol, as OpenVLA evaluates on it: a real robot, and a person beside it.

What surprises:
* Nobody but the person knows the scene and whether the task is solved. "Init state i" is what they arrange for the i-th
  episode of a task, and success is what they type: see `rsd.envs.operator`.
* A step that the server does not acknowledge in time is an error, and is not repeated: the arm stays at the last goal
  that it was given. The episode counts as crashed, and a resume runs it again.
* The picture is the camera's, 640 x 480 as a rule. The policy brings it through JPEG and to 224 x 224 in one step, as
  run_bridgev2_eval.py does; it is not turned.

Sources: openvla/openvla @ c8f03f4 (experiments/robot/bridge), rail-berkeley/bridge_data_robot @ a902e5b
(widowx_envs/widowx_envs/widowx_env_service.py).
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from PIL import Image

from rsd.envs.edgeml import VERSION, ActionClient, RobotServerError
from rsd.envs.operator import Operator, check_terminal
from rsd.envs.suites import NoSuchTaskError
from rsd.errors import SettingError
from rsd.settings import Count, Finite, Length, Natural, Positive, Processes, Text, checked, shown
from rsd.types import Observation, Step, Task

SUITE = "widowx"
PROTOCOL = "openvla_bridge"
VIEW = "image"
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")  # m, rad; gripper 1 open, 0 closed
ACTION_LIMITS = (-1.0, 1.0)  # the server clips closer: 5 cm, 0.25 rad, gripper 0..1
STATE_DIM = 7  # position (m), roll, pitch, yaw (rad), gripper
ACTION_KEYS = ("init", "move", "gripper", "reset", "step_action", "reboot_motor")
OBSERVATION_KEYS = ("image", "state", "full_image")
SUCCEEDED = 1  # WidowXStatus
STATUS = {0: "no connection", 2: "execution failure", 3: "the robot is not initialised"}
IMAGE_SIZE = 256  # of the small picture, which is not used
MOVE_S = 0.8  # to where an episode begins
# Where the hand points then: down, and 15 degrees forward, as OpenVLA's WidowXGym has it
ROTATION = ((0.267, 0.0, 0.963), (0.0, 1.0, 0.0), (-0.963, 0.0, 0.267))
START_QUATERNION = (0.0, -0.259, 0.0, -0.966)
ENV_PARAMS: dict[str, Any] = {  # WidowXConfigs.DefaultEnvParams, with the picture of the camera as it is
    "fix_zangle": 0.1,
    "move_duration": 0.2,
    "adaptive_wait": True,
    "move_to_rand_start_freq": 1,
    "action_clipping": "xyz",
    "catch_environment_except": False,
    "skip_move_to_neutral": False,
    "return_full_image": True,
}
Instructions = Annotated[Sequence[Text], Length()] | None
Position = Annotated[Sequence[Finite], Length(3)]
Workspace = Annotated[Sequence[Annotated[Sequence[Finite], Length(5)]], Length(2)]


class Person(Protocol):
    """Whoever is beside the robot; see `rsd.envs.operator.Operator`."""

    def wait_until_ready(self, instruction: str, init_state_id: int) -> None: ...

    def says_solved(self) -> bool: ...

    def judge(self, instruction: str) -> bool: ...


@checked
def check_widowx(
    *, instructions: Instructions, protocol: str, num_workers: Processes, host: Text, port: Count, timeout_s: Positive
) -> dict[str, str]:
    """See that an evaluation on the robot can begin: tasks, somebody to ask, and a server that answers.

    Args:
        instructions, host, port, timeout_s: See `WidowXEnv`.
        protocol: Name of the evaluation protocol.
        num_workers: Processes; a robot has one.

    Returns:
        What answers, to be stamped into results.

    Raises:
        SettingError: something was not said, or is of LIBERO; or standard input is no terminal.
        RobotServerError: nobody answers.
    """
    widowx_tasks(instructions=instructions, max_steps=1, control_hz=1.0, protocol=protocol)
    if protocol != PROTOCOL:
        raise SettingError(f"protocol={protocol} is how LIBERO is evaluated; on the robot give protocol={PROTOCOL}")
    if num_workers != 1:
        raise SettingError(f"num_workers is {num_workers}, and env=widowx is one robot; leave it out")
    check_terminal()
    _connected(host, port, timeout_s).close()
    return _versions(host, port)


@checked
def widowx_tasks(
    *,
    instructions: Instructions,
    max_steps: Count,
    control_hz: Positive,
    protocol: str,
    num_init_states: Count = 50,
    proprio_dim: Literal[7, 8] = 8,
    host: str = "localhost",
    port: Count = 5556,
) -> list[Task]:
    """What the environments of these tasks will say of themselves; no robot is asked.

    Raises:
        SettingError: there is no instruction, or one twice.
    """
    if instructions is None:
        raise SettingError(
            "env.instructions names no task; say what to do: env.instructions=[put the carrot on the plate]"
        )
    if len(set(instructions)) < len(instructions):
        raise SettingError(
            f"env.instructions is {list(instructions)}, where one stands twice; raise num_trials instead"
        )
    return [
        Task(
            suite=SUITE,
            task_id=task_id,
            instruction=instruction,
            num_init_states=num_init_states,
            max_steps=max_steps,
            views=(VIEW,),
            proprio_dim=proprio_dim,
            action_names=ACTION_NAMES,
            control_hz=control_hz,
            limits=ACTION_LIMITS,
            protocol=protocol,
            versions=_versions(host, port),
        )
        for task_id, instruction in enumerate(instructions)
    ]


class WidowXEnv:
    """One task on the robot.

    Args:
        instructions: What there is to do, in words; task_id is the number of one.
        task_id: Which.
        max_steps: Step limit; the person is asked at the last one whether it was a success.
        control_hz: Control steps in a second; a step ends 1 / control_hz after its action was sent, or when the server
            is done with it.
        host, port: Of the robot's widowx_env_service.
        camera_topic: ROS topic of the picture.
        start_position: Where the hand is when an episode begins, m.
        workspace: Lowest and highest x, y, z (m), yaw and gripper that the server lets the hand go to.
        blocking: Whether the server ends a motion before it answers.
        timeout_s, motion_timeout_s: Longest time for an answer; for one to what takes seconds (start, reset).
        num_init_states: Episodes of a task at most.
        proprio_dim: 8: position, roll, pitch, yaw, a zero, gripper, as bridge_orig has it; 7: without the zero.
        protocol: Name and version of the evaluation protocol, to be stored with results.
        person: Whom to ask.

    Attributes:
        task, reset_rendering_s: See `Env`.

    Raises:
        RobotServerError: nobody answers, or the robot cannot be started.
    """

    @checked
    def __init__(
        self,
        *,
        instructions: Instructions,
        task_id: Natural,
        max_steps: Count = 60,
        control_hz: Positive = 5.0,
        host: Text = "localhost",
        port: Count = 5556,
        camera_topic: Text = "/blue/image_raw",
        start_position: Position = (0.3, -0.09, 0.26),
        workspace: Workspace = ((0.1, -0.2, -0.01, -1.57, 0.0), (0.45, 0.25, 0.3, 1.57, 0.0)),
        blocking: bool = False,
        timeout_s: Positive = 2.0,
        motion_timeout_s: Positive = 30.0,
        num_init_states: Count = 50,
        proprio_dim: Literal[7, 8] = 8,
        protocol: str = f"{PROTOCOL}-1",
        person: Person | None = None,
    ) -> None:
        tasks = widowx_tasks(
            instructions=instructions,
            max_steps=max_steps,
            control_hz=control_hz,
            protocol=protocol,
            num_init_states=num_init_states,
            proprio_dim=proprio_dim,
            host=host,
            port=port,
        )
        if task_id >= len(tasks):
            raise NoSuchTaskError(f"task_id {task_id} is none of env.instructions; expected 0..{len(tasks) - 1}")
        self.task = tasks[task_id]
        self.reset_rendering_s = 0.0
        self._person = Operator() if person is None else person
        self._start = np.eye(4)
        self._start[:3, :3], self._start[:3, 3] = ROTATION, start_position
        self._blocking, self._timeout_s, self._motion_timeout_s = blocking, timeout_s, motion_timeout_s
        self._running, self._num_steps = False, 0
        params = ENV_PARAMS | {
            "override_workspace_boundaries": [[float(edge) for edge in edges] for edges in workspace],
            "camera_topics": [{"name": camera_topic}],
            "start_state": [float(one) for one in (*start_position, *START_QUATERNION)],
        }
        self._client: ActionClient | None = _connected(host, port, timeout_s)
        try:
            self._act("init", {"env_params": params, "image_size": IMAGE_SIZE}, motion_timeout_s)
        except BaseException:
            self.close()
            raise

    def reset(self, init_state_id: int) -> Observation:
        """See `Env.reset`: the arm goes where episodes begin, and the person arranges the scene.

        Raises:
            RobotServerError: the server does not answer, or the arm could not go there.
            OperatorError: nobody can be asked.
        """
        if not 0 <= init_state_id < self.task.num_init_states:
            raise NoSuchTaskError(f"init_state_id {init_state_id} is not in 0..{self.task.num_init_states - 1}")
        self._running, self._num_steps = False, 0
        self._act("reset", {}, self._motion_timeout_s)
        self._act("move", {"pose": self._start, "duration": MOVE_S, "blocking": True}, self._motion_timeout_s)
        self._person.wait_until_ready(self.task.instruction, init_state_id)
        observation, self.reset_rendering_s = self._observe()
        self._running = True
        return observation

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        """See `Env.step`. The action: hand's delta (m, rad), gripper 1 open and 0 closed, [7].

        Raises:
            RobotServerError: the server has not acknowledged it in time, or could not execute it.
            OperatorError: nobody can be asked.
        """
        action = np.array(action, dtype=np.float64)
        if action.shape != (len(ACTION_NAMES),):
            raise ValueError(f"action has shape {action.shape}; expected ({len(ACTION_NAMES)},)")
        if not np.isfinite(action).all():
            raise ValueError(f"action is not finite: {action.tolist()}")
        if not self._running:
            raise RuntimeError("no episode is running: it has ended, or not begun; call reset() first")
        self._running = False  # until the server has acknowledged it
        ends = time.monotonic() + 1 / self.task.control_hz
        self._act("step_action", {"action": action, "blocking": self._blocking}, self._timeout_s)
        time.sleep(max(0.0, ends - time.monotonic()))
        observation, rendering_s = self._observe() if observe else (None, 0.0)
        self._num_steps += 1
        success = self._person.says_solved()
        if not success and self._num_steps == self.task.max_steps:
            success = self._person.judge(self.task.instruction)
        self._running = not success
        return Step(observation, success, rendering_s)

    def close(self) -> None:
        """Close the connection; the arm stays where it is. Further calls do nothing."""
        self._running = False
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connection(self) -> ActionClient:
        if self._client is None:
            raise RuntimeError("the environment is closed")
        return self._client

    def _act(self, key: str, payload: dict[str, Any], timeout_s: float) -> None:
        """Have something executed.

        Raises:
            RobotServerError: it was not, as far as the server tells.
        """
        reply = self._connection().act(key, payload, timeout_s=timeout_s)
        status = reply.get("status") if isinstance(reply, dict) else None
        if status != SUCCEEDED:
            said = STATUS.get(status, f"status {shown(status)}") if isinstance(status, int) else shown(reply)
            raise RobotServerError(f"the robot server could not do {key!r}: {said}; look at its own log")

    def _observe(self) -> tuple[Observation, float]:
        """What is seen, and the seconds that it took."""
        start = time.monotonic()
        seen = self._connection().observe(timeout_s=self._timeout_s)
        if not isinstance(seen, dict) or not {"state", "full_image"} <= seen.keys():
            raise RobotServerError(f"the robot server's observation is {shown(seen)}, expected state and full_image")
        state = proprio_of(seen["state"], self.task.proprio_dim)
        observation = Observation({VIEW: picture_of(seen["full_image"])}, state, self.task.instruction)
        return observation, time.monotonic() - start


def picture_of(data: Any) -> np.ndarray:
    """The camera's picture, [H, W, 3], uint8, RGB.

    Args:
        data: JPEG bytes as the server makes them. It gives RGB to an encoder that takes it for BGR, so the file has red
            and blue exchanged.

    Raises:
        RobotServerError: they are none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as file:
            pixels = np.asarray(file.convert("RGB"))
    except (TypeError, ValueError, OSError, Image.DecompressionBombError) as error:
        raise RobotServerError(f"the robot server's picture is no JPEG: {error}; is the robot initialised?") from error
    return np.ascontiguousarray(pixels[..., ::-1])


def proprio_of(state: Any, proprio_dim: int) -> np.ndarray:
    """Proprio, [P], float64, of the server's state, [7].

    Raises:
        RobotServerError: it is no such state.
    """
    numbers = state if isinstance(state, np.ndarray) and np.issubdtype(state.dtype, np.floating) else np.zeros(0)
    if numbers.shape != (STATE_DIM,) or not np.isfinite(numbers).all():
        raise RobotServerError(f"the robot server's state is {shown(state)}, expected {STATE_DIM} finite numbers")
    padding = np.zeros(proprio_dim - STATE_DIM)
    return np.concatenate([numbers[:6], padding, numbers[6:]]).astype(np.float64)


def _connected(host: str, port: int, timeout_s: float) -> ActionClient:
    return ActionClient(host, port, action_keys=ACTION_KEYS, observation_keys=OBSERVATION_KEYS, timeout_s=timeout_s)


def _versions(host: str, port: int) -> dict[str, str]:
    """What is measured on, to be stored with results."""
    return {"robot": f"widowx at {host}:{port}", "edgeml": VERSION}
