"""What the page's episode player plays: for each recorded episode its video and, from its trace, figures by chunk.

Traces and small videos are put inside the page as long as there is room, the first trial of every task before second
ones; other videos are linked, relative to the run folder. Of a trace only what is drawn goes in, not the actions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

import numpy as np

from rsd.evaluation.page import data_url
from rsd.evaluation.plan import Plan
from rsd.evaluation.results import ResultsError
from rsd.evaluation.statistics import summarize_decoding
from rsd.files import file_inside
from rsd.record import MAX_BYTES, EntryError, conform, parse
from rsd.settings import Total

EMBEDDED_VIDEO_BYTES = 1_000_000  # larger videos are linked, not embedded
EMBEDDED_TOTAL_BYTES = 23_000_000  # of traces and videos, as they stand in the page
VIDEO = ".mp4"
OUTCOMES = ("crashed", "failure", "success")  # as readers want to see them
ENDS = {0: "whole", 1: "draft"}  # of a chunk, by its counter early_exits
POSITION_NAMES, GRIPPER_NAME = ("x", "y", "z"), "gripper"  # of action dims; see `Task`


class _Chunk(TypedDict):
    step: Total
    frame: Total
    num_executed: Total
    actions: list[list[float]]
    draft_actions: list[list[float]] | None
    stats: dict[str, int | list[int]]
    latency_ms: dict[str, float]


class TraceRecord(TypedDict):
    """What is read of a trace; see `rsd.evaluation.trace`."""

    fps: float
    every_step: bool
    chunks: list[_Chunk]


def recorded_episodes(report: dict[str, Any], run_dir: Path, plan: Plan | None) -> list[dict[str, Any]]:
    """The episodes that have a video: crashed ones, then failures, then successes; files that have gone are left out.

    Args:
        report: As in report.json.
        run_dir: Where videos and traces are.
        plan: Tells which action dims are positions; without it the draft is not held against the executed chunk.

    Returns:
        task_id, init_state_id, outcome ("success", "failure" or "crashed"), num_steps, instruction, source (a data: or
        relative URL), trace ({fps, columns, parts, rows}: a row a chunk, see `chunk_figures`, its latency_ms by part;
        None without) and note (why there is none).

    Raises:
        ResultsError: a trace cannot be read.
    """
    instructions = {task["task_id"]: task["instruction"] for task in report["tasks"]}
    recorded = [e for e in report["episodes"] if e["video"] is not None and is_video(run_dir, e["video"])]
    episodes = [
        {
            **{name: episode[name] for name in ("task_id", "init_state_id", "num_steps")},
            "outcome": "crashed" if episode["error"] else "success" if episode["success"] else "failure",
            "instruction": instructions[episode["task_id"]],
            "source": quote(episode["video"]),
            "trace": None,
            "note": "No trace of this episode's chunks is there, so there is only the video.",
        }
        for episode in recorded
    ]
    names = () if plan is None else plan.tasks[0].action_names
    _embed(sorted(zip(episodes, recorded, strict=True), key=lambda pair: pair[0]["init_state_id"]), run_dir, names)
    return sorted(episodes, key=lambda episode: OUTCOMES.index(episode["outcome"]))


def first_rejection(episode: dict[str, Any], num_drafted: int) -> int | None:
    """Control step of the first chunk whose draft the target did not accept whole; None where there is none.

    Args:
        episode: Of `recorded_episodes`.
        num_drafted: Stages that the draft proposes.
    """
    trace = episode["trace"]
    if trace is None or "accepted" not in trace["columns"]:
        return None
    accepted, step = (trace["columns"].index(name) for name in ("accepted", "step"))
    return next((row[step] for row in trace["rows"] if row[accepted] is not None and row[accepted] < num_drafted), None)


def is_video(run_dir: Path, name: str) -> bool:
    """Whether a run folder holds a video of this name, and no link to something outside of it."""
    return name.endswith(VIDEO) and file_inside(run_dir, name) is not None


def _embed(episodes: list[tuple[dict[str, Any], dict[str, Any]]], run_dir: Path, action_names: Sequence[str]) -> None:
    """Put traces, then videos, into (what the player gets, the report's record), while there is room."""
    room = EMBEDDED_TOTAL_BYTES
    for episode, record in episodes:
        path = file_inside(run_dir, record["trace"]) if record["trace"] is not None else None
        trace = None if path is None else _read_trace(path, action_names)
        if trace is None:
            continue
        size = len(json.dumps(trace))
        if size <= room:
            room -= size
            episode["trace"], episode["note"] = trace, None
        else:
            episode["note"] = f"The page is full; the chunks are in {record['trace']}."
    for episode, record in episodes:
        video = run_dir / record["video"]
        size = video.stat().st_size * 4 // 3  # in base64
        if video.stat().st_size <= EMBEDDED_VIDEO_BYTES and size <= room:
            room -= size
            episode["source"] = data_url(video, "video/mp4")


def chunk_figures(trace: dict[str, Any], action_names: Sequence[str]) -> list[dict[str, Any]]:
    """What the player draws for each chunk of a trace.

    Args:
        action_names: See `Task`; empty when nobody knows.

    Returns:
        step, num_steps (executed), frame, num_frames (of the video, until the next chunk), accepted (leading stages of
        the draft's first proposal; None when nothing was proposed), target_passes and draft_passes (None without
        tokens), ended ("draft" where the chunk ended there, else "whole"; None without tokens), base_layers and depth
        (None where the trace lacks them), bound (the largest over action dims; None without), difference (largest
        |draft - executed chunk| of the position dims, in robot units), gripper_steps (on which the two differ in the
        gripper's sign; both None without a draft, where the chunk is the draft's, or without such dims), latency_ms.
    """
    chunks = trace["chunks"]
    ends = [chunk["frame"] for chunk in chunks[1:]]
    ends += [chunk["frame"] + (chunk["num_executed"] if trace["every_step"] else 1) for chunk in chunks[-1:]]
    figures = []
    for chunk, end in zip(chunks, ends, strict=True):
        stats = chunk["stats"]
        proposed = sum(stats.get("accept_counts", []))
        has_tokens = summarize_decoding(stats | {"num_chunks": 1})["has_tokens"]
        difference, gripper_steps = _draft_difference(chunk, action_names)
        figures.append(
            {
                "step": chunk["step"],
                "num_steps": chunk["num_executed"],
                "frame": chunk["frame"],
                "num_frames": end - chunk["frame"],
                "accepted": stats["accept_counts"].index(1) if proposed else None,
                "target_passes": stats.get("target_passes") if has_tokens else None,
                "draft_passes": stats.get("draft_passes") if has_tokens else None,
                "ended": ENDS.get(stats.get("early_exits")) if has_tokens else None,
                "base_layers": stats.get("base_layers"),
                "depth": chunk.get("depth"),
                "bound": None if chunk.get("bound") is None else max(map(float, chunk["bound"])),
                "difference": difference,
                "gripper_steps": gripper_steps,
                "latency_ms": {part: round(value, 2) for part, value in chunk["latency_ms"].items()},
            }
        )
    return figures


def _draft_difference(chunk: dict[str, Any], action_names: Sequence[str]) -> tuple[float | None, int | None]:
    if chunk["draft_actions"] is None or chunk["stats"].get("early_exits"):  # ended there: the chunk is the draft's own
        return None, None
    executed, draft = np.array(chunk["actions"]), np.array(chunk["draft_actions"])  # [T, A]
    positions = [dim for dim, name in enumerate(action_names) if name in POSITION_NAMES]
    grippers = [dim for dim, name in enumerate(action_names) if name == GRIPPER_NAME]
    difference = round(float(np.abs(draft - executed)[:, positions].max()), 5) if positions else None
    gripper_steps = int(((draft > 0) != (executed > 0))[:, grippers].any(axis=1).sum()) if grippers else None
    return difference, gripper_steps


def _read_trace(path: Path, action_names: Sequence[str]) -> dict[str, Any]:
    """A trace file as `recorded_episodes` gives it, names apart from values to save room."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EntryError(f"it has more than {MAX_BYTES} bytes")
        trace: dict[str, Any] = parse(path.read_bytes(), dict[str, Any], path.name)
        conform(trace, TraceRecord, path.name)
        figures = chunk_figures(trace, action_names)
        parts = list(dict.fromkeys(part for figure in figures for part in figure["latency_ms"]))
        for figure in figures:
            figure["latency_ms"] = [figure["latency_ms"].get(part) for part in parts]
        rows = [list(figure.values()) for figure in figures]
        return {"fps": trace["fps"], "columns": list(figures[0]) if figures else [], "parts": parts, "rows": rows}
    except (EntryError, ValueError, TypeError, KeyError, IndexError) as error:  # not JSON, or JSON of something else
        raise ResultsError(
            f"{path} is not a trace of an episode: {error!r}; remove the file and make the report again, the player "
            "then shows the video alone"
        ) from error
