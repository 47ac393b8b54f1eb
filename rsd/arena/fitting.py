"""Contestants fitted and measured in several processes, one computing thread each.

What surprises first: whatever one contestant raises, or does to its process, the others go on; it comes back as the
reason why it is not there. Times are not taken here, where all cores are busy. Contestants travel as bytes, since
torch would hand over their tensors as shared memory of a process that ends.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from rsd.arena.contract import Contestant
from rsd.arena.measure import measure
from rsd.pool import Death, Pool
from rsd.space import Space
from rsd.tokenizer.round_trip import in_chunks, joined


@dataclass(frozen=True, eq=False)
class Fitting:
    """A contestant to fit on a suite; travels to a worker by pickle.

    Attributes:
        suite, name: Whose.
        pickled: A fresh contestant.
        space: What the chunks' numbers mean.
        fit, held: Chunks to fit on and to measure on, [N, T, A], float32, model space.
        episodes: Name → actions of whole episodes to say, [n, A], standard.
        seed, max_steps: See `Contestant.fit`.
    """

    suite: str
    name: str
    pickled: bytes
    space: Space
    fit: np.ndarray
    held: np.ndarray
    episodes: Mapping[str, np.ndarray]
    seed: int
    max_steps: int | None


@dataclass(frozen=True, eq=False)
class Fitted:
    """What became of it.

    Attributes:
        pickled: The contestant, fitted.
        steps: Optimizer steps that it took.
        depths: See `rsd.arena.measure.measure`.
        said: Name of each episode → as each depth says it, [Q, n, A], standard.
    """

    pickled: bytes
    steps: int
    depths: list[dict[str, Any]]
    said: dict[str, np.ndarray]

    def contestant(self) -> Contestant:
        """The contestant itself."""
        return _unpickled(self.pickled)


def fit_all(jobs: Sequence[Fitting], num_workers: int) -> Generator[tuple[Fitting, Fitted | str]]:
    """Fit and measure; yields each with what became of it, or with why nothing did, as they end.

    Close the generator (contextlib.closing) to stop the workers early. One worker is this process.
    """
    if num_workers == 1:
        yield from ((job, _fitted(job)) for job in jobs)
        return
    waiting = list(jobs)
    pool: Pool[Fitting] = Pool(work, size=min(num_workers, len(waiting)))
    try:
        while True:
            for seat in pool.idle():
                if waiting:
                    pool.give(seat, waiting.pop(0))
            if not pool.jobs():
                return
            for seat, job, message in pool.listen():
                if isinstance(message, Death):
                    if pool.replace(seat):
                        continue
                    message = f"its process died ({message.cause})"
                seat.job = None
                yield job, message
    finally:
        pool.stop()


def work(connection: Connection) -> None:
    """Main function of a worker: contestants in, Fitted or a reason out, until the pipe closes."""
    torch.set_num_threads(1)
    try:
        while True:
            connection.send(_fitted(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone


def _fitted(job: Fitting) -> Fitted | str:
    try:
        contestant = _unpickled(job.pickled)
        steps = contestant.fit(torch.from_numpy(job.fit), seed=job.seed, max_steps=job.max_steps)
        depths, chunk = measure(contestant, torch.from_numpy(job.held), job.space), job.held.shape[1]
        said = {name: said_by(contestant, actions, job.space, chunk) for name, actions in job.episodes.items()}
        return Fitted(pickle.dumps(contestant), steps, depths, said)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this contestant's alone
        return f"{type(error).__name__}: {error}"


@torch.inference_mode()
def said_by(contestant: Contestant, actions: np.ndarray, space: Space, chunk: int) -> np.ndarray:
    """An episode's actions, standard, [n, A], as each depth of a fitted contestant says them, [Q, n, A]."""
    chunks, starts = in_chunks(space.to_model(actions), chunk)
    code = contestant.encode(torch.from_numpy(chunks))
    depths = [contestant.decode(code, depth + 1).numpy() for depth in range(contestant.num_stages)]
    return np.stack([space.action.unnormalize(joined(one, starts, len(actions))) for one in depths])


def _unpickled(contestant: bytes) -> Contestant:
    found: Contestant = pickle.loads(contestant)  # noqa: S301  # of this program's own processes
    return found
