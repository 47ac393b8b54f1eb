"""Turns of a simulator that take too long, in the process that has no worker to replace."""

import subprocess
import sys
import time

import pytest

from rsd.errors import SettingError
from rsd.silence import SilentSimulatorError, check_patience, patience, simulator_turn

NEVER_RETURNS = """
import ctypes, signal
from rsd import silence
silence.GRACE_S = 0.3
with silence.patience(0.2):
    with silence.simulator_turn():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # compiled code that looks at no signal
        ctypes.CDLL(None).sleep(600)
"""


def test_a_call_that_waits_becomes_an_error_and_the_next_one_has_its_own_time():
    with patience(0.2):
        with pytest.raises(SilentSimulatorError, match="no answer for 0 s; set simulator_timeout_s if"):
            with simulator_turn():
                time.sleep(600)
        with simulator_turn():
            pass
        time.sleep(0.3)  # nobody's turn: a policy may think for as long as it likes
    with simulator_turn():
        time.sleep(0.3)


def test_a_call_that_never_comes_back_ends_the_process_and_says_where():
    done = subprocess.run([sys.executable, "-c", NEVER_RETURNS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Timeout" in done.stderr and "line 8 in <module>" in done.stderr


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "300", None, True, 1e9])
def test_a_time_out_is_a_number_of_seconds(seconds):
    with pytest.raises(SettingError, match=r"simulator_timeout_s is .*, expected seconds, above 0"):
        check_patience(seconds)
