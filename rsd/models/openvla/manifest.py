"""What the files of a published checkpoint are, for a policy folder: files.json, name → SHA-256, with its own checksum.

A checkpoint of rsd says in checkpoint.json what its weights hash to; a published one has no such file, so this one is
written beside its own. What surprises first: a file that is not in the list is as wrong as one that is missing, since
a loader would find a side file that somebody has put there.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from rsd.checkpoint import CheckpointError, cached_sha256
from rsd.record import read, write

MANIFEST = "files.json"


class _Manifest(TypedDict):
    files: dict[str, str]


def _files(directory: Path) -> dict[str, Path]:
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path for name, path in sorted(found.items()) if name != MANIFEST and not name.startswith(".")}


def _hashes(files: dict[str, Path]) -> dict[str, str]:
    """Side by side, once a process as long as a file stays as it is."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(files, pool.map(cached_sha256, files.values()), strict=True))


def write_manifest(directory: Path) -> None:
    """Write the list over the files that are there now."""
    write(directory / MANIFEST, {"files": _hashes(_files(directory))})


def check_manifest(directory: Path) -> None:
    """Hold the files of a checkpoint to the list.

    Raises:
        CheckpointError: one is missing, another one, or not in the list.
    """
    path, remedy = directory / MANIFEST, "fetch the folder again"
    listed = read(path, _Manifest, error=CheckpointError, remedy=remedy)["files"]
    there = _files(directory)
    if strange := sorted(listed.keys() ^ there.keys()):
        which = "missing" if strange[0] in listed else f"not in {MANIFEST}"
        raise CheckpointError(f"{directory / strange[0]} is {which}; {remedy}")
    if wrong := [name for name, sha256 in _hashes(there).items() if sha256 != listed[name]]:
        raise CheckpointError(f"{directory / wrong[0]} is damaged: its SHA-256 is not that of {MANIFEST}; {remedy}")
