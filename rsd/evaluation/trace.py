"""What an episode's chunks were, as a JSON file beside its video, for people who look at single episodes.

The file holds:
    fps         frames per second of the video
    every_step  whether the video has a frame for every control step, or one for every observation
    success, num_steps
    chunks      list of {step: control step at which the chunk was asked for, frame: the video's frame that the policy
                saw, num_executed: actions of it that were executed, actions [T][A], draft_actions [T][A] or null,
                stats: the chunk's counters (rsd.work.Work), latency_ms, depth (stages that count) and
                bound (largest error by action dim, model space) or null: as in rsd.types.Chunk}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rsd.files import write_atomically
from rsd.record import line_of
from rsd.types import Chunk

DIGITS = 5  # of actions and milliseconds


def chunk_record(chunk: Chunk, *, step: int, frame: int) -> dict[str, Any]:
    """An entry of "chunks"; num_executed is counted up by whoever executes."""
    draft = chunk.draft_actions
    return {
        "step": step,
        "frame": frame,
        "num_executed": 0,
        "actions": _rounded(chunk.actions),
        "draft_actions": None if draft is None else _rounded(draft),
        "stats": chunk.work,
        "depth": chunk.depth,
        "bound": None if chunk.bound is None else np.round(chunk.bound, DIGITS).tolist(),
        "latency_ms": {part: round(value, DIGITS) for part, value in chunk.latency_ms.items()},
    }


def write_trace(
    path: Path, chunks: list[dict[str, Any]], *, fps: float, every_step: bool, success: bool, num_steps: int
) -> None:
    """Write the file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"fps": fps, "every_step": every_step, "success": success, "num_steps": num_steps}
    write_atomically(path, line_of({**head, "chunks": chunks}))


def _rounded(actions: np.ndarray) -> list[list[float]]:
    return np.round(actions, DIGITS).tolist()
