"""Writing a hidden-state cache so that it survives kill -9, a full disk and a second writer.

A shard is written to .tmp, synced, renamed, its folder synced, and only then named in the index, which is synced too.
Whatever happens in between costs at most the shard in work. Opening a cache for writing first repairs it: the index is
cut back to its last newline, entries without a sound shard are dropped, and files that no entry names are removed.

What surprises first: the grid of shards is fixed when the cache is created (a multiple of the batch size), so that a
resumed cache runs the base model on the same batches as an uninterrupted one, and equals it bit for bit.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rsd.data.cache import (
    CACHE_FILE,
    FORMAT,
    GIGABYTE,
    INDEX_FILE,
    CacheError,
    RowLayout,
    as_json,
    check_content,
    read_index,
    read_record,
    row_bytes,
    shard_problem,
)
from rsd.processes import say

LOCK_FILE = "lock"
TEMPORARY = ".tmp"
RESERVE_BYTES = 64 * 2**20  # left free beside the forecast: headers, index, and whoever else uses the disk


def sync_directory(directory: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that its name appears only with its whole contents on the disk."""
    temporary = path.with_name(path.name + TEMPORARY)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory(path.parent)


class CacheWriter:
    """Creates a cache or goes on with it; a context manager that keeps other writers out.

    Attributes:
        directory: The cache's own folder.
        num_frames: N, rows of the complete cache.
        layout: Tensors of one row.
        rows_per_shard: Rows of every shard but the last.
        rows_done: Rows that finished shards hold.
    """

    def __init__(
        self,
        directory: Path,
        *,
        content: Mapping[str, Any],
        num_frames: int,
        layout: RowLayout,
        shard_bytes: int,
        batch_size: int,
        norm_stats: Mapping[str, Any],
        provenance: Mapping[str, Any],
        command: str,
    ) -> None:
        """Describe the cache; nothing is touched before the `with` statement.

        Args:
            directory: The cache's own folder.
            content: Everything that determines the numbers; see `content_key`.
            num_frames: Frames of the data set.
            layout: Tensors of one row.
            shard_bytes: Target size of a shard; the size is at least one batch.
            batch_size: Frames that the base model sees at once.
            norm_stats: Statistics of the base model, kept for the readers.
            provenance: Who made it (code revision, versions); recorded, never compared.
            command: What completes or repairs the cache; error messages quote it.
        """
        self.directory = Path(directory)
        self.num_frames = num_frames
        self.layout = layout
        batches = max(1, shard_bytes // (row_bytes(layout) * batch_size))
        self.rows_per_shard = batches * batch_size
        self._record = as_json(
            {
                "format": FORMAT,
                "content": content,
                "num_frames": num_frames,
                "rows_per_shard": self.rows_per_shard,
                "batch_size": batch_size,
                "row": {name: [list(shape), str(dtype)] for name, (shape, dtype) in layout.items()},
                "norm_stats": norm_stats,
                "provenance": provenance,
                "command": command,
            }
        )
        self._done: set[int] = set()  # first rows of the finished shards
        self._lock: int | None = None

    def __enter__(self) -> CacheWriter:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._create_or_resume()
        except BaseException:  # whatever it is, Ctrl-C too: let go of the lock, then pass it on
            self._release_lock()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._release_lock()

    @property
    def rows_done(self) -> int:
        return sum(stop - start for start, stop in self._grid() if start in self._done)

    def missing_shards(self) -> list[tuple[int, int]]:
        """Row ranges [start, stop) that have no finished shard yet, in order."""
        return [(start, stop) for start, stop in self._grid() if start not in self._done]

    def check_space(self, report: Callable[[str], None]) -> None:
        """Say how large the cache will be, and refuse to start when the rest of it does not fit.

        Raises:
            CacheError: the disk has too little room; the message names both numbers.
        """
        row = row_bytes(self.layout)
        hidden = [(name, shape) for name, (shape, _) in self.layout.items() if name.startswith("hidden.")]
        states, width = sum(shape[0] for _, shape in hidden), hidden[0][1][1]
        needed = (self.num_frames - self.rows_done) * row
        free = shutil.disk_usage(self.directory).free
        report(
            f"{self.num_frames} frames × {states} states of {len(hidden)} layers × {width} × 2 bytes = "
            f"{self.num_frames * states * width * 2 / GIGABYTE:.3f} GB, "
            f"with actions {self.num_frames * row / GIGABYTE:.3f} GB; {self.rows_done} frames are done, "
            f"{needed / GIGABYTE:.3f} GB to write, {free / GIGABYTE:.3f} GB free in {self.directory}"
        )
        if needed + RESERVE_BYTES > free:
            raise CacheError(
                f"the cache does not fit: {needed / GIGABYTE:.3f} GB to write and {RESERVE_BYTES / GIGABYTE:.3f} GB in "
                f"reserve, {free / GIGABYTE:.3f} GB free in {self.directory}; make room, choose fewer layers, or set "
                "paths.cache to another disk"
            )

    def write_shard(self, start: int, rows: Mapping[str, Tensor]) -> None:
        """Add the shard that begins at row `start`: tensors [rows, ...] as in the layout.

        Raises:
            CacheError: the disk is full; what was finished before stays.
            ValueError: the tensors do not fit the layout.
        """
        stop = dict(self._grid())[start]
        self._check_rows(rows, stop - start)
        name = f"shard-{start // self.rows_per_shard:05d}.safetensors"
        header = json.dumps({"start": start, "stop": stop, "content": self._record["content"]}, sort_keys=True)
        data = save({key: rows[key].contiguous() for key in self.layout}, metadata={"cache": header})
        entry = {
            "file": name,
            "start": start,
            "rows": stop - start,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            write_durably(self.directory / name, data)
            self._append(entry)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CacheError(
                f"the disk is full ({error.strerror}) after {self.rows_done} of {self.num_frames} frames in "
                f"{self.directory}; they are kept: make room, then go on with: {self._record['command']}"
            ) from error
        self._done.add(start)

    def _grid(self) -> list[tuple[int, int]]:
        starts = range(0, self.num_frames, self.rows_per_shard)
        return [(start, min(start + self.rows_per_shard, self.num_frames)) for start in starts]

    def _check_rows(self, rows: Mapping[str, Tensor], count: int) -> None:
        for name, (shape, dtype) in self.layout.items():
            tensor = rows[name]
            if tensor.shape != (count, *shape) or tensor.dtype != dtype:
                raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}, expected {[count, *shape]} {dtype}")

    def _append(self, entry: Mapping[str, Any]) -> None:
        """Add one line to the index. A torn one, from a full disk, is cut off when the cache is opened again."""
        with open(self.directory / INDEX_FILE, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.directory)  # the first line also makes the file

    def _take_lock(self) -> None:
        self._lock = os.open(self.directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting: another process writes {self.directory}")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _create_or_resume(self) -> None:
        if not (self.directory / CACHE_FILE).is_file():
            write_durably(self.directory / CACHE_FILE, json.dumps(self._record, indent=1).encode() + b"\n")
        record = read_record(self.directory)
        check_content(self.directory, record["content"], self._record["content"])
        if record["num_frames"] != self.num_frames:
            raise CacheError(
                f"{self.directory} was begun with {record['num_frames']} frames, the data set has {self.num_frames}; "
                "remove the folder and make the cache again"
            )
        self.rows_per_shard = record["rows_per_shard"]
        self._repair()

    def _repair(self) -> None:
        entries, whole_bytes = read_index(self.directory)
        index = self.directory / INDEX_FILE
        if index.is_file() and index.stat().st_size > whole_bytes:
            os.truncate(index, whole_bytes)
        sound = [entry for entry in entries if shard_problem(self.directory, entry) is None]
        if len(sound) < len(entries):
            write_durably(index, b"".join(json.dumps(entry).encode() + b"\n" for entry in sound))
        named = {entry["file"] for entry in sound} | {CACHE_FILE, INDEX_FILE, LOCK_FILE}
        for path in self.directory.iterdir():
            if path.name not in named and (path.name.startswith("shard-") or path.name.endswith(TEMPORARY)):
                path.unlink()
        sync_directory(self.directory)
        self._done = {entry["start"] for entry in sound}


def empty_rows(layout: RowLayout, count: int) -> dict[str, Tensor]:
    """Uninitialised tensors [count, ...] of a layout, to be filled batch by batch."""
    return {name: torch.empty((count, *shape), dtype=dtype) for name, (shape, dtype) in layout.items()}
