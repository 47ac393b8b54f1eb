"""A WidowX's server that is simulated, and a person beside it: everything of the real one but ROS and the arm.

It speaks as edgeml's ActionServer does, with plain pickles, and answers as WidowXActionServer: nothing moves before
"init", the picture is a JPEG whose red and blue are exchanged, actions are clipped to the robot's action space.
"""

from __future__ import annotations

import io
import json
import pickle
import threading
from typing import Any

import lz4.frame
import numpy as np
import zmq
from PIL import Image

LOW = np.array([-0.05, -0.05, -0.05, -0.25, -0.25, -0.25, 0.0])
HIGH = np.array([0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0])
SUCCESS, EXECUTION_FAILURE, NOT_INITIALIZED = 1, 2, 3
CONFIG = {
    "port_number": 5556,
    "action_keys": ["init", "move", "gripper", "reset", "step_action", "reboot_motor"],
    "observation_keys": ["image", "state", "full_image"],
    "broadcast_port": 5557,
    "version": "0.0.1",
}


class SimulatedRobot:
    """Context manager; answers on `port` until it is left.

    Attributes:
        scene: What a person has arranged; moves what the camera sees.
        steps: Actions that were executed, [7] each.
        asked: What was asked for, in order: "hash", "obs" or the key of an action.
        status: What actions are answered with, in the place of success.
        stalled: Requests are taken, and neither executed nor answered.
        says: Raw bytes that everything is answered with; None: what belongs there.
        config: What it says of itself.
    """

    def __init__(self, *, size: tuple[int, int] = (256, 256), port: int | None = None) -> None:
        self.scene = 0
        self.steps: list[np.ndarray] = []
        self.asked: list[str] = []
        self.status = SUCCESS
        self.stalled = False
        self.says: bytes | None = None
        self.config: dict[str, Any] = dict(CONFIG)
        self.params: dict[str, Any] | None = None  # of "init"
        self.state = np.zeros(7)
        self._size = size
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)  # a REP socket that may leave a request unanswered
        self._socket.setsockopt(zmq.LINGER, 0)
        if port is None:
            self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        else:
            self._socket.bind(f"tcp://127.0.0.1:{port}")
            self.port = port
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> SimulatedRobot:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._socket.close(0)
        self._context.term()

    @property
    def picture(self) -> np.ndarray:
        """What the camera sees, [H, W, 3], uint8, RGB: a red hand on grey, and a green thing."""
        height, width = self._size
        picture = np.full((height, width, 3), 90, dtype=np.uint8)
        for (y, x), color in ((self.state[:2], (220, 30, 30)), ((0.1 * self.scene + 0.05, 0.4), (30, 200, 30))):
            row, column = int(abs(y) * height) % height, int(abs(x) * width) % width
            picture[row : row + 24, column : column + 24] = color
        return picture

    def _serve(self) -> None:
        while not self._ends.is_set():
            if not self._socket.poll(20):
                continue
            client, empty, data = self._socket.recv_multipart()
            request = pickle.loads(lz4.frame.decompress(data))  # noqa: S301  the tests' own
            self.asked.append(request["key"] if request["type"] == "act" else request["type"])
            if self.stalled:
                continue
            answer = self.says or lz4.frame.compress(pickle.dumps(self._answer(request)))
            self._socket.send_multipart([client, empty, answer])

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["type"] == "hash":
            return {"success": True, "payload": json.dumps(self.config, separators=(",", ":"))}
        if request["type"] == "obs":
            return self._observe()
        key, payload = request["key"], request["payload"]
        if key == "init":
            self.params, self.image_size = payload["env_params"], payload["image_size"]
        elif self.params is None:
            return {"status": NOT_INITIALIZED}
        if self.status == SUCCESS:
            self._do(key, payload)
        return {"status": self.status}

    def _observe(self) -> dict[str, Any]:
        if self.params is None:
            noise = np.zeros((*self._size, 3), dtype=np.uint8)
            return {"image": noise, "state": {}, "full_image": noise}
        small = np.zeros((1, 3 * self.image_size**2), dtype=np.float32)
        return {"image": small, "state": self.state.copy(), "full_image": as_jpeg(self.picture)}

    def _do(self, key: str, payload: dict[str, Any]) -> None:
        if key == "reset":
            self.state = np.zeros(7)
            self.state[6] = 1.0
        elif key == "move":
            pose = payload["pose"]
            assert pose.shape == (4, 4)
            self.state[:3] = pose[:3, 3]
        elif key == "step_action":
            action = payload["action"]
            assert action.shape == (7,) and action.dtype == np.float64
            self.steps.append(action)
            clipped = np.clip(action, LOW, HIGH)
            low, high = (np.array(edge[:3]) for edge in self.params["override_workspace_boundaries"])
            self.state[:3] = np.clip(self.state[:3] + clipped[:3], low, high)
            self.state[3:6] += clipped[3:6]
            self.state[6] = clipped[6]


def as_jpeg(picture: np.ndarray) -> bytes:
    """As the server encodes RGB with an encoder that takes it for BGR."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture[..., ::-1])).save(file, format="JPEG", quality=95)
    return file.getvalue()


class SimulatedPerson:
    """Arranges what it is told to, and answers what it was told beforehand.

    Attributes:
        solved: Says so in the middle of the episode.
        verdict: Answers so at its end.
        asked: Whether it was asked at an end, so far how often.
    """

    def __init__(self, robot: SimulatedRobot) -> None:
        self.solved = self.verdict = False
        self.asked = 0
        self._robot = robot

    def wait_until_ready(self, instruction: str, init_state_id: int) -> None:
        self.solved = False
        self._robot.scene = init_state_id

    def says_solved(self) -> bool:
        return self.solved

    def judge(self, instruction: str) -> bool:
        self.asked += 1
        return self.verdict


class StillPolicy:
    """Moves the hand a little forward and closes the gripper halfway; for runs whose outcome a person types."""

    num_open_loop_steps = 1

    def predict(self, requests):
        from rsd.types import Chunk

        action = np.array([0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5])
        return [Chunk(np.stack([action]), num_steps=1) for _ in requests]
