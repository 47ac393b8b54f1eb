"""Demonstrations from several processes: one environment each, spawned, and none of them may take the others down.

What surprises first: a worker that dies (killed for memory, crashed in the simulator) or does not answer any more is
reported and replaced, and its attempt is repeated. Only an attempt that kills worker after worker, or a task that
cannot even be set up, ends the collection. When the main process is killed, the workers leave at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Annotated, Any

import numpy as np

from rsd.demos.demonstrations import Demonstration, Expert, RandomStartEnv, record_demonstration
from rsd.demos.schedule import Attempt, CollectionError, Schedule
from rsd.errors import SettingError
from rsd.pool import Pool
from rsd.settings import Length, Natural, NotNegative, checked
from rsd.silence import simulator_turn


@checked
@dataclass(frozen=True)
class Recipe:
    """What a worker needs besides attempts; travels to it by pickle.

    Attributes:
        make_env: Called with task_id=.
        make_expert: Called with env=, gives an Expert.
        noise_scales, num_tail_steps, lead_steps: See record_demonstration.
        make_lead: Called with env=, gives who acts before the expert; None for nobody.
        render: See record_demonstration.
        store_picture: See record_demonstration; compressing in the workers keeps the main process from being the
            bottleneck.
    """

    make_env: Callable[..., RandomStartEnv]
    make_expert: Callable[..., Expert]
    noise_scales: Annotated[Sequence[NotNegative], Length()]
    num_tail_steps: Natural = 0
    make_lead: Callable[..., Expert] | None = None
    lead_steps: tuple[Natural, Natural] = (0, 0)
    render: bool = True
    store_picture: Callable[[np.ndarray], Any] = np.asarray

    def __post_init__(self) -> None:
        if self.lead_steps[0] > self.lead_steps[1]:
            raise SettingError(f"lead_steps is {list(self.lead_steps)}, expected the fewest and then the most")


@dataclass(frozen=True)
class Crash:
    """A worker's last words: "ExceptionType: message", and whether it happened before the first reset."""

    cause: str
    in_setup: bool


def collect(
    schedule: Schedule,
    recipe: Recipe,
    *,
    num_workers: int,
    report: Callable[[str], None],
    render_devices: Sequence[int] | None = None,
    patience_s: float = math.inf,
) -> Generator[tuple[Attempt, Demonstration]]:
    """Work through a schedule; yields every finished attempt, failures too, after it was recorded in the schedule.

    Close the generator (contextlib.closing) to stop the workers early.

    Args:
        report: Told about workers that died.
        render_devices: See `rsd.workers.render_variables`.
        patience_s: Longest time that building an environment, a reset or a step may take.

    Raises:
        CollectionError: an attempt cost MAX_DEATHS workers, or a task could not be set up.
    """
    size = min(num_workers, schedule.num_missing)
    pool: Pool[Attempt] = Pool(work, recipe, size=size, render_devices=render_devices, patience_s=patience_s)
    try:
        while True:
            for seat in pool.idle():
                following = schedule.next_attempt(None if seat.last is None else seat.last.task_id)
                if following is not None:
                    pool.give(seat, following)
            if not pool.jobs():
                return
            for seat, attempt, message in pool.listen():
                if isinstance(message, Demonstration):
                    seat.job = None
                    schedule.record(attempt, message.outcome, message.num_steps)
                    yield attempt, message
                    continue
                broken = isinstance(message, Crash) and message.in_setup
                if broken or not pool.replace(seat):
                    raise CollectionError(f"{attempt.name} cannot be collected: {message.cause}")
                report(f"a worker died ({message.cause}) in {attempt.name}; starting another, the episode is repeated")
    finally:
        pool.stop()


def work(connection: Connection, recipe: Recipe) -> None:
    """Main function of a worker: attempts in, demonstrations out, until the pipe closes."""
    env = expert = lead = None
    try:
        while True:
            attempt = connection.recv()
            if env is None or expert is None or env.task.task_id != attempt.task_id:
                if env is not None:
                    env.close()
                env = expert = lead = None
                with simulator_turn():
                    env = recipe.make_env(task_id=attempt.task_id)
                with simulator_turn():  # it may load a policy
                    lead = None if recipe.make_lead is None else recipe.make_lead(env=env)
                with simulator_turn():
                    expert = recipe.make_expert(env=env)
            demonstration = record_demonstration(
                env,
                expert,
                seed=attempt.placement_seed,
                noise_scales=recipe.noise_scales,
                num_tail_steps=recipe.num_tail_steps,
                lead=lead,
                lead_steps=recipe.lead_steps,
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
