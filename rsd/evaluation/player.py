"""What the page's episode player plays: for each recorded episode its video and, from its trace, figures by chunk.

Small videos are put inside the page, the first trial of every task before second ones; the rest is linked, relative to
the run folder. Of a trace only what is drawn goes into the page, not the actions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rsd.evaluation.page import data_url
from rsd.evaluation.results import ResultsError

EMBEDDED_VIDEO_BYTES = 1_000_000  # larger videos are linked, not embedded
EMBEDDED_TOTAL_BYTES = 14_000_000  # of video; as text in the page they take a third more
POSITION_DIMS = slice(0, 3)  # of an action: x, y, z
GRIPPER_DIM = -1


def recorded_episodes(report: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    """The episodes that have a video, in the order of the report; files that have gone are left out.

    Args:
        report: As in report.json.
        run_dir: Where videos and traces are.

    Returns:
        task_id, init_state_id, outcome ("success", "failure" or "crashed"), num_steps, instruction, source (a data: or
        relative URL), chunks (see `chunk_figures`; None without a trace), fps.

    Raises:
        ResultsError: a trace cannot be read.
    """
    recorded = [e for e in report["episodes"] if e["video"] is not None and (run_dir / e["video"]).is_file()]
    embedded = _embedded([run_dir / e["video"] for e in sorted(recorded, key=lambda e: e["init_state_id"])])
    instructions = {task["task_id"]: task["instruction"] for task in report["tasks"]}
    episodes = []
    for episode in recorded:
        video = run_dir / episode["video"]
        trace = _read_trace(run_dir / episode["trace"]) if episode["trace"] is not None else None
        episodes.append(
            {
                "task_id": episode["task_id"],
                "init_state_id": episode["init_state_id"],
                "outcome": "crashed" if episode["error"] else "success" if episode["success"] else "failure",
                "num_steps": episode["num_steps"],
                "instruction": instructions[episode["task_id"]],
                "source": data_url(video, "video/mp4") if video in embedded else episode["video"],
                **(trace or {"fps": None, "chunks": None}),
            }
        )
    return episodes


def chunk_figures(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """What the player draws for each chunk of a trace.

    Returns:
        step, num_steps (executed), frame, num_frames (of the video, until the next chunk), accepted (leading stages of
        the draft's first proposal; None when nothing was proposed), target_passes and draft_passes (None without
        tokens), difference (largest |draft - target| of the position dims over the whole chunk, in robot units),
        gripper_steps (on which draft and target differ in the gripper's sign; both None without a draft), latency_ms.
    """
    chunks = trace["chunks"]
    figures = []
    for index, chunk in enumerate(chunks):
        next_frame = chunks[index + 1]["frame"] if index + 1 < len(chunks) else None
        if next_frame is None:
            next_frame = chunk["frame"] + (chunk["num_executed"] if trace["every_step"] else 1)
        stats = chunk["stats"]
        proposed = sum(stats.get("accept_counts", []))
        difference, gripper_steps = _draft_difference(chunk)
        figures.append(
            {
                "step": chunk["step"],
                "num_steps": chunk["num_executed"],
                "frame": chunk["frame"],
                "num_frames": next_frame - chunk["frame"],
                "accepted": stats["accept_counts"].index(1) if proposed else None,
                "target_passes": stats.get("target_passes"),
                "draft_passes": stats.get("draft_passes"),
                "difference": difference,
                "gripper_steps": gripper_steps,
                "latency_ms": {part: round(value, 2) for part, value in chunk["latency_ms"].items()},
            }
        )
    return figures


def _draft_difference(chunk: dict[str, Any]) -> tuple[float | None, int | None]:
    if chunk["draft_actions"] is None:
        return None, None
    target, draft = np.array(chunk["actions"]), np.array(chunk["draft_actions"])  # [T, A]
    difference = float(np.abs(draft - target)[:, POSITION_DIMS].max())
    gripper_steps = int(((draft > 0) != (target > 0))[:, GRIPPER_DIM].sum())
    return round(difference, 5), gripper_steps


def _embedded(videos: list[Path]) -> set[Path]:
    """Those of the videos, taken in this order, that fit into the page."""
    chosen: set[Path] = set()
    room = EMBEDDED_TOTAL_BYTES
    for video in videos:
        size = video.stat().st_size
        if size <= min(EMBEDDED_VIDEO_BYTES, room):
            chosen.add(video)
            room -= size
    return chosen


def _read_trace(path: Path) -> dict[str, Any] | None:
    """fps and chunks of a trace file; None when the file has gone."""
    if not path.is_file():
        return None
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        return {"fps": trace["fps"], "chunks": chunk_figures(trace)}
    except (ValueError, TypeError, KeyError, IndexError) as error:  # not JSON, or JSON of something else
        raise ResultsError(
            f"{path} is not a trace of an episode: {error!r}; remove the file and make the report again, the player "
            "then shows the video alone"
        ) from error
