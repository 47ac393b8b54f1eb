"""What a run reads, by content: inputs.json in its folder, written at the first start and held to at every other.

    inputs.json    part ("data", "base", "tokenizer", …) → {kind, path, folder, digest, and of a data set what people
                   look at}; the kind is what the content says it is, whatever part it plays

Names say little: a published checkpoint is a link that the next training moves, and a data set can be collected anew.
So a run is known by digests, wherever its parts lie now, and `resume=` refuses others. A hidden-state cache is made on
demand, and is held to in the training state instead (rsd/data/hidden_states.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from rsd.checkpoint import JSON_FILE, cached_sha256, checkpoint_kind, content_sha256
from rsd.data.rlds import RLDSDataset
from rsd.data.rlds_metadata import INFO_FILE
from rsd.differences import differences
from rsd.errors import RSDError
from rsd.processes import say
from rsd.record import read, write

INPUTS_FILE = "inputs.json"
MADE_FILE = "made.json"  # of a cache's run: point → content
SHOWN = 12  # hex digits of a digest, in messages
LOOKED_AT = 5e9  # bytes; the figures of a larger data set would take too long to count at every start

Content = dict[str, Any]


class PartRecord(TypedDict):
    """What is held to in a part's record."""

    path: str
    digest: str | None


class InputsError(RSDError, RuntimeError):
    """What a run reads is not what it was begun with."""


def contents(paths: Mapping[str, str | Path | None]) -> dict[str, Content]:
    """Content of every part that a run reads; those that it does not have are None, and are left out."""
    return {part: content_of(Path(path)) for part, path in paths.items() if path is not None}


def content_of(path: Path) -> Content:
    """Kind, path as given, the folder that it leads to, and a digest of what a run reads there; None if nothing is.

    Raises:
        RSDError: a data set or a checkpoint cannot be read.
    """
    record: Content = {"path": str(path), "folder": str(path.resolve())}
    if (path / INFO_FILE).is_file():
        return {"kind": "data"} | record | data_content(path)
    if (path / JSON_FILE).is_file():
        return {"kind": checkpoint_kind(path)} | record | {"digest": content_sha256(path)}
    return (
        {"kind": "base"} | record | {"digest": folder_sha256(path) if path.exists() else None}
    )  # as others publish it


def data_content(directory: Path) -> Content:
    """Digest of a data set's records, and the figures by which people know it."""
    rlds = RLDSDataset(directory)
    ranges = rlds.action_ranges() if rlds.num_bytes <= LOOKED_AT else {}  # reads every record
    return {"digest": rlds.content_id(), "num_episodes": len(rlds), **ranges}


def folder_sha256(folder: Path) -> str:
    """One hash over names and bytes of all files in a folder, or of a single file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(cached_sha256, files))
    lines = [f"{path.relative_to(folder).as_posix()}:{sha256}" for path, sha256 in zip(files, hashes, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def keep_inputs(run_dir: Path, found: Mapping[str, Content], *, resumed: bool) -> None:
    """Write inputs.json at a first start; at a resume hold what is there now to it.

    Args:
        found: See `contents`.
        resumed: Whether the run was started before.

    Raises:
        InputsError: a part holds something else than at the first start; both are named. One that is not there is left
            to whoever reads it, who knows how it is made.
    """
    path = run_dir / INPUTS_FILE
    stored: dict[str, Content] | None = None
    if path.is_file():
        kind: Any = dict[str, PartRecord]
        stored = read(path, kind, error=InputsError, remedy="restore it as it was written")
    if stored is None and resumed:
        say(f"note: {path} does not exist: nobody knows whether this run has read the same data and checkpoints so far")
    before = stored or {}
    problems = [
        _problem(part, before[part], content)
        for part, content in found.items()
        if part in before and content["digest"] is not None and before[part]["digest"] not in (None, content["digest"])
    ]
    if problems:
        raise InputsError(
            f"cannot resume {run_dir}: {'; '.join(problems)}. Put that back to continue the run, or start a new one "
            "without resume"
        )
    known = {part: content for part, content in before.items() if content["digest"] is not None}
    write(path, {**found, **known})


def _problem(part: str, was: Content, now: Content) -> str:
    """ "data /d/toy/1.0.0 is another one: digest 12ab… → 34cd…, num_episodes: 12 → 14"."""
    where = was["path"] if was["path"] == now["path"] else f"{was['path']}, now {now['path']}"
    digests = [str(one["digest"] and one["digest"][:SHOWN]) for one in (was, now)]
    changed = differences(was, now, ignore=("path", "digest"))
    return ", ".join([f"{part} {where} is another one: digest {' → '.join(digests)}", *map(str, changed)])
