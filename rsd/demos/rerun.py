"""Recorded demonstrations executed again, each from its own start, raw and as others say them: arms of one episode.

What surprises first: a record holds labels, and what was executed while it was collected may have been disturbed (see
rsd/demos/demonstrations.py). Labels of such an episode lead elsewhere, whoever decodes them; `drawn_scale` tells which
ones those are. And a start is believed only when it looks as the recorded one: another version of the simulator, or
another task, would give rates that mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np

from rsd.demos.collection import Crash
from rsd.demos.demonstrations import RandomStartEnv
from rsd.errors import RSDError
from rsd.pool import Death, Pool
from rsd.settings import Measured, Natural, Total
from rsd.silence import simulator_turn
from rsd.types import Observation

RAW = "raw"  # the arm of the recorded actions
BLOCKS = 8  # a side, of which the mean colours of a first picture are compared
MAX_START_OFF = 12.0  # levels of 0..255 by which any of them may differ; JPEG makes up to 3, a moved bowl 20 and more


class RerunError(RSDError, RuntimeError):
    """Demonstrations cannot be executed again; what is written stays."""


class RestartEnv(RandomStartEnv, Protocol):
    """An Env that can also begin in a recorded state."""

    def reset_state(self, state: np.ndarray) -> Observation:
        """Like `reset`, from a state [state]."""


@dataclass(frozen=True, eq=False)
class Rerun:
    """An episode to execute again; travels to a worker by pickle.

    Attributes:
        episode: Its number in the data set.
        task_id: Of the suite.
        placement_seed: What `reset_random` takes; None where `state` is given.
        state: A recorded state, [state].
        view, picture: Name of a camera, and what it has recorded first, [H, W, 3], uint8.
        arms: Name → robot commands, [n, A].
    """

    episode: int
    task_id: int
    placement_seed: int | None
    state: np.ndarray | None
    view: str
    picture: np.ndarray
    arms: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ArmOutcome:
    """How one arm ended: success, and control steps until then or in all."""

    success: bool
    num_steps: Total


@dataclass
class RerunResult:
    """An episode that was executed again; a line of results.jsonl.

    Attributes:
        episode, task_id: See Rerun.
        file_path, instruction: As the data set has them.
        noise_scale: With which its collection was disturbed; None where nobody knows.
        start_off: Largest difference of a block's mean colour between the first picture and the recorded one, levels.
        arms: Name → outcome; empty where the start is another one.
        wall_s: Seconds.
    """

    episode: Natural
    task_id: Natural
    file_path: str
    instruction: str
    noise_scale: float | None
    start_off: Measured
    arms: dict[str, ArmOutcome] = field(default_factory=dict)
    wall_s: Measured = 0.0


def rerun(
    jobs: Sequence[Rerun],
    make_env: Callable[..., RestartEnv],
    *,
    num_still: int,
    num_workers: int,
    report: Callable[[str], None],
    render_devices: Sequence[int] | None = None,
    patience_s: float = math.inf,
    lost: Callable[[Rerun, str], None] | None = None,
) -> Generator[tuple[Rerun, float, dict[str, ArmOutcome]]]:
    """Execute episodes in several processes; yields each with its start's difference and its arms, as they end.

    Close the generator (contextlib.closing) to stop the workers early.

    Args:
        make_env: Called with task_id=.
        num_still: Steps in which the robot stands still behind the last command, for what is still falling.
        report, render_devices, patience_s: See `rsd.demos.collection.collect`.
        lost: Told of an episode that cost MAX_DEATHS workers, and why; the others go on.

    Raises:
        RerunError: an episode cost MAX_DEATHS workers, or a task could not be set up, and `lost` is None.
    """
    waiting = list(jobs)
    size = min(num_workers, len(waiting))
    pool: Pool[Rerun] = Pool(work, make_env, num_still, size=size, render_devices=render_devices, patience_s=patience_s)
    try:
        while True:
            for seat in pool.idle():
                last = None if seat.last is None else seat.last.task_id
                following = next((job for job in waiting if job.task_id == last), waiting[0] if waiting else None)
                if following is not None:
                    waiting.remove(following)
                    pool.give(seat, following)
            if not pool.jobs():
                return
            for seat, job, message in pool.listen():
                if isinstance(message, Crash | Death):
                    broken = isinstance(message, Crash) and message.in_setup and lost is None
                    if broken or not pool.replace(seat):
                        if lost is None:
                            raise RerunError(f"episode {job.episode} cannot be executed again: {message.cause}")
                        lost(job, message.cause)
                        seat.job = None
                        continue
                    report(f"a worker died ({message.cause}) in episode {job.episode}; it is repeated in another")
                    continue
                seat.job = None
                yield job, *message
    finally:
        pool.stop()


def work(connection: Connection, make_env: Callable[..., RestartEnv], num_still: int) -> None:
    """Main function of a worker: episodes in, (start_off, arms) out, until the pipe closes."""
    env: RestartEnv | None = None
    try:
        while True:
            job = connection.recv()
            if env is None or env.task.task_id != job.task_id:
                if env is not None:
                    env.close()
                env = None
                with simulator_turn():
                    env = make_env(task_id=job.task_id)
            connection.send(execute(env, job, num_still))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone
    except Exception as error:  # whatever the simulator raises is the worker's last word, and is raised all the same
        connection.send(Crash(f"{type(error).__name__}: {error}", in_setup=env is None))
        raise
    finally:
        if env is not None:
            env.close()


def execute(env: RestartEnv, job: Rerun, num_still: int) -> tuple[float, dict[str, ArmOutcome]]:
    """How far the start is off, and each arm's outcome; none where it is off too far."""
    outcomes: dict[str, ArmOutcome] = {}
    off = 0.0
    for name, commands in job.arms.items():
        off = start_off(_begin(env, job).images[job.view], job.picture)
        if off > MAX_START_OFF:
            return off, {}
        outcomes[name] = run_commands(env, commands, num_still)
    return off, outcomes


def _begin(env: RestartEnv, job: Rerun) -> Observation:
    with simulator_turn():
        if job.state is not None:
            return env.reset_state(job.state)
        assert job.placement_seed is not None
        return env.reset_random(job.placement_seed)


def run_commands(env: RestartEnv, commands: np.ndarray, num_still: int) -> ArmOutcome:
    """Execute commands [n, A], clipped as a queue does, until success; then stand still for `num_still` steps."""
    low, high = env.task.limits
    still = np.zeros(commands.shape[1])
    still[-1] = commands[-1, -1]
    for number, command in enumerate([*np.clip(commands, low, high), *[still] * num_still], start=1):
        with simulator_turn():
            taken = env.step(command, observe=False)
        if taken.success:
            return ArmOutcome(True, number)
    return ArmOutcome(False, len(commands) + num_still)


def start_off(picture: np.ndarray, recorded: np.ndarray) -> float:
    """Largest difference of mean colours of BLOCKS x BLOCKS parts of two pictures [H, W, 3], of whatever sizes."""
    return float(np.abs(_block_means(picture) - _block_means(recorded)).max())


def _block_means(picture: np.ndarray) -> np.ndarray:
    """[BLOCKS, BLOCKS, 3]; rows and columns beyond a multiple of BLOCKS are left out."""
    height, width = (size // BLOCKS for size in picture.shape[:2])
    whole = picture[: height * BLOCKS, : width * BLOCKS].astype(np.float64)
    return whole.reshape(BLOCKS, height, BLOCKS, width, 3).mean(axis=(1, 3))
