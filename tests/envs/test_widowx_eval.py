"""eval.py env=widowx as somebody runs it beside the robot: in a terminal, interrupted, and taken up again."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.envs.robots import SimulatedRobot

ROOT = Path(__file__).parents[2]
TASK = "put the carrot on the plate"
POLICY = "policy={_target_:tests.envs.robots.StillPolicy}"  # of one's own, so that a resume wants it typed again


def command(robot: SimulatedRobot, *more: str) -> list[str]:
    typed = ["env=widowx", "protocol=openvla_bridge", "num_trials=2", "save_videos=0", f"env.instructions=[{TASK}]"]
    speed = ["env.max_steps=4", "env.control_hz=100", "env.timeout_s=30", f"env.port={robot.port}"]
    return [sys.executable, "eval.py", *typed, *speed, POLICY, *more]


class Terminal:
    """A command in a terminal of its own: what it says is read, and answers are typed."""

    def __init__(self, arguments: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "TERM": "dumb"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.said = ""
        self._read_up_to = 0

    def wait_for(self, text: str) -> None:
        """Read until this was said, behind what was waited for before."""
        while (place := self.said.find(text, self._read_up_to)) < 0:
            if not self._read():
                raise AssertionError(f"it ended without {text!r}: {self.said}")
        self._read_up_to = place + len(text)

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait()

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the other side is closed
            return False
        self.said += data.decode(errors="replace")
        return bool(data)


@pytest.mark.slow
def test_a_person_judges_two_episodes_with_an_interruption_between_them(tmp_path):
    run = tmp_path / "run"
    with SimulatedRobot() as robot:
        terminal = Terminal(command(robot, f"hydra.run.dir={run}"))
        terminal.wait_for(f"Episode 1: '{TASK}'. Arrange the scene")
        terminal.type("")
        terminal.wait_for("Was 'put the carrot on the plate' done?")
        terminal.type("y")
        terminal.wait_for("Episode 2")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130 and f"resume={run}" in terminal.said and "Traceback" not in terminal.said
        assert len(robot.steps) == 4

        terminal = Terminal([sys.executable, "eval.py", f"resume={run}", POLICY])
        terminal.wait_for("Episode 2")  # the first one is there
        terminal.type("")
        terminal.wait_for("done?")
        terminal.type("n")
        assert terminal.end() == 0, terminal.said
        assert len(robot.steps) == 8
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [(line["init_state_id"], line["success"], line["num_steps"]) for line in lines] == [
        (0, True, 4),
        (1, False, 4),
    ]
    assert {line["instruction"] for line in lines} == {TASK}
    assert {line["protocol"] for line in lines} == {"openvla_bridge-1 with max_steps=4, control_hz=100"}


@pytest.mark.slow
def test_a_server_that_stalls_in_an_episode_ends_the_run_in_one_line_and_a_resume_goes_on(tmp_path):
    run = tmp_path / "run"
    with SimulatedRobot() as robot:
        terminal = Terminal(command(robot, f"hydra.run.dir={run}", "env.timeout_s=5", "num_trials=1"))
        terminal.wait_for("Episode 1")
        robot.stalled = True
        terminal.type("")
        assert terminal.end() == 1 and "Traceback" not in terminal.said
        assert "has not answered in 5 s, asked for an observation" in (run / "results.jsonl").read_text()
        robot.stalled = False
        terminal = Terminal([sys.executable, "eval.py", f"resume={run}", POLICY])
        terminal.wait_for("Episode 1")
        terminal.type("")
        terminal.wait_for("done?")
        terminal.type("y")
        assert terminal.end() == 0, terminal.said
    assert json.loads((run / "report.json").read_text())["success"]["success_rate"] == 1


@pytest.mark.slow
def test_without_a_terminal_or_a_server_it_says_so_in_one_line(tmp_path):
    with SimulatedRobot() as robot:
        arguments = command(robot, f"hydra.run.dir={tmp_path / 'run'}")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 1 and robot.asked == []
        assert "standard input is no terminal; run it in one" in error_line(done.stderr)
    terminal = Terminal([*arguments, "env.timeout_s=0.5"])
    assert terminal.end() == 1
    line = error_line(terminal.said)
    assert "has not answered in 0.5 s, asked for its configuration; see whether widowx_env_service runs there" in line


def error_line(said: str) -> str:
    """The one line of the error; behind it stands where the traceback is."""
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line
