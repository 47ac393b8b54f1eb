"""Demonstrations from several processes: one environment each, spawned, and none of them may take the others down.

What surprises first: a worker that dies (killed for memory, crashed in the simulator) is reported and replaced, and its
attempt is repeated. Only an attempt that kills worker after worker, or a task that cannot even be set up, ends the
collection. When the main process is killed, the workers leave at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from rsd.envs.demonstrations import Demonstration, record_demonstration
from rsd.envs.schedule import Attempt, CollectionError, Schedule

MAX_DEATHS = 3  # workers that one attempt may cost
JOIN_S = 5.0  # a worker that is told to stop gets this long


@dataclass(frozen=True)
class Recipe:
    """What a worker needs besides attempts; travels to it by pickle.

    Attributes:
        make_env: Called with task_id=, gives an Env with reset_random.
        make_expert: Called with env=, gives an Expert.
        noise_scales, num_tail_steps: See record_demonstration.
        render: See record_demonstration.
        store_picture: See record_demonstration; compressing in the workers keeps the main process from being the
            bottleneck.
    """

    make_env: Callable[..., Any]
    make_expert: Callable[..., Any]
    noise_scales: tuple[float, ...]
    num_tail_steps: int = 0
    render: bool = True
    store_picture: Callable[[np.ndarray], Any] = np.asarray


@dataclass(frozen=True)
class Crash:
    """A worker's last words: "ExceptionType: message", and whether it happened before the first reset."""

    error: str
    in_setup: bool


@dataclass
class Worker:
    """The main process's end of one worker; attempt is None while it is idle."""

    process: BaseProcess
    connection: Connection
    attempt: Attempt | None = None
    task_id: int | None = None


def collect(
    schedule: Schedule, recipe: Recipe, *, num_workers: int, report: Callable[[str], None]
) -> Iterator[tuple[Attempt, Demonstration]]:
    """Work through a schedule; yields every finished attempt, failures too, after it was recorded in the schedule.

    Close the generator (contextlib.closing) to stop the workers early.

    Raises:
        CollectionError: an attempt cost MAX_DEATHS workers, or a task could not be set up.
    """
    deaths: Counter[Attempt] = Counter()
    workers = [start_worker(recipe) for _ in range(min(num_workers, schedule.num_missing))]
    try:
        while True:
            for worker in workers:
                if worker.attempt is None:
                    assign(worker, schedule)
            busy = [worker for worker in workers if worker.attempt is not None]
            if not busy:
                return
            wait([worker.connection for worker in busy] + [worker.process.sentinel for worker in busy])
            for worker in busy:
                if not worker.connection.poll() and worker.process.is_alive():
                    continue
                message = last_message(worker)
                attempt = worker.attempt
                if isinstance(message, Demonstration):
                    worker.attempt = None
                    schedule.record(attempt, message.outcome, message.num_steps)
                    yield attempt, message
                    continue
                deaths[attempt] += 1
                reason = bury(worker, message)
                if deaths[attempt] >= MAX_DEATHS or (message is not None and message.in_setup):
                    raise CollectionError(f"{attempt.name} cannot be collected: {reason}")
                report(f"a worker died ({reason}) in {attempt.name}; starting another, the episode is repeated")
                schedule.give_back(attempt)
                workers[workers.index(worker)] = start_worker(recipe)
    finally:
        stop(workers)


def start_worker(recipe: Recipe) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, recipe), daemon=True)
    process.start()
    theirs.close()  # so that our end sees the worker's death
    return Worker(process, ours)


def assign(worker: Worker, schedule: Schedule) -> None:
    """Give an idle worker the next attempt, of the task that it has loaded if possible."""
    attempt = schedule.next_attempt(worker.task_id)
    if attempt is None:
        return
    worker.attempt, worker.task_id = attempt, attempt.task_id
    try:
        worker.connection.send(attempt)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it died while idle; the main loop finds that out and repeats the attempt


def last_message(worker: Worker) -> Demonstration | Crash | None:
    """What the worker has sent, or None when it died in silence."""
    try:
        return worker.connection.recv() if worker.connection.poll() else None
    except (EOFError, ConnectionResetError):
        return None


def bury(worker: Worker, message: Crash | None) -> str:
    """Wait for a dead worker's process; returns why it died."""
    worker.process.join(JOIN_S)
    if message is not None:
        return message.error
    code = worker.process.exitcode
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(JOIN_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def leave_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even in the middle of an episode."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def work(connection: Connection, recipe: Recipe) -> None:
    """Main function of a worker: attempts in, demonstrations out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    threading.Thread(target=leave_with_parent, daemon=True).start()
    env = expert = None
    try:
        while True:
            attempt = connection.recv()
            if env is None or env.task_id != attempt.task_id:
                if env is not None:
                    env.close()
                env = expert = None
                env = recipe.make_env(task_id=attempt.task_id)
                expert = recipe.make_expert(env=env)
            demonstration = record_demonstration(
                env,
                expert,
                seed=attempt.placement_seed,
                noise_scales=recipe.noise_scales,
                num_tail_steps=recipe.num_tail_steps,
                render=recipe.render,
                store_picture=recipe.store_picture,
            )
            connection.send(demonstration)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone
    except Exception as error:  # whatever the simulator raises is the worker's last word, and is raised all the same
        connection.send(Crash(f"{type(error).__name__}: {error}", in_setup=expert is None))
        raise
    finally:
        if env is not None:
            env.close()
