"""What an episode's chunks were, as a JSON file beside its video, for people who look at single episodes.

The file holds:
    fps         frames per second of the video
    every_step  whether the video has a frame for every control step, or one for every observation
    success, num_steps
    chunks      list of {step: control step at which the chunk was asked for, frame: the video's frame that the policy
                saw, num_executed: actions of it that were executed, first: index of the first of them, age: its control
                steps since the picture (both null where none was), num_still: steps in which the robot stood still
                until this chunk was there, actions [T][A] as they were predicted, corrected_actions [T][A] with what
                was executed in their place from `first` on, or null where nobody corrected, draft_actions [T][A] or
                null,
                stats: the chunk's counters (rsd.work.Work), without those of its correction, latency_ms, depth (stages
                that count) and bound (largest error by action dim, model space) or null: as in rsd.types.Chunk}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rsd.files import write_atomically
from rsd.queue import Executed
from rsd.record import line_of
from rsd.types import Chunk

DIGITS = 5  # of actions and milliseconds


def chunk_record(chunk: Chunk, *, step: int, frame: int) -> dict[str, Any]:
    """An entry of "chunks" before any of its actions is executed; see `count_step`."""
    draft = chunk.draft_actions
    return {
        "step": step,
        "frame": frame,
        "num_executed": 0,
        "first": None,
        "age": None,
        "num_still": 0,
        "actions": _rounded(chunk.actions),
        "corrected_actions": None,
        "draft_actions": None if draft is None else _rounded(draft),
        "stats": chunk.work,
        "depth": chunk.depth,
        "bound": None if chunk.bound is None else np.round(chunk.bound, DIGITS).tolist(),
        "latency_ms": {part: round(value, DIGITS) for part, value in chunk.latency_ms.items()},
    }


def count_step(chunks: list[dict[str, Any]], executed: Executed | None, corrected: np.ndarray | None) -> None:
    """Count a control step to the chunk whose action it was, or to the one that was waited for.

    Args:
        corrected: See `Queue.corrected`.
    """
    if executed is None:
        chunks[-1]["num_still"] += 1
        return
    chunk = chunks[executed.number]
    chunk["num_executed"] += 1
    if chunk["first"] is None:
        chunk["first"], chunk["age"] = executed.index, executed.age
        chunk["corrected_actions"] = None if corrected is None else _rounded(corrected)


def write_trace(
    path: Path, chunks: list[dict[str, Any]], *, fps: float, every_step: bool, success: bool, num_steps: int
) -> None:
    """Write the file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"fps": fps, "every_step": every_step, "success": success, "num_steps": num_steps}
    write_atomically(path, line_of({**head, "chunks": chunks}))


def _rounded(actions: np.ndarray) -> list[list[float]]:
    return np.round(actions, DIGITS).tolist()
