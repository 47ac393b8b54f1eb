"""Open-loop replay: a policy is shown recorded frames, and its chunks are held against the recorded ones.

What is asked is what a robot would ask: `predict`, with pictures as they are stored, proprio and words, and what comes
back are robot commands. Errors are told in robot units and in model units, whose mean over steps and dims is what
training calls l1. What surprises first: a frame's memory comes of the frame num_open_loop_steps before it, as if a
queue had been running, so that decodings that remember do what they do live, and yet every frame can be asked. And
model units come of the *commands*, by the data set's own statistics: that a policy un-normalises with others, shows.
Of a gripper's command the sign alone is left, so its error in model units is taken before.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rsd.errors import SettingError
from rsd.evaluation.results import RESULTS_FILE, ResultsError, append_result
from rsd.files import is_inside, write_atomically
from rsd.queue import chunk_seed, executed_actions
from rsd.record import EntryError, line_of, parse
from rsd.settings import Count, Natural, Share, Total, checked
from rsd.space import EPSILON, Range, Space
from rsd.types import Chunk, Frame, Memory, Policy, Request
from rsd.work import Counts, add_counts

HELD_OUT, TRAINING = "val", "train"  # splits of rsd/data/datasets.py
DIGITS = 6  # of actions in a trace
Rows = list[list[float]]


@checked
@dataclass(frozen=True)
class Replay:
    """What is replayed.

    Attributes:
        every: Frames that are asked: 1 for all, as validation in training does; else a divisor of the steps that are
            executed of a chunk.
        num_train_episodes: Episodes of the training split beside those that were held out, evenly spread; None for all.
        num_plots: Episodes of each split whose actions are drawn.
    """

    every: Count = 1
    num_train_episodes: Natural | None = 5
    num_plots: Natural = 2


class Frames(Protocol):
    """One split of a data set, see `rsd.data.datasets.FrameDataset`."""

    @property
    def episode(self) -> Any: ...

    @property
    def step(self) -> Any: ...

    @property
    def episodes(self) -> Sequence[int]: ...

    @property
    def trajectories(self) -> Sequence[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Frame: ...


@dataclass(frozen=True)
class Yardstick:
    """What errors are measured with.

    Attributes:
        space: The data set's own, with which training normalises.
        robot: The policy's, by which it makes commands.
        limits: Of the commands that are executed.
        clip: Whether they are clipped to that, or refused; see `rsd.queue.executed_actions`.
        median: The training actions' median, standard, [A]: what a model that has learned nothing says.
        chunk_length: T; what a decoding says beyond it is not measured.
    """

    space: Space
    robot: Space
    limits: tuple[float, float]
    clip: bool
    median: np.ndarray
    chunk_length: int

    def standard(self, commands: np.ndarray) -> np.ndarray:
        """Robot commands [..., A] as standard actions: the inverse, which of a binary gripper knows the sign alone."""
        closed, opened = (self.robot.commands(np.full(commands.shape[-1], value)) for value in (0.0, 1.0))
        standard = np.array(commands, dtype=np.float64)
        for dim in self.space.action.grippers:
            standard[..., dim] = (commands[..., dim] - closed[dim]) / (opened[dim] - closed[dim])
        return standard


@dataclass(frozen=True)
class Closing:
    """A recorded closing of a gripper, and when the policy's commands close it.

    Attributes:
        step: Control step at which the recording closes.
        delay: Control steps from there to the policy's; below 0 early, None missed.
    """

    step: Natural
    delay: int | None


@dataclass(frozen=True)
class Gripper:
    """One gripper in one episode.

    Attributes:
        dim: Of the action.
        agreement: Share of the chunks' steps at which it is commanded to the recorded side.
        open_share: Share of them at which the recorded one is open.
        closings: Of what a queue would execute.
    """

    dim: Natural
    agreement: Share
    open_share: Share
    closings: list[Closing]


@dataclass
class Replayed:
    """One episode; a line of results.jsonl. All errors are means over its chunks.

    Attributes:
        split, episode: Which one; its number in the data set.
        file_path: Where the data set says that it comes from; empty where it says nothing.
        instruction: In words; of an episode with several the commonest.
        num_chunks: Frames that were asked.
        l1: Absolute error in model units by step of the chunk and action dim, [T][A].
        l1_robot: The same in robot units, of what is executed: clipped.
        commands_off: How far commands are from the chunk that they were made of, in model units by this data set's
            statistics, [A]; 0 where the policy un-normalises with the same. None of a policy that does not tell.
        l1_median: Error of the training actions' median in model units, [A].
        grippers: See there.
        stats: Sums of Chunk.work, and "num_chunks".
        model_ms, wall_s: See EpisodeResult.
        trace: Its actions over time, see `trace_of`; None where it is not drawn.
    """

    split: str
    episode: Total
    file_path: str
    instruction: str
    num_chunks: Total
    l1: Rows
    l1_robot: Rows
    commands_off: list[float] | None
    l1_median: list[float]
    grippers: list[Gripper] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    model_ms: float = 0.0
    wall_s: float = 0.0
    trace: str | None = None


def chosen_episodes(frames: Frames, count: int | None) -> list[int]:
    """So many episodes of a split that have a chunk, evenly spread; None for all of them."""
    there = sorted({int(number) for number in frames.episode})
    if count is None or count >= len(there):
        return there
    return [there[int(place)] for place in np.linspace(0, len(there) - 1, count).round()]


def replay(
    policy: Policy,
    frames: Mapping[str, Frames],
    planned: Mapping[str, Sequence[int]],
    done: Sequence[Replayed],
    *,
    asked: Replay,
    yardstick: Yardstick,
    file_paths: Sequence[str],
    seed: int,
    max_batch: int,
    run_dir: Path,
) -> Generator[Replayed]:
    """Replay the planned episodes that are not done; yield each after it was written to results.jsonl.

    Args:
        planned: Split → episodes.
        file_paths: Of all episodes; empty where the data set has none.
        seed: The run's; every chunk's own follows from it.
        max_batch: Frames in one call of the policy.
    """
    check_every(asked.every, policy.num_open_loop_steps)
    have = {(one.split, one.episode) for one in done}
    for split, episodes in planned.items():
        for place, episode in enumerate(episodes):
            if (split, episode) in have:
                continue
            begun = time.perf_counter()
            chunks = ask(policy, frames[split], episode, every=asked.every, seed=seed, max_batch=max_batch)
            recorded = frames[split].trajectories[episode]
            result = measured(chunks, recorded, yardstick, policy.num_open_loop_steps)
            result = dataclasses.replace(
                result, split=split, episode=episode, file_path=file_paths[episode] if file_paths else ""
            )
            if place < asked.num_plots:
                name = f"traces/{split}_{episode:05d}.json"
                trace = trace_of(chunks, recorded, yardstick, policy.num_open_loop_steps)
                (run_dir / name).parent.mkdir(exist_ok=True)
                write_atomically(run_dir / name, line_of(trace))
                result = dataclasses.replace(result, trace=name)
            result = dataclasses.replace(result, wall_s=round(time.perf_counter() - begun, 3))
            append_result(run_dir / RESULTS_FILE, result)
            yield result


def check_every(every: int, num_open_loop_steps: int) -> None:
    """See that the frame whose memory another one takes is asked, too.

    Raises:
        SettingError: it is not.
    """
    if num_open_loop_steps % every:
        raise SettingError(
            f"env.replay.every is {every}, expected a divisor of the {num_open_loop_steps} steps that are executed of "
            "a chunk (num_open_loop_steps); 1 asks every frame"
        )


def ask(policy: Policy, frames: Frames, episode: int, *, every: int, seed: int, max_batch: int) -> dict[int, Chunk]:
    """Control step → the chunk that is predicted there, for an episode's frames.

    Args:
        every, seed, max_batch: See `replay`.
    """
    own = (np.asarray(frames.episode) == episode).nonzero()[0]  # rows, in the order of steps
    rows = {int(frames.step[row]): int(row) for row in own if int(frames.step[row]) % every == 0}
    length = policy.num_open_loop_steps
    chunks: dict[int, Chunk] = {}
    blocks: dict[int, list[int]] = {}
    for step in rows:  # a block's frames do not remember each other
        blocks.setdefault(step // length, []).append(step)
    for block in blocks.values():
        for start in range(0, len(block), max_batch):
            steps = block[start : start + max_batch]
            requests = [
                Request(
                    frames[rows[step]]["observation"],
                    chunk_seed(seed, episode * 2**20 + step),
                    _memory(chunks.get(step - length), length),
                )
                for step in steps
            ]
            chunks |= zip(steps, policy.predict(requests), strict=True)
    return chunks


def _memory(chunk: Chunk | None, num_executed: int) -> Memory | None:
    if chunk is None or chunk.memory is None:
        return None
    return dataclasses.replace(chunk.memory, num_executed=num_executed)


def measured(chunks: Mapping[int, Chunk], recorded: Any, yardstick: Yardstick, num_open_loop_steps: int) -> Replayed:
    """An episode's errors.

    Args:
        chunks: From `ask`.
        recorded: The episode: standard actions [n, A], and the instruction of each step.

    Raises:
        ActionError: a chunk is not finite, or another thing that cannot be executed.
    """
    steps, dims = sorted(chunks), list(yardstick.space.action.grippers)
    told = all(chunks[step].memory is not None for step in steps)
    length = yardstick.chunk_length
    truth = np.stack([recorded.actions[step : step + length] for step in steps]).astype(np.float64)  # [N, T, A]
    raw = np.stack([chunks[step].actions[:length] for step in steps])  # [N, T, A]
    executed = np.stack([_executed(chunks[step], yardstick)[:length] for step in steps])  # [N, T, A]
    standard = yardstick.standard(raw)  # [N, T, A]
    commands = yardstick.standard(live(chunks, yardstick, num_open_loop_steps))  # [m, A]
    target = yardstick.space.to_model(truth).astype(np.float64)
    grippers = [
        Gripper(
            dim,
            agreement=float(((truth[..., dim] > 0.5) == (standard[..., dim] > 0.5)).mean()),
            open_share=float((truth[..., dim] > 0.5).mean()),
            closings=closings(commands[:, dim] > 0.5, recorded.actions[:, dim] > 0.5),
        )
        for dim in dims
    ]
    off: np.ndarray | None = None
    if told:
        model = np.stack([_remembered(chunks[step])[:length] for step in steps]).astype(np.float64)  # [N, T, A]
        standard[..., dims] = model[..., dims]
        off = np.abs(normalized(standard, yardstick.space.action) - model).mean(axis=(0, 1))  # [A]
    median = np.abs(yardstick.space.to_model(yardstick.median.astype(np.float64)) - target)  # [N, T, A]
    work: Counts = {"num_chunks": len(steps)}
    for step in steps:
        work = add_counts(work, chunks[step].work)
    said = Counter(recorded.instructions[step] for step in steps) if recorded.instructions else Counter([""])
    return Replayed(
        split="",
        episode=0,
        file_path="",
        instruction=said.most_common(1)[0][0],
        num_chunks=len(steps),
        l1=np.abs(normalized(standard, yardstick.space.action) - target).mean(axis=0).tolist(),
        l1_robot=np.abs(executed - yardstick.robot.commands(truth)).mean(axis=0).tolist(),
        commands_off=None if off is None else off.tolist(),
        l1_median=median.mean(axis=(0, 1)).tolist(),
        grippers=grippers,
        stats=work,
        model_ms=round(sum(chunks[step].model_ms for step in steps), 3),
    )


def normalized(standard: np.ndarray, bounds: Range) -> np.ndarray:
    """`Range.normalize` without clipping, float64: what a policy says beyond the bounds is an error as well."""
    low, high = np.asarray(bounds.low), np.asarray(bounds.high)
    return np.where(bounds.mask, 2 * (standard - low) / (high - low + EPSILON) - 1, standard)


def _executed(chunk: Chunk, yardstick: Yardstick) -> np.ndarray:
    return executed_actions(chunk, clip=yardstick.clip, limits=yardstick.limits, whole=True)  # [T, A]


def _remembered(chunk: Chunk) -> np.ndarray:
    assert chunk.memory is not None
    return chunk.memory.chunk  # [T, A]


def live(chunks: Mapping[int, Chunk], yardstick: Yardstick, num_open_loop_steps: int) -> np.ndarray:
    """The commands that a queue would execute, one for each step up to the last chunk's end, [m, A]."""
    pieces = []
    for step in sorted(chunks):
        if step % num_open_loop_steps == 0:
            pieces.append(_executed(chunks[step], yardstick)[:num_open_loop_steps])
    return np.concatenate(pieces)


def closings(said_open: np.ndarray, is_open: np.ndarray) -> list[Closing]:
    """Each closing in `is_open` [n] that `said_open` [m] covers.

    A closing is early by the steps that the other one has been closed for, back to the opening before; late by the
    steps until it closes; and missed if it does not before the recording opens again.
    """
    found = []
    turns = (np.flatnonzero(is_open[:-1] != is_open[1:]) + 1).tolist()  # first steps of a new state
    for number, step in enumerate(turns):
        if is_open[step] or step >= len(said_open):
            continue
        before, after = turns[number - 1] if number else 0, [*turns, len(is_open)][number + 1]
        since: int | None = step
        if said_open[step]:
            since = next((later for later in range(step, min(after, len(said_open))) if not said_open[later]), None)
        else:
            since = next((early + 1 for early in range(step - 1, before - 1, -1) if said_open[early]), before)
        found.append(Closing(step, None if since is None else since - step))
    return found


def trace_of(
    chunks: Mapping[int, Chunk], recorded: Any, yardstick: Yardstick, num_open_loop_steps: int
) -> dict[str, Rows]:
    """An episode's actions over time in robot units: recorded [n][A], and what a queue would execute, [m][A]."""
    truth = yardstick.robot.commands(recorded.actions)
    commanded = live(chunks, yardstick, num_open_loop_steps)
    return {"recorded": np.round(truth, DIGITS).tolist(), "commanded": np.round(commanded, DIGITS).tolist()}


def resume_replayed(path: Path, planned: Mapping[str, Sequence[int]]) -> list[Replayed]:
    """Episodes that are already on disk; a torn last line is cut off and its episode replayed again.

    Raises:
        ResultsError: a line before the last is damaged, or of an episode that was not planned.
    """
    content = path.read_bytes() if path.exists() else b""
    torn = content.rpartition(b"\n")[2]
    results = read_replayed(path, content[: len(content) - len(torn)])
    if torn:
        logging.getLogger(__name__).warning("the last line of %s was torn; its episode is replayed again", path)
        os.truncate(path, len(content) - len(torn))
    strange = [(one.split, one.episode) for one in results if one.episode not in planned.get(one.split, ())]
    if strange:
        raise ResultsError(f"{path} holds {strange[0]}, an episode that was not planned; repair it, or start a new run")
    path.touch()
    return results


def read_replayed(path: Path, content: bytes | None = None) -> list[Replayed]:
    """All episodes in a file.

    Raises:
        ResultsError: a line is damaged.
    """
    lines = (path.read_bytes() if content is None else content).splitlines()
    results = []
    for number, line in enumerate(lines, start=1):
        try:
            result = parse(line, Replayed, "it")
            if result.trace is not None and not is_inside(result.trace):
                raise EntryError(f"it: entry 'trace' is {result.trace!r}, expected a path inside of the run's folder")
        except EntryError as error:
            raise ResultsError(f"{path}, line {number} is damaged: {error}; remove that line by hand") from error
        results.append(result)
    return results
