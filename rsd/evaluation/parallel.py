"""The evaluation loop over several processes: many simulators feed one batched policy.

Each worker has one environment and no model. It sends what it sees; the policies, one for each computing device, live
in threads of the main process and answer whatever is waiting as one batch. What surprises first: a worker that dies
(segmentation fault, GL abort, out of memory) or does not answer any more is replaced and its episode tried again,
MAX_DEATHS times in all.

Outcomes do not depend on the number of workers: an episode depends on its init state and its seed alone, and a policy
on a CPU answers one observation at a time, because the last bits of a batched matrix product depend on the batch.
Latencies do: they are those of a machine that is busy.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from rsd import interrupts
from rsd.errors import RSDError, SettingError
from rsd.evaluation.evaluate import (
    CurrentEnv,
    PolicyFailure,
    Recording,
    describe,
    evaluate,
    log_crash,
    missing_episodes,
    run_episode,
)
from rsd.evaluation.plan import PlannedEpisode
from rsd.evaluation.results import RESULTS_FILE, append_result
from rsd.pool import MAX_DEATHS, Death, Pool, Seat
from rsd.types import Chunk, Env, EpisodeResult, Policy, Request
from rsd.workers import Worker


class SetupError(RSDError, RuntimeError):
    """A task's environment cannot be built."""


@dataclass(frozen=True)
class Failure:
    """Instead of a chunk: what the policy raised, in one line and as a traceback."""

    error: str
    text: str


@dataclass(frozen=True)
class BrokenSetup:
    """A worker's last words: its environment could not be built."""

    error: str


@dataclass
class PolicyThreads:
    """Threads that answer requests, one a policy; each takes everything that waits, up to `max_batch`."""

    policies: Sequence[Policy]
    max_batch: int
    _requests: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for policy in self.policies:
            self._threads.append(threading.Thread(target=self._serve, args=(policy,), daemon=True))
            self._threads[-1].start()

    def ask(self, worker: Worker, request: Request) -> None:
        """The answer, a Chunk or a Failure, goes straight to the worker."""
        self._requests.put((worker, request))

    def stop(self) -> None:
        """Let the threads finish what they are at."""
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, policy: Policy) -> None:
        while (first := self._requests.get()) is not None:
            batch = [first]
            while len(batch) < self.max_batch and not self._requests.empty():
                try:
                    another = self._requests.get_nowait()
                except queue.Empty:  # another thread was faster
                    break
                if another is None:
                    self._requests.put(None)  # somebody's signal to stop; it comes round again
                    break
                batch.append(another)
            workers, requests = zip(*batch, strict=True)
            for worker, answer in zip(workers, answers(policy, requests), strict=True):
                try:
                    worker.send(answer)
                except Exception as exception:  # noqa: BLE001  an answer that pickle refuses must not end this thread
                    worker.send(Failure(describe(exception), traceback.format_exc()))


def answers(policy: Policy, requests: Sequence[Request]) -> list[Chunk | Failure]:
    """One batched prediction; if that fails, one by one, so that only the episode that fails is charged with it."""
    try:
        chunks: list[Chunk | Failure] = [*policy.predict(requests)]
        if len(chunks) != len(requests):
            raise ValueError(f"the policy returned {len(chunks)} chunks for {len(requests)} observations")
        return chunks
    except Exception as exception:  # noqa: BLE001  becomes the error of the episode, whatever the model raised
        if len(requests) == 1:
            return [Failure(describe(exception), traceback.format_exc())]
    return [answers(policy, [request])[0] for request in requests]


class RemotePolicy:
    """A worker's view of the policy in the main process."""

    def __init__(self, connection: Connection, num_open_loop_steps: int) -> None:
        self.num_open_loop_steps = num_open_loop_steps
        self._connection = connection

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """See `Policy.predict`; one request at a time.

        Raises:
            PolicyFailure: the policy raised.
        """
        (request,) = requests
        try:
            self._connection.send(request)
            answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise SystemExit from None  # the main process is gone: no crash of this episode
        if isinstance(answer, Failure):
            failure = PolicyFailure(answer.error)
            failure.add_note(answer.text)
            raise failure
        return [answer]


def device_names(device: str | Sequence[str]) -> list[str]:
    """The computing devices, one policy each: "cuda" is one, ["cuda:0", "cuda:1"] are two."""
    return [device] if isinstance(device, str) else list(device)


def evaluate_parallel(
    *,
    make_env: Callable[..., Env],
    policies: Sequence[Policy],
    max_batch: int,
    plan: Sequence[PlannedEpisode],
    done: Sequence[EpisodeResult],
    recording: Recording,
    num_workers: int,
    suite: str,
    render_devices: Sequence[int] | None = None,
    in_order: bool = False,
    patience_s: float = math.inf,
) -> Generator[EpisodeResult]:
    """As `evaluate`, in another order of episodes; close the generator to stop the workers early.

    Args:
        make_env: Called in the workers, so it has to be picklable.
        policies: The same policy on each computing device.
        max_batch: Largest number of observations in one call of a policy; 1 makes outcomes independent of
            num_workers bit for bit.
        num_workers: Processes; no more than there are missing episodes are started. With 1 the episodes run in this
            process, and a simulator that dies takes it along; one that does not answer is an error at once, or,
            where it does not even return from compiled code, ends the process (see `rsd.silence`).
        suite: Name to be stored with episodes that never came to have an environment.
        render_devices: See `rsd.workers.render_variables`.
        in_order: See `next_episode`.
        patience_s: Longest time that building an environment, a reset or a step may take.

    Raises:
        SetupError: an environment could not be built.
        SettingError: several policies for one worker.
    """
    if num_workers == 1:
        if len(policies) > 1:
            raise SettingError(f"device names {len(policies)} devices, but num_workers=1 uses one; set num_workers")
        alone = evaluate(
            make_env=make_env, policy=policies[0], plan=plan, done=done, recording=recording, patience_s=patience_s
        )
        yield from alone
        return
    waiting = missing_episodes(plan, done)
    interrupts.in_order()  # from here on there are workers to stop
    pool: Pool[PlannedEpisode] = Pool(
        _work,
        make_env,
        policies[0].num_open_loop_steps,
        recording,
        size=min(num_workers, len(waiting)),
        render_devices=render_devices,
        patience_s=patience_s,
    )
    threads = PolicyThreads(policies, max_batch)
    threads.start()
    try:
        for seat in pool.seats:
            _assign(pool, seat, waiting, in_order)
        while pool.jobs():
            for seat, episode, message in pool.listen():
                if isinstance(message, Request):
                    threads.ask(seat.worker, message)
                    continue
                if isinstance(message, BrokenSetup):
                    raise SetupError(f"{suite} task {episode.task_id} cannot be set up: {message.error}")
                if isinstance(message, Death):
                    if pool.replace(seat):
                        logging.getLogger(__name__).warning(
                            "a worker died (%s) in task %d, init state %d; the episode is run again",
                            message.cause,
                            episode.task_id,
                            episode.init_state_id,
                        )
                        continue
                    message = _crashed(episode, message.cause, suite, recording.run_dir)
                append_result(recording.run_dir / RESULTS_FILE, message)
                _assign(pool, seat, waiting, in_order)
                yield message
    finally:
        pool.stop()
        threads.stop()


def next_episode(
    last_task: int | None, waiting: Sequence[PlannedEpisode], on_task: Counter[int], in_order: bool
) -> PlannedEpisode:
    """The episode for an idle worker, which would rather stay on its last task: another scene takes seconds to build.

    Args:
        waiting: What is left of the plan, at least one.
        on_task: How many workers are on each task.
        in_order: Stay close to the plan's order: choose among as many of the first episodes as there are workers.
            Otherwise a worker finishes its task, then takes the one with the most episodes for each worker on it.
    """
    if in_order:
        waiting = waiting[: 1 + on_task.total()]
    own = [episode for episode in waiting if episode.task_id == last_task]
    if own or in_order:
        return (own or waiting)[0]
    left = Counter(episode.task_id for episode in waiting)
    task = max(left, key=lambda task: (left[task] / (1 + on_task[task]), -task))
    return next(episode for episode in waiting if episode.task_id == task)


def _assign(
    pool: Pool[PlannedEpisode], seat: Seat[PlannedEpisode], waiting: list[PlannedEpisode], in_order: bool
) -> None:
    """Give the seat an episode; it stays idle when none is left."""
    seat.job = None
    if waiting:
        last_task = None if seat.last is None else seat.last.task_id
        on_task = Counter(episode.task_id for episode in pool.jobs())
        episode = next_episode(last_task, waiting, on_task, in_order)
        waiting.remove(episode)
        pool.give(seat, episode)


def _crashed(episode: PlannedEpisode, cause: str, suite: str, run_dir: Path) -> EpisodeResult:
    """The end of an episode that has cost too many workers."""
    error = f"WorkerDiedError: {MAX_DEATHS} workers died in this episode, the last of {cause}"
    log_crash(run_dir, episode, f"{error}; with signal SIGKILL memory may have run out: try fewer num_workers")
    return EpisodeResult(
        suite=suite,
        task_id=episode.task_id,
        instruction="",
        init_state_id=episode.init_state_id,
        seed=episode.seed,
        success=False,
        num_steps=0,
        error=error,
    )


def _work(connection: Connection, make_env: Callable[..., Env], num_open_loop_steps: int, recording: Recording) -> None:
    """Main function of a worker: planned episodes in, results out, until the pipe closes."""
    policy = RemotePolicy(connection, num_open_loop_steps)
    current = CurrentEnv(make_env)
    try:
        while True:
            planned = connection.recv()
            try:
                current.env(planned.task_id)
            except Exception as exception:  # whatever a simulator raises; said, and raised again
                connection.send(BrokenSetup(describe(exception)))
                raise
            connection.send(run_episode(current, policy, planned, recording))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone, or has no more episodes
    finally:
        current.close()
