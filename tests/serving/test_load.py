"""Many robots on one server of the released policy: each gets its own actions, and goes on after a crash of the server.

pytest tests/serving/test_load.py -m long -s   # 64 clients for 60 s, and until each had 16 answers; prints a JSON line
pytest tests/serving/test_load.py -m slow -s   # 8 clients for 5 s
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import rsd
from rsd.serving.client import Client, ClientError
from rsd.types import Observation, Request

ROOT = Path(__file__).parents[2]
SIZE = 256
NUM_SEEN = 2  # different observations of a client
NEAR = 1e-4  # of commands in -1..1: what batches may change
APART = 1e-3  # what chunks of different observations differ by, at least
FLAT = 1.10  # of the memory at a third of the time, at the end
INSTRUCTION = "put the bowl on the plate"


def observations(client: int) -> list[Observation]:
    """Blocks of colours and poses that no other client has."""
    made = []
    for number in range(NUM_SEEN):
        rng = np.random.default_rng((client, number))
        blocks = rng.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
        proprio = np.array([-0.2, 0.0, 1.0, 3.1, 0.0, 0.0, 0.03, -0.03]) + rng.uniform(-0.1, 0.1, 8)
        made.append(Observation(dict(zip(("image", "wrist_image"), blocks, strict=True)), proprio, INSTRUCTION))
    return made


def expected(num_clients: int) -> np.ndarray:
    """What the policy says of them one by one, as a queue executes it, [clients, observations, T, A]."""
    policy = rsd.load(ROOT / "released")
    policy.check_instructions([INSTRUCTION])
    return np.stack(
        [
            [np.clip(policy.predict([Request(seen, 0)])[0].actions, -1, 1) for seen in observations(client)]
            for client in range(num_clients)
        ]
    )


@contextmanager
def released_server(folder: Path, port: int = 0):
    """Its port and process; it is killed at the end."""
    command = [sys.executable, "scripts/serve_policy.py", "protocol=rest", "policy=released", f"port={port}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [*command, f"hydra.run.dir={folder}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = next(line for line in process.stdout if "ready: " in line)
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield int(re.search(r"http://127.0.0.1:(\d+)", line)[1]), process
        finally:
            process.kill()


def memory_mb(process: subprocess.Popen) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000


class Robot(threading.Thread):
    """Acts as fast as it is answered, and holds each action to what its own observation has to give."""

    def __init__(self, number: int, port: int, chunks: np.ndarray) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.chunks = number, port, chunks
        self.seen = observations(number)
        self.times_ms: list[tuple[bool, float]] = []  # whether a chunk was predicted, and how long it took
        self.wrong: list[str] = []
        self.errors: dict[str, int] = {}
        self.num_steps, self.num_resumed, self.ended = 0, 0, threading.Event()

    def run(self) -> None:
        options = {"timeout_s": 60.0, "retries": 2, "max_age_s": 120.0}
        with Client(f"http://127.0.0.1:{self.port}", policy=ROOT / "released", **options) as robot:
            robot.start(seed=self.number)
            shown, now = -1, 0
            while not self.ended.is_set():
                needs = robot.needs_observation
                now = (shown + 1) % NUM_SEEN if needs else now
                start = time.perf_counter()
                try:
                    action = robot.act(self.seen[now] if needs else None)
                except ClientError as error:  # a robot would stand still, and look again
                    self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1
                    time.sleep(0.2)
                    continue
                self.times_ms.append((needs, 1000 * (time.perf_counter() - start)))
                shown = now
                off = np.abs(action - self.chunks[now, robot.last["index"]]).max()
                if off > NEAR or robot.last["age"] != robot.last["index"]:
                    self.wrong.append(f"client {self.number}, step {self.num_steps}: off by {off}, {robot.last}")
                self.num_steps += 1
                self.num_resumed = robot.num_resumed


@pytest.mark.parametrize(
    ("num_clients", "seconds"),
    [pytest.param(8, 5, marks=pytest.mark.slow), pytest.param(64, 60, marks=pytest.mark.long)],
)
def test_many_robots_on_the_released_policy(tmp_path, num_clients, seconds):
    pytest.importorskip("fastapi", reason="needs pip install -e '.[serve]'")
    chunks = expected(num_clients)
    flat = chunks.reshape(num_clients * NUM_SEEN, -1)
    gaps = np.abs(flat[:, None] - flat[None]).max(axis=2) + 9 * np.eye(len(flat))
    assert gaps.min() > APART, "an answer for another client could not be told"
    with released_server(tmp_path / "first") as (port, process):
        robots = [Robot(number, port, chunks[number]) for number in range(num_clients)]
        for robot in robots:
            robot.start()
        memory = []
        while len(memory) < seconds or (min(robot.num_steps for robot in robots) < 16 and len(memory) < 600):
            time.sleep(1)
            memory.append(memory_mb(process))
        counted = [list(robot.times_ms) for robot in robots]
        assert [robot.errors for robot in robots] == [{}] * num_clients  # nothing was lost
        before = [robot.num_steps for robot in robots]
        process.send_signal(signal.SIGKILL)  # in the middle of every episode
        process.wait()
        with released_server(tmp_path / "second", port):
            for robot, steps in zip(robots, before, strict=True):
                until = time.monotonic() + 120
                while (robot.num_resumed < 1 or robot.num_steps < steps + 16) and time.monotonic() < until:
                    time.sleep(0.05)
            after = [robot.num_steps for robot in robots]
            for robot in robots:
                robot.ended.set()
            for robot in robots:
                robot.join(120)
    asked, taken = ([ms for one in counted for needs, ms in one if needs is kind] for kind in (True, False))
    record = {
        "clients": num_clients,
        "seconds": len(memory),
        "answers": len(asked) + len(taken),
        "chunks": len(asked),
        "smallest_gap": round(float(gaps.min()), 4),
        "p50_ms": {"chunk": _percentile(asked, 50), "queue": _percentile(taken, 50)},
        "p99_ms": {"chunk": _percentile(asked, 99), "queue": _percentile(taken, 99)},
        "memory_mb": [round(memory[len(memory) // 3]), round(memory[-1]), round(max(memory))],
        "resumed": sum(robot.num_resumed for robot in robots),
        "errors_at_the_crash": sum(sum(robot.errors.values()) for robot in robots),
    }
    print(json.dumps(record))
    assert [one for robot in robots for one in robot.wrong] == []  # nothing was mixed
    assert all(robot.num_resumed >= 1 for robot in robots)
    assert all(more >= less + 16 for more, less in zip(after, before, strict=True))
    assert min(map(len, counted)) >= 16
    assert memory[-1] < FLAT * memory[len(memory) // 3]


def _percentile(values: list[float], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 1)
