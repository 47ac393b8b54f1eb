"""Worker processes that may die: spawned, told apart, listened to, buried and stopped.

A simulator can take its process with it (a segmentation fault, a GL abort, the kernel out of memory), so whoever starts
one here learns why it died and goes on with another. What surprises first: a worker also ends by itself as soon as the
process that started it is gone, in the middle of whatever it does; nothing is left running after a kill -9.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from rsd.errors import RSDError

JOIN_S = 5.0  # a worker that is told to stop gets this long
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class WorkerDiedError(RSDError, RuntimeError):
    """A worker process is gone; the message says why, as far as the operating system knows."""


@dataclass(eq=False)
class Worker:
    """The main process's end of a worker; `send` and `close` may be called from different threads."""

    process: BaseProcess
    connection: Connection
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: Any) -> None:
        """Hand over a message. One to a worker that has died or was stopped is lost: `receive` will say so."""
        with self._lock, contextlib.suppress(OSError):
            self.connection.send(message)

    def close(self) -> None:
        """Close the connection, not in the middle of a message; a worker that listens ends then."""
        with self._lock:
            self.connection.close()

    def receive(self) -> Any:
        """The next message; call it when `ready` has named the worker.

        Raises:
            WorkerDiedError: there is none and there will be none.
        """
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # nothing, or a message that breaks off
            self.process.join(JOIN_S)
            raise WorkerDiedError(_cause_of_death(self.process.exitcode)) from None


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
    process = context.Process(target=_run, args=(theirs, main, arguments), daemon=True)
    with _environment({**ONE_THREAD, **(variables or {})}):
        process.start()
    theirs.close()  # so that our end sees the worker's death
    return Worker(process, ours)


def render_variables(render_devices: Sequence[int] | None, number: int) -> dict[str, str]:
    """Environment variables that make worker `number` draw on its GPU.

    Args:
        render_devices: EGL device numbers, given to the workers in turn; None leaves the choice to MuJoCo.
    """
    if not render_devices:
        return {}
    return {"MUJOCO_EGL_DEVICE_ID": str(render_devices[number % len(render_devices)])}


def ready(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until one of the workers has said something or died; returns those that have."""
    heard = set(wait([worker.connection for worker in workers]))
    return [worker for worker in workers if worker.connection in heard]


def stop_workers(workers: Sequence[Worker]) -> None:
    """End all of them, by force those that do not go."""
    for worker in workers:
        worker.process.terminate()  # first: a worker that is blocked in a message would keep `close` waiting
        worker.close()
    for worker in workers:
        worker.process.join(JOIN_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _run(connection: Connection, main: Callable[..., None], arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
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
