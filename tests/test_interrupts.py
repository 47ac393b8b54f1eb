"""Ctrl-C before the first episode or step: one line, exit code 130, and nothing that goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsd import interrupts

ROOT = Path(__file__).parents[1]
POINT_MASS = ["-cp", str(ROOT / "tests" / "evaluation" / "conf"), "-cn", "point_mass", "num_trials=1"]
FRAGILE = """
import sys
from rsd import interrupts
interrupts.at_once()
interrupts.tell(lambda: "; continue with resume=é")
import os, signal

class Fragile:
    def __del__(self):
        print("begun", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGINT)  # here a KeyboardInterrupt would be swallowed
        while True:
            pass

Fragile()
"""


def interrupted(module: str, *command: str) -> str:
    """What a command says when Ctrl-C comes while it imports a module."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-m", "tests.interrupted_at", module, *command]
    done = subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def ctrl_c():
    """Ctrl-C as it comes to a process that has said nothing about it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("script", ["eval.py", "train.py"])
@pytest.mark.parametrize("module", ["omegaconf", "numpy"])
def test_among_the_imports(script, module):
    assert interrupted(module, script, "--help") == "\ninterrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "rsd.commands.configured", "tests.fakes"])
def test_before_there_is_a_run(module, tmp_path):
    assert interrupted(module, "eval.py", *POINT_MASS, f"hydra.run.dir={tmp_path / 'run'}") == "\ninterrupted\n"


@pytest.mark.slow
def test_while_workers_import_their_code(tmp_path):
    command = ["eval.py", *POINT_MASS, "num_workers=2", f"hydra.run.dir={tmp_path / 'run'}"]
    told = interrupted("worker", *command)
    assert "Traceback" not in told and "interrupted; continue with: " in told


def test_nothing_swallows_it_and_the_line_says_how_to_go_on():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{FRAGILE}"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "begun\n\ninterrupted; continue with resume=é\n")


def test_held_until_the_body_is_done(ctrl_c):
    done = False
    with pytest.raises(KeyboardInterrupt), interrupts.held():
        ctrl_c()
        done = True
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_the_body_raises_goes_first(ctrl_c):
    with pytest.raises(ZeroDivisionError), interrupts.held():
        ctrl_c()
        1 / 0  # noqa: B018


def test_in_order_again(ctrl_c):
    interrupts.at_once()
    interrupts.in_order()
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_whoever_has_said_what_it_does_is_left_alone(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.at_once()
    interrupts.tell(lambda: "; gone")
    with interrupts.held():
        ctrl_c()
    interrupts.in_order()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
