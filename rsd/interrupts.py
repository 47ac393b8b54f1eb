"""Ctrl-C while a command starts or a simulator is built: one line and exit code 130, and no traceback.

A KeyboardInterrupt in the middle of an import, or of a simulator's constructor, leaves half-made things behind. What
they do when they are thrown away prints tracebacks, takes its time, or swallows the interrupt. So a process that has
nothing to put in order yet ends where it is, and one that has is told when the constructor is through. What surprises
first: where somebody else has said what Ctrl-C does (a shell's background job, a worker process, a test), nothing
changes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rsd import requeue

EXIT_CODE = 130


class _Leave:
    """A handler that ends the process where it is."""

    def __init__(self, how_to_go_on: Callable[[], str]) -> None:
        self._how_to_go_on = how_to_go_on

    def __call__(self, number: int, frame: FrameType | None) -> None:
        os.write(2, f"\ninterrupted{self._how_to_go_on()}\n".encode(errors="surrogateescape"))
        os._exit(EXIT_CODE)


def at_once() -> None:
    """From now on Ctrl-C ends the process without clean-up. For commands, before their imports, which take seconds."""
    if _handler() is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Leave(str))


def tell(how_to_go_on: Callable[[], str]) -> None:
    """Say what follows "interrupted" in the line, where Ctrl-C ends the process at once; called when it comes."""
    if isinstance(_handler(), _Leave):
        signal.signal(signal.SIGINT, _Leave(how_to_go_on))


def in_order() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again, since there is something to put in order."""
    if isinstance(_handler(), _Leave):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def held() -> Iterator[None]:
    """Keep a Ctrl-C, or a scheduler's signal, until the body is done; a second Ctrl-C ends the process at once.

    Raises:
        KeyboardInterrupt: one came.
    """
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        if came:
            _Leave(str)(number, frame)
        came.append(number)

    before = _handler()
    is_ours = before is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, keep)
    requeue.wait(True)
    try:
        yield
    finally:
        requeue.wait(False)
        if is_ours:
            signal.signal(signal.SIGINT, before)
    if came or requeue.asked() is not None:
        raise KeyboardInterrupt


def _handler() -> Any:
    """What Ctrl-C does; None outside of the main thread, where nobody can say."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
