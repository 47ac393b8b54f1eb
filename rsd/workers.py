"""Worker processes that may die or fall silent: spawned, told apart, listened to, buried and stopped.

A simulator can take its process with it (a segmentation fault, a GL abort, the kernel out of memory) or hold it for
ever, so whoever starts one here learns why it died and goes on with another. What surprises first: a worker also ends
by itself as soon as the process that started it is gone, in the middle of whatever it does; nothing is left running
after a kill -9.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from rsd.errors import RSDError
from rsd.silence import count_turns

JOIN_S = 5.0  # a worker that is told to stop gets this long
START_S = 300.0  # a process that imports its code on a busy machine gets this long in any case
TICK_S = 1.0  # between two looks for signs of life
LONGEST_TICK_S = 10.0  # counted as silence at most; this process may have been stopped itself, and its workers with it
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class WorkerDiedError(RSDError, RuntimeError):
    """A worker process is gone; the message says why, as far as the operating system knows."""


@dataclass(eq=False)
class Worker:
    """The main process's end of a worker; `send` and `close` may be called from different threads.

    Attributes:
        process, connection: Of the worker.
        turns: Its signs of life, counted in shared memory; see `rsd.silence`.
        silent_s: For how long it has owed an answer without one.
        given_up: Why nothing is expected from it any more; None while something is.
    """

    process: BaseProcess
    connection: Connection
    turns: Any
    silent_s: float = 0.0
    given_up: str | None = None
    _owes: bool = False
    _seen: int = 0
    _looked_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: Any) -> None:
        """Hand over a message. One to a worker that has died or was stopped is lost: `receive` will say so."""
        with self._lock, contextlib.suppress(OSError):
            self.connection.send(message)
        self.silent_s, self._looked_s, self._owes = 0.0, time.monotonic(), True

    def close(self) -> None:
        """Close the connection, not in the middle of a message; a worker that listens ends then."""
        with self._lock:
            self.connection.close()

    def receive(self) -> Any:
        """The next message; call it when `ready` has named the worker.

        Raises:
            WorkerDiedError: there is none and there will be none.
        """
        if self.given_up is not None:
            raise WorkerDiedError(self.given_up)
        try:
            message = self.connection.recv()
        except (EOFError, OSError):  # nothing, or a message that breaks off
            self.process.join(JOIN_S)
            raise WorkerDiedError(_cause_of_death(self.process.exitcode)) from None
        self._owes = False
        return message

    @property
    def has_started(self) -> bool:
        """Whether its main function has been called."""
        return self.turns.value > 0

    def look(self) -> None:
        """Count for how long it is silent: it has been sent something, and neither answered nor given a sign."""
        now, turns = time.monotonic(), self.turns.value
        if self._owes and turns == self._seen:
            self.silent_s += min(now - self._looked_s, LONGEST_TICK_S)
        else:
            self.silent_s = 0.0
        self._seen, self._looked_s = turns, now


def start_worker(main: Callable[..., None], *arguments: Any, variables: Mapping[str, str] | None = None) -> Worker:
    """Spawn a process that calls `main(connection, *arguments)`.

    Args:
        main: A module's function. It ends when the connection closes (EOFError).
        arguments: Whatever pickle takes.
        variables: Environment variables of the process, beside those that give it one computing thread: as many
            processes as cores would otherwise fight.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    turns = context.RawValue("Q", 0)
    process = context.Process(target=_run, args=(theirs, turns, main, arguments), daemon=True)
    with _environment({**ONE_THREAD, **(variables or {})}), _no_ctrl_c():
        process.start()
    theirs.close()  # so that our end sees the worker's death
    return Worker(process, ours, turns)


def render_variables(render_devices: Sequence[int] | None, number: int) -> dict[str, str]:
    """Environment variables that make worker `number` draw on its GPU.

    Args:
        render_devices: EGL device numbers, given to the workers in turn; None leaves the choice to MuJoCo.
    """
    if not render_devices:
        return {}
    return {"MUJOCO_EGL_DEVICE_ID": str(render_devices[number % len(render_devices)])}


def ready(workers: Sequence[Worker], patience_s: float = math.inf) -> list[Worker]:
    """Wait until one of the workers has said something, died, or been silent for too long; returns those that have.

    Args:
        patience_s: How long a worker that owes an answer may go on without a sign of life. One that was silent for
            longer is given up: `receive` says so.
    """
    while True:
        heard = set(wait([worker.connection for worker in workers], TICK_S))
        for worker in workers:
            worker.look()
            limit_s = patience_s if worker.has_started else max(patience_s, START_S)
            if worker.connection not in heard and worker.silent_s >= limit_s:
                worker.given_up = f"no answer for {limit_s:.0f} s"
        found = [worker for worker in workers if worker.connection in heard or worker.given_up]
        if found:
            return found


def stop_workers(workers: Sequence[Worker]) -> None:
    """End all of them, by force those that do not go, as one that is stopped (SIGSTOP) does not."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + JOIN_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(JOIN_S)
    for worker in workers:
        worker.close()  # last: somebody may be in the middle of a message to a worker that did not listen


def _run(connection: Connection, turns: Any, main: Callable[..., None], arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    count_turns(turns)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    main(connection, *arguments)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # it has been spawned
    wait([parent.sentinel])
    os._exit(1)


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Let a process that is started here inherit that Ctrl-C waits, until `_run` says what becomes of it."""
    resource_tracker.ensure_running()  # else `start` does that, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables while a process is being started; it inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
