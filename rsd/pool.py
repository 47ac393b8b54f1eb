"""Seats for workers, each with a job or idle: whoever dies or falls silent is replaced, and its job is tried again.

A job that costs MAX_DEATHS workers is given up. What that means is the caller's business, as are the jobs' order and
the messages: to a worker goes its job, what comes back is anything that pickle takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rsd.workers import Worker, WorkerDiedError, ready, render_variables, start_worker, stop_workers

MAX_DEATHS = 3  # workers that one job may cost

Job = TypeVar("Job", bound=Hashable)


@dataclass(frozen=True)
class Death:
    """Instead of a message: the worker is gone, or will never answer, and why."""

    cause: str


@dataclass(eq=False)
class Seat(Generic[Job]):
    """A place for one worker, and for its successors.

    Attributes:
        job: What the worker is at; None while it is idle.
        last: The latest job that this worker got, so what it has loaded; None for a new worker.
        variables: Environment variables of the worker.
    """

    worker: Worker
    variables: dict[str, str]
    job: Job | None = None
    last: Job | None = None


class Pool(Generic[Job]):
    """Workers at their seats, started at once; `stop` it in the end.

    Args:
        main: Main function of a worker, called as main(connection, *arguments): jobs in, messages out, until the pipe
            closes (EOFError).
        arguments: Whatever pickle takes.
        size: Number of workers.
        render_devices: See `rsd.workers.render_variables`.
        patience_s: A worker with a job counts as dead after so many seconds without a message or a sign of life.
    """

    def __init__(
        self,
        main: Callable[..., None],
        *arguments: Any,
        size: int,
        render_devices: Sequence[int] | None = None,
        patience_s: float = math.inf,
    ) -> None:
        self._main, self._arguments, self._patience_s = main, arguments, patience_s
        self._deaths: Counter[Job] = Counter()
        self.seats: list[Seat[Job]] = []
        for number in range(size):
            variables = render_variables(render_devices, number)
            self.seats.append(Seat(self._start(variables), variables))

    def stop(self) -> None:
        """End all workers, by force those that do not go."""
        stop_workers([seat.worker for seat in self.seats])

    def jobs(self) -> list[Job]:
        """What the workers are at."""
        return [seat.job for seat in self.seats if seat.job is not None]

    def idle(self) -> list[Seat[Job]]:
        """Seats without a job."""
        return [seat for seat in self.seats if seat.job is None]

    def give(self, seat: Seat[Job], job: Job) -> None:
        """Set a worker to a job. Its seat is idle again when the caller says so: `seat.job = None`."""
        seat.job = seat.last = job
        seat.worker.send(job)

    def listen(self) -> Iterator[tuple[Seat[Job], Job, Any]]:
        """Wait until a worker with a job has said something, died or been silent for too long; yields those seats,
        their jobs, and what came, or a Death."""
        busy = {seat.worker: (seat, seat.job) for seat in self.seats if seat.job is not None}
        for worker in ready(list(busy), self._patience_s):
            try:
                message = worker.receive()
            except WorkerDiedError as death:
                message = Death(str(death))
            yield *busy[worker], message

    def replace(self, seat: Seat[Job]) -> bool:
        """Put a new worker in the place of one that died or ends here; whether its job gets a further attempt, from it.

        After MAX_DEATHS workers it is not: the job stays the seat's, with nobody at it.
        """
        assert seat.job is not None, "only a worker with a job is listened to"
        stop_workers([seat.worker])
        seat.worker, seat.last = self._start(seat.variables), None
        self._deaths[seat.job] += 1
        if self._deaths[seat.job] >= MAX_DEATHS:
            return False
        self.give(seat, seat.job)
        return True

    def _start(self, variables: dict[str, str]) -> Worker:
        return start_worker(self._main, *self._arguments, variables=variables)
