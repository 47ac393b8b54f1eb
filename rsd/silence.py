"""A simulator that stops answering: its turns are marked here, and whoever is in charge of the process limits them.

A loop wraps each call of a simulator in `with simulator_turn():`. Alone that does nothing. In a worker process it is a
sign of life, which the main process looks for (rsd/workers.py); in a process that runs its simulator itself, `patience`
turns a call that takes too long into an error.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from rsd.errors import RSDError, SettingError

PATIENCE_S = 300.0  # a scene takes tens of seconds to build on a busy machine, a step milliseconds
LONGEST_S = 1e6
GRACE_S = 30.0  # a call that does not even come back for an alarm ends the process after this time

_turn: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext  # what this process does in a turn


class SilentSimulatorError(RSDError, TimeoutError):
    """A simulator has not answered for too long."""


def check_patience(seconds: Any) -> float:
    """See that a time-out is one.

    Raises:
        SettingError: it is no number above 0.
    """
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not math.isfinite(seconds) or not 0 < seconds <= LONGEST_S:
        raise SettingError(
            f"simulator_timeout_s is {seconds!r}, expected seconds, above 0 and at most {LONGEST_S:.0f}: "
            "simulator_timeout_s=300"
        )
    return float(seconds)


def simulator_turn() -> AbstractContextManager[None]:
    """For the body of a `with` that is one call of a simulator: building it, a reset, a step, closing it."""
    return _turn()


def count_turns(counter: Any) -> None:
    """From now on this process adds to `counter.value` before and after each turn, and once now."""
    counter.value += 1

    @contextlib.contextmanager
    def counted() -> Iterator[None]:
        counter.value += 1
        yield
        counter.value += 1

    _set_turn(counted)


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let no turn in this process last longer: what waits in Python gets a SilentSimulatorError.

    A call that never returns from compiled code cannot be given an error; the process ends GRACE_S later, with the
    place on stderr and exit code 1. Outside of the main thread, where there are no alarms, nothing is limited.
    """
    if math.isinf(seconds) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise SilentSimulatorError(
            f"no answer for {seconds:.0f} s; set simulator_timeout_s if the simulator may take longer"
        )

    @contextlib.contextmanager
    def limited() -> Iterator[None]:
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()

    before, turn = signal.signal(signal.SIGALRM, ring), _turn
    _set_turn(limited)
    try:
        yield
    finally:
        _set_turn(turn)
        signal.signal(signal.SIGALRM, before)


def give_time() -> None:
    """Let the turn that is running last as long as it wants: a person is asked, who may be away."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def _set_turn(turn: Callable[[], AbstractContextManager[None]]) -> None:
    global _turn  # a process has one simulator, whose turns are marked deep inside of loops
    _turn = turn
