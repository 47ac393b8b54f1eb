"""Writing a hidden-state cache so that it survives kill -9, a full disk and a second writer.

A shard is written to .tmp, synced, renamed, its folder synced, and only then named in the index, which is synced too.
Whatever happens in between costs at most the shard in work. Opening parts of a cache for writing first repairs them: an
index is cut back to its last newline, damaged and repeated lines and entries without a sound shard (its hash is that of
the index) are dropped, and files that no entry names are removed. Parts that are not asked for are left alone.

The grid of shards is fixed when the cache is created (a multiple of the batch size) and is the same for all parts. So a
resumed cache, and a point that is added later, run the base model on the same batches as an uninterrupted cache, and
equal it bit for bit.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rsd import requeue
from rsd.data.cache import (
    CACHE_FILE,
    FORMAT,
    GIGABYTE,
    INDEX_FILE,
    CacheError,
    Grid,
    PartLayout,
    as_json,
    fill_command,
    read_index,
    read_record,
    row_bytes,
    shard_grid,
    shard_problem,
)
from rsd.files import TEMPORARY, sync_directory, write_atomically
from rsd.processes import say
from rsd.record import line_of, write

LOCK_FILE = "lock"
RESERVE_BYTES = 64 * 2**20  # left free beside the forecast: headers, index, and whoever else uses the disk


class CacheWriter:
    """Creates a cache, or fills parts of it; a context manager that keeps other writers out.

    Attributes:
        directory: The cache's own folder.
        num_frames: N, rows of the complete cache.
        layout: Tensors of one row in each part that is to be filled.
    """

    def __init__(
        self,
        directory: Path,
        *,
        content: Mapping[str, Any],
        num_frames: int,
        layout: Mapping[str, PartLayout],
        rows_per_shard: int,
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
            layout: Parts to fill, and the tensors of one row in each.
            rows_per_shard: Rows of every shard but the last, where the cache is not begun yet.
            batch_size: Frames that the base model sees at once.
            norm_stats: Statistics of the base model, kept for the readers.
            provenance: Who made it (code revision, versions); recorded, never compared.
            command: What fills the cache; error messages quote it.
        """
        self.directory = Path(directory)
        self.num_frames = num_frames
        self.layout = layout
        self._record = as_json(
            {
                "format": FORMAT,
                "content": content,
                "num_frames": num_frames,
                "rows_per_shard": rows_per_shard,
                "batch_size": batch_size,
                "norm_stats": norm_stats,
                "provenance": provenance,
                "command": command,
            }
        )
        self._grid: Grid = []
        self._done: dict[str, set[int]] = {}  # part → first rows of its finished shards
        self._lock: int | None = None
        self._writing = threading.Lock()  # of an index: several devices' threads write shards

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

    def missing_shards(self) -> list[tuple[int, int, list[str]]]:
        """Rows [start, stop) that some part has no finished shard of, in order, with the parts that miss them."""
        missing = [
            (start, stop, [part for part in self.layout if start not in self._done[part]]) for start, stop in self._grid
        ]
        return [(start, stop, parts) for start, stop, parts in missing if parts]

    def check_space(self, report: Callable[[str], None]) -> None:
        """Say how much is to be written, and refuse to start when it does not fit.

        Raises:
            CacheError: the disk has too little room; the message names both numbers.
        """
        left = {part: self.num_frames - self._rows_done(part) for part in self.layout}  # frames
        needed = sum(frames * row_bytes(self.layout[part]) for part, frames in left.items())
        free = shutil.disk_usage(self.directory).free
        terms = [f"{part} {frames} × {row_bytes(self.layout[part])} bytes" for part, frames in left.items() if frames]
        report(
            f"to write, frames × bytes a frame: {', '.join(terms)}; {needed / GIGABYTE:.3f} GB in all, "
            f"{free / GIGABYTE:.3f} GB free in {self.directory}"
        )
        if needed + RESERVE_BYTES > free:
            raise CacheError(
                f"the cache does not fit: {needed / GIGABYTE:.3f} GB to write and {RESERVE_BYTES / GIGABYTE:.3f} GB in "
                f"reserve, {free / GIGABYTE:.3f} GB free in {self.directory}; make room, choose fewer layers, or set "
                "paths.cache to another disk"
            )

    def write_shard(self, part: str, start: int, rows: Mapping[str, Tensor]) -> None:
        """Add the shard of a part that begins at row `start`: tensors [rows, ...] as in the layout.

        Raises:
            CacheError: the disk is full; what was finished before stays.
            ValueError: the tensors do not fit the layout.
        """
        stop = dict(self._grid)[start]
        self._check_rows(part, rows, stop - start)
        folder, name = self.directory / part, f"shard-{start // self._grid[0][1]:05d}.safetensors"
        description = {"part": part, "start": start, "stop": stop, "content": self._record["content"]}
        metadata = {"cache": json.dumps(description, sort_keys=True)}
        data = save({key: rows[key].contiguous() for key in self.layout[part]}, metadata=metadata)
        entry = {
            "file": name,
            "start": start,
            "rows": stop - start,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            write_atomically(folder / name, data)
            with self._writing:
                _append(folder, entry)
                self._done[part].add(start)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CacheError(
                f"the disk is full ({error.strerror}) after {self._rows_done(part)} of {self.num_frames} frames in "
                f"{folder}; they are kept: make room, then go on with: {fill_command(self._record, [*self.layout])}"
            ) from error
        requeue.move()

    def _rows_done(self, part: str) -> int:
        return sum(stop - start for start, stop in self._grid if start in self._done[part])

    def _check_rows(self, part: str, rows: Mapping[str, Tensor], count: int) -> None:
        for name, (shape, dtype) in self.layout[part].items():
            tensor = rows[name]
            if tensor.shape != (count, *shape) or tensor.dtype != dtype:
                raise ValueError(
                    f"{part}/{name} is {list(tensor.shape)} {tensor.dtype}, expected {[count, *shape]} {dtype}"
                )

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
            write(self.directory / CACHE_FILE, self._record)
        record = read_record(self.directory, self._record["content"])
        if record["num_frames"] != self.num_frames:
            raise CacheError(
                f"{self.directory} was begun with {record['num_frames']} frames, the data set has {self.num_frames}; "
                "remove the folder and make the cache again"
            )
        self._grid = shard_grid(self.num_frames, record["rows_per_shard"])
        for part in self.layout:
            (self.directory / part).mkdir(exist_ok=True)
        sync_directory(self.directory)
        self._done = {part: _repair(self.directory / part, self._grid) for part in self.layout}


def _append(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to an index. A torn one, from a full disk, is cut off when the part is opened again."""
    with open(folder / INDEX_FILE, "ab") as file:
        file.write(line_of(entry))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(folder)  # the first line also makes the file


def _repair(folder: Path, grid: Grid) -> set[int]:
    """Leave nothing in a part but sound shards of the grid and their index; returns the shards' first rows."""
    entries, problems, whole_bytes = read_index(folder)
    index = folder / INDEX_FILE
    if index.is_file() and index.stat().st_size > whole_bytes:
        os.truncate(index, whole_bytes)
    shards = set(grid)
    sound = [
        entry
        for entry in entries
        if (entry["start"], entry["start"] + entry["rows"]) in shards and shard_problem(folder, entry) is None
    ]
    if problems or len(sound) < len(entries):
        write_atomically(index, b"".join(map(line_of, sound)))
    named = {entry["file"] for entry in sound}
    for path in folder.iterdir():
        if path.name not in named and (path.name.startswith("shard-") or path.name.endswith(TEMPORARY)):
            path.unlink()
    sync_directory(folder)
    return {entry["start"] for entry in sound}


def empty_rows(layout: PartLayout, count: int) -> dict[str, Tensor]:
    """Uninitialised tensors [count, ...] of a layout, to be filled batch by batch."""
    return {name: torch.empty((count, *shape), dtype=dtype) for name, (shape, dtype) in layout.items()}
