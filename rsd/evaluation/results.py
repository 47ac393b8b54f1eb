"""results.jsonl: one line an episode, on disk before the next episode starts.

A line counts once its newline is there. What a kill or a full disk leaves after the last newline is not a result: it is
moved aside into a file of its own, named in the output, and the episode is run again. So is a damaged last line,
when the run goes on; to whoever only reads the episodes it is an error, as any other damaged line is.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rsd.errors import RSDError
from rsd.evaluation.time_shares import KINDS
from rsd.files import is_inside, stranger, write_atomically
from rsd.record import MAX_BYTES, EntryError, conform, line_of, parse, shown
from rsd.runs import resume_command
from rsd.settings import Measured, Total
from rsd.types import EpisodeResult
from rsd.work import HISTOGRAM, STAGE_COUNTERS, Work

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULTS_FILE = "results.jsonl"
BY_STAGE = (*STAGE_COUNTERS, HISTOGRAM)  # counters that are lists
COUNTED = ("num_chunks", *(one.name for one in dataclasses.fields(Work)))  # the others are a policy's own
CRASHED_FILE = "crashed_results.jsonl"  # crashed episodes of earlier starts, which were run again


class ResultsError(RSDError, RuntimeError):
    """results.jsonl cannot be read or written."""


def episode_id(result: EpisodeResult) -> tuple[int, int]:
    """What identifies an episode within a run: (task_id, init_state_id)."""
    return result.task_id, result.init_state_id


def append_result(path: Path, result: DataclassInstance) -> None:
    """Append one episode and wait until it is on disk. On failure the file is as it was before.

    Raises:
        ResultsError: it could not be written, for example because the disk is full.
    """
    line = line_of(dataclasses.asdict(result))
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab", buffering=0) as file:
            written = file.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written; the disk is probably full")
            os.fsync(file.fileno())
    except OSError as error:
        if not path.parent.is_dir():
            raise ResultsError(
                f"cannot write {path}: its folder was removed while the run went on, and what was in it is gone; start "
                "anew, without resume"
            ) from error
        if path.exists():
            os.truncate(path, size)
        raise ResultsError(
            f"cannot write {path}: {error}. The {size}-byte file with the episodes before this one is intact; "
            f"make room and continue with: {resume_command(path.parent)}"
        ) from error


def read_episodes(path: Path) -> list[EpisodeResult]:
    """All complete episodes, for whoever only reads them: what is left out for want of a newline is told.

    Raises:
        ResultsError: a line is damaged, the last one too, or an episode is there twice.
    """
    results, torn = read_results(path, strict=True)
    if torn:
        logging.getLogger(__name__).warning(
            "%s, line %d is torn: it has no newline, and is left out. Run its episode again with: %s",
            path,
            len(results) + 1,
            _resume(path),
        )
    return results


def read_crashed(path: Path) -> list[EpisodeResult]:
    """Crashed episodes that were run again, in their order; an episode may be there several times.

    Raises:
        ResultsError: a line is damaged.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    try:
        return [_episode(line, "it") for line in lines]
    except EntryError as error:
        raise ResultsError(
            f"{path} is damaged: {error}; remove it, nothing but the list of retries needs it"
        ) from error


def read_results(path: Path, *, strict: bool = False) -> tuple[list[EpisodeResult], bytes]:
    """All complete episodes, and the bytes of a torn last line (empty when there is none).

    Args:
        strict: Only what has no newline is torn; else a damaged last line is, too.

    Raises:
        ResultsError: a line before the last is damaged, with `strict` the last, or an episode is there twice.
    """
    content = path.read_bytes() if path.exists() else b""
    if content and (other := stranger(path)):
        raise ResultsError(other)
    *lines, torn = content.split(b"\n")
    results: list[EpisodeResult] = []
    seen: dict[tuple[int, int], int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = _episode(line, "it")
        except EntryError as error:  # not JSON, or JSON of something else
            is_last = number == len(lines) and not torn
            if is_last and not strict:
                return results, line + b"\n"
            or_resume = f", or run its episode again with: {_resume(path)}" if is_last else ""
            raise ResultsError(
                f"{path}, line {number} is damaged: {error}; repair or remove that line by hand{or_resume}"
            ) from error
        if episode_id(result) in seen:
            first = seen[episode_id(result)]
            raise ResultsError(
                f"{path}: lines {first} and {number} are both task {result.task_id}, init state {result.init_state_id}"
            )
        seen[episode_id(result)] = number
        results.append(result)
    return results, torn


def _resume(path: Path) -> str:
    """What continues the run, for readers that cannot: unlike `resume_command` it is not this process's script."""
    return shlex.join(["python", "eval.py", f"resume={path.parent}"])


def _episode(line: bytes, where: str) -> EpisodeResult:
    """One line, held to its types; its files lie in the run's folder."""
    if len(line) > MAX_BYTES:
        raise EntryError(f"{where} has {len(line)} bytes, expected at most {MAX_BYTES}")
    result = parse(line, EpisodeResult, where)
    for name, value in result.stats.items():
        kind = list[Total] if name in BY_STAGE else Total if name in COUNTED else Total | Measured | list[Total]
        conform(value, kind, where, f"stats.{name}")
    checked, accepted = (result.stats.get(name, []) for name in ("checked_tokens", "accepted_tokens"))
    if len(checked) != len(accepted):
        raise EntryError(
            f"{where}: entry 'stats.accepted_tokens' has {len(accepted)} entries, expected the {len(checked)} of "
            "'stats.checked_tokens'"
        )
    if len(result.bounds) not in (0, result.stats.get("num_chunks", 0)):
        raise EntryError(
            f"{where}: entry 'bounds' has {len(result.bounds)} entries, expected one for each of the "
            f"{result.stats.get('num_chunks', 0)} chunks, or none"
        )
    if len(widths := {len(bound) for bound in result.bounds if bound is not None}) > 1:
        raise EntryError(
            f"{where}: entry 'bounds' is of {sorted(widths)} action dims, expected the same for each chunk"
        )
    if result.time_s:
        conform(result.time_s, dict.fromkeys(KINDS, Measured), where, "time_s")
    for name in ("video", "trace"):
        path = getattr(result, name)
        if path is not None and not is_inside(path):
            raise EntryError(f"{where}: entry {name!r} is {shown(path)}, expected a path inside of the run's folder")
    return result


def set_torn_line_aside(path: Path) -> Path | None:
    """Move a torn last line into its own file, results.jsonl.torn-N, and cut it off.

    Returns:
        The new file, or None when the last line is whole.
    """
    _, torn = read_results(path)
    if not torn:
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.torn-{number}")).exists():
        number += 1
    aside.write_bytes(torn)
    os.truncate(path, path.stat().st_size - len(torn))
    return aside


def set_crashed_aside(path: Path) -> int:
    """Move the lines of crashed episodes to crashed_results.jsonl, so that they are run again.

    Returns:
        How many there were.
    """
    results, _ = read_results(path)
    crashed = [result for result in results if result.error is not None]
    if crashed:
        for result in crashed:
            append_result(path.with_name(CRASHED_FILE), result)
        kept = [line_of(dataclasses.asdict(result)) for result in results if result.error is None]
        write_atomically(path, b"".join(kept))
    return len(crashed)
