"""A scheduler's signals: a run that gets one writes its state and ends, so that it can go on in another start.

SIGTERM is what a scheduler sends before it kills (preemption, `scancel`, a limit that is reached); USR1 and USR2 are
what it can be told to send some time before a limit (`sbatch --signal`). Here they are Ctrl-C with another exit code:
whoever ends well at a KeyboardInterrupt ends well at them. What surprises first: while optimizer steps are taken a
signal waits for the end of the step, since no state can be written in the middle of one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
EXIT_CODE = os.EX_TEMPFAIL  # 75: ended with its state written; start it again


class _Heed:
    """What this process was asked, and whether it can end at once."""

    asked: signal.Signals | None = None
    waits: bool = False
    moved: bool = False
    pid: int = 0


def asked() -> signal.Signals | None:
    """The first signal that came since `heeding` began; None where none has."""
    return _Heed.asked


@contextmanager
def heeding() -> Iterator[None]:
    """Take the signals as Ctrl-C inside of this, and as before afterwards. Does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _Heed.asked, _Heed.waits, _Heed.moved, _Heed.pid = None, False, False, os.getpid()
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def listen() -> None:
    """Take the signals again, where a library has taken them in between; does nothing outside of `heeding`."""
    if _Heed.pid == os.getpid() and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _heed)


def wait(waits: bool) -> None:
    """Whether a signal is only noted from now on, for somebody who looks at `asked` and ends in time."""
    _Heed.waits = waits


def move() -> None:
    """Note that something was written that the next start will not do again, beside steps and episodes."""
    _Heed.moved = True


def moved() -> bool:
    """Whether `move` was called since `heeding` began."""
    return _Heed.moved


def _heed(number: int, frame: FrameType | None) -> None:
    """Once: the state is being written when another one comes. Forked workers leave it to who ends them."""
    if os.getpid() != _Heed.pid or _Heed.asked is not None:
        return
    _Heed.asked = signal.Signals(number)
    if not _Heed.waits:
        raise KeyboardInterrupt
