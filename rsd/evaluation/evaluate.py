"""The loop over tasks and trials: runs what is missing, and puts every episode on disk before the next one.

A crash inside an episode ends that episode only, with its traceback in crashed_episodes.log; the environment is then
built anew, because nobody knows what state the crash left it in. Ctrl-C and a full disk end the run, which can be
continued.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd import interrupts
from rsd.clock import Clock
from rsd.errors import RSDError
from rsd.evaluation.plan import PlannedEpisode, hold_to_plan, missing_places
from rsd.evaluation.results import (
    CRASHED_FILE,
    RESULTS_FILE,
    ResultsError,
    append_result,
    episode_id,
    read_results,
    set_crashed_aside,
    set_torn_line_aside,
)
from rsd.evaluation.rollout import Episode
from rsd.evaluation.trace import write_trace
from rsd.evaluation.video import VideoError, check_ffmpeg, write_video
from rsd.queue import NO_DELAY
from rsd.record import shown
from rsd.runs import resume_command
from rsd.silence import patience, simulator_turn
from rsd.types import Env, EpisodeResult, Policy, Task

ERRORS_FILE = "crashed_episodes.log"


class PolicyFailure(RSDError, RuntimeError):
    """The policy raised in another process; the message is "ExceptionType: message" of what it raised there."""


class CrashedEpisodesError(RSDError, RuntimeError):
    """Every planned episode has its line, but some crashed."""


@dataclass(frozen=True)
class Recording:
    """What is common to all episodes of a run.

    Attributes:
        run_dir: Where videos, traces and the log of crashes go.
        every_step: Render every control step of recorded episodes, and not only those that the policy sees.
        clip_actions: See `rsd.queue.executed_actions`.
        clock: How late chunks are, and what is done meanwhile.
    """

    run_dir: Path
    every_step: bool = False
    clip_actions: bool = True
    clock: Clock = NO_DELAY


def resume_results(run_dir: Path, plan: Sequence[PlannedEpisode], tasks: Sequence[Task]) -> list[EpisodeResult]:
    """Episodes that are already on disk; makes an empty results.jsonl at a first start.

    A torn last line is moved aside, with a warning that names the file; crashed episodes are, too, and run again.

    Raises:
        PlanError: an episode on disk is not of the plan; see `hold_to_plan`.
    """
    path = run_dir / RESULTS_FILE
    path.touch()
    aside = set_torn_line_aside(path)
    if aside is not None:
        logging.getLogger(__name__).warning("the last line of %s was torn or damaged; kept aside as %s", path, aside)
    done, _ = read_results(path)
    hold_to_plan(done, plan, tasks, path)
    crashed = set_crashed_aside(path)
    if crashed:
        logging.getLogger(__name__).warning("%d crashed episodes are run again; kept in %s", crashed, CRASHED_FILE)
    return [result for result in done if result.error is None]


def check_no_crash(num_errors: int, num_planned: int, run_dir: Path) -> None:
    """Tell of crashed episodes, after everything else is done.

    Raises:
        CrashedEpisodesError: there is one; the message names the log of them.
    """
    if num_errors:
        raise CrashedEpisodesError(f"{num_errors} of {num_planned} episodes crashed; see {run_dir / ERRORS_FILE}")


def check_all_kept(run_dir: Path, plan: Sequence[PlannedEpisode]) -> None:
    """See that a run that has ended has all of its planned episodes on disk.

    Raises:
        ResultsError: lines, or the whole folder, were removed in the meantime.
    """
    path = run_dir / RESULTS_FILE
    missing = missing_places(plan, read_results(path)[0])
    if missing:
        raise ResultsError(
            f"{path} holds {len(plan) - len(missing)} of the {len(plan)} planned episodes; the others, (task, init "
            f"state) {shown(missing)}, were removed from it while the run went on. Make them again with: "
            f"{resume_command(run_dir)}"
        )


def evaluate(
    *,
    make_env: Callable[..., Env],
    policy: Policy,
    plan: Sequence[PlannedEpisode],
    done: Sequence[EpisodeResult],
    recording: Recording,
    patience_s: float = math.inf,
) -> Generator[EpisodeResult]:
    """Run the planned episodes that are not done; yield each after it was written to results.jsonl.

    Args:
        make_env: Called with task_id=…; one environment lives at a time, and is kept for the trials of a task.
        patience_s: See `rsd.silence.patience`.
    """
    current = CurrentEnv(make_env)
    try:
        for planned in missing_episodes(plan, done):
            with patience(patience_s):
                result = run_episode(current, policy, planned, recording)
            append_result(recording.run_dir / RESULTS_FILE, result)
            yield result
    finally:
        with patience(patience_s):
            current.close()


class CurrentEnv:
    """The one environment of a process: kept while the task stays, built anew after a crash.

    Args:
        make_env: Called with task_id=….
    """

    def __init__(self, make_env: Callable[..., Env]) -> None:
        self._make_env = make_env
        self._env: Env | None = None

    def env(self, task_id: int) -> Env:
        """The environment of that task."""
        if self._env is not None and self._env.task.task_id != task_id:
            self.close()
        if self._env is None:
            with simulator_turn(), interrupts.held():
                self._env = self._make_env(task_id=task_id)
        return self._env

    def abandon(self) -> None:
        """As `close`, for an environment in an unknown state: what it raises is logged."""
        try:
            self.close()
        except Exception:  # whatever a broken simulator raises; the next episode gets a new one
            logging.getLogger(__name__).warning("a crashed environment could not be closed", exc_info=True)

    def close(self) -> None:
        """Close the environment, if there is one."""
        if self._env is not None:
            env, self._env = self._env, None
            with simulator_turn():
                env.close()


def missing_episodes(plan: Sequence[PlannedEpisode], done: Sequence[EpisodeResult]) -> list[PlannedEpisode]:
    """The planned episodes that are not done; asks for ffmpeg before anything starts, if one of them is recorded."""
    have = {episode_id(result) for result in done}
    missing = [episode for episode in plan if (episode.task_id, episode.init_state_id) not in have]
    if any(episode.record for episode in missing):
        check_ffmpeg()
    return missing


def run_episode(current: CurrentEnv, policy: Policy, planned: PlannedEpisode, recording: Recording) -> EpisodeResult:
    """Run one episode; a crash becomes the result's error, with its traceback in crashed_episodes.log.

    An environment that cannot even be built raises: no other episode of the task could run either.
    """
    env = current.env(planned.task_id)
    interrupts.in_order()  # from here on there is a simulator to close
    start = time.perf_counter()
    episode = Episode(
        env,
        policy,
        record=planned.record,
        record_every_step=recording.every_step,
        clip_actions=recording.clip_actions,
        clock=recording.clock,
    )
    error: str | None = None
    try:
        episode.run(init_state_id=planned.init_state_id, seed=planned.seed)
    except Exception as exception:  # noqa: BLE001  a crash must be reported as one, whatever simulator or model raise
        error = describe(exception)
        log_crash(recording.run_dir, planned, traceback.format_exc())
        current.abandon()
    result = episode.result(
        init_state_id=planned.init_state_id,
        seed=planned.seed,
        wall_s=time.perf_counter() - start,
        error=error,
        video=None,
        trace=None,
    )
    return _with_files(result, episode, recording, policy.num_open_loop_steps) if episode.frames else result


def _with_files(
    result: EpisodeResult, episode: Episode, recording: Recording, num_open_loop_steps: int
) -> EpisodeResult:
    """The result with its video and trace written; an episode whose video cannot be written keeps its outcome."""
    name = f"task{result.task_id:02d}_init{result.init_state_id:02d}"
    control_hz = episode.env.task.control_hz
    between: float = num_open_loop_steps  # control steps between two frames
    if recording.clock.delay:  # as many as it came to be
        between = max(1, episode.num_steps / max(1, len(episode.frames) - 1))
    fps = control_hz if recording.every_step else control_hz / between
    video, trace = f"videos/{name}.mp4", f"traces/{name}.json"
    try:
        write_video(recording.run_dir / video, episode.frames, fps)
        write_trace(
            recording.run_dir / trace,
            episode.chunks,
            fps=fps,
            every_step=recording.every_step,
            success=result.success,
            num_steps=result.num_steps,
        )
    except (VideoError, OSError) as error:
        logging.getLogger(__name__).warning("%s cannot be looked at later: %s", name, error)
        return result
    return dataclasses.replace(result, video=video, trace=trace)


def describe(exception: Exception) -> str:
    """ "ExceptionType: message", as it stands in results."""
    if isinstance(exception, PolicyFailure):
        return str(exception)
    return f"{type(exception).__name__}: {exception}"


def log_crash(run_dir: Path, planned: PlannedEpisode, text: str) -> None:
    """Append to crashed_episodes.log."""
    with open(run_dir / ERRORS_FILE, "a", encoding="utf-8") as log:
        log.write(f"task {planned.task_id}, init state {planned.init_state_id}\n{text}\n")
