"""The evaluation loop over several processes: one environment and one copy of the policy each.

What surprises first: latencies measured here are those of processes that share a machine. Success, steps and counters
do not depend on the number of workers: every episode has its own seed and resets everything.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from rsd.evaluation.evaluate import PlannedEpisode, missing_episodes, run_episode
from rsd.evaluation.results import RESULTS_FILE, append_result
from rsd.types import Env, EpisodeResult, Policy

JOIN_S = 5.0  # a worker that is told to stop gets this long
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerDiedError(RuntimeError):
    """A worker process is gone, and with it the episode that it was in."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    episode: PlannedEpisode | None = None


def evaluate_parallel(
    *,
    make_env: Callable[..., Env],
    make_policy: Callable[[], Policy],
    plan: Sequence[PlannedEpisode],
    done: Sequence[EpisodeResult],
    run_dir: Path,
    num_workers: int,
    video_every_step: bool = False,
) -> Iterator[EpisodeResult]:
    """As `evaluate`, in any order of episodes; close the generator to stop the workers early.

    Args:
        make_env, make_policy: Called in the workers, so they have to be picklable.
        num_workers: Processes; no more than there are missing episodes are started.

    Raises:
        WorkerDiedError: a worker was killed, or could not make its policy or environment.
    """
    waiting = _by_task(missing_episodes(plan, done))
    count = min(num_workers, sum(map(len, waiting.values())))
    with _one_thread_each():
        workers = [_start(make_env, make_policy, run_dir, video_every_step) for _ in range(count)]
    try:
        for worker in workers:
            _assign(worker, waiting, workers)
        while busy := [worker for worker in workers if worker.episode is not None]:
            wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection.poll():
                    result = _receive(worker)
                    append_result(run_dir / RESULTS_FILE, result)
                    _assign(worker, waiting, workers)
                    yield result
    finally:
        _stop(workers)


def _by_task(episodes: Sequence[PlannedEpisode]) -> dict[int, deque[PlannedEpisode]]:
    waiting: dict[int, deque[PlannedEpisode]] = defaultdict(deque)
    for episode in episodes:
        waiting[episode.task_id].append(episode)
    return waiting


def next_task(last: int | None, waiting: dict[int, deque[PlannedEpisode]], on_task: Counter[int]) -> int | None:
    """The task for an idle worker: its last one, else the one with the most episodes for each worker on it."""
    left = {task: len(episodes) for task, episodes in waiting.items() if episodes}
    if last in left or not left:
        return last if left else None
    return max(left, key=lambda task: (left[task] / (1 + on_task[task]), -task))


def _assign(worker: _Worker, waiting: dict[int, deque[PlannedEpisode]], workers: Sequence[_Worker]) -> None:
    last = None if worker.episode is None else worker.episode.task_id
    worker.episode = None
    on_task = Counter(other.episode.task_id for other in workers if other.episode is not None)
    task = next_task(last, waiting, on_task)
    if task is not None:
        worker.episode = waiting[task].popleft()
        worker.connection.send(worker.episode)


def _receive(worker: _Worker) -> EpisodeResult:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError) as error:
        worker.process.join(JOIN_S)
        raise WorkerDiedError(
            f"a worker died (exit code {worker.process.exitcode}) in task {worker.episode.task_id}, init state "
            f"{worker.episode.init_state_id}; finished episodes are kept: continue with resume=, and fewer num_workers "
            "if memory ran out"
        ) from error


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside use one thread: as many of them as cores would otherwise fight."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(
    make_env: Callable[..., Env], make_policy: Callable[[], Policy], run_dir: Path, video_every_step: bool
) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, make_env, make_policy, run_dir, video_every_step)
    process = context.Process(target=_work, args=arguments, daemon=True)
    process.start()
    theirs.close()  # so that our end sees the worker's death
    return _Worker(process, ours)


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(JOIN_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _leave_with_parent() -> None:
    """End this process as soon as the one that started it is gone."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(
    connection: Connection,
    make_env: Callable[..., Env],
    make_policy: Callable[[], Policy],
    run_dir: Path,
    video_every_step: bool,
) -> None:
    """Main function of a worker: planned episodes in, results out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    policy = make_policy()
    env: Env | None = None
    try:
        while True:
            planned = connection.recv()
            if env is None or env.task_id != planned.task_id:
                if env is not None:
                    env.close()
                env = make_env(task_id=planned.task_id)
            result = run_episode(env, policy, planned, run_dir, video_every_step)
            if result.error is not None:
                env.close()
                env = None
            connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone, or has no more episodes
    finally:
        if env is not None:
            env.close()
