"""Small files that are whole or not there: written beside their name, synced, renamed, and their folder synced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rsd.errors import RSDError

TEMPORARY = ".tmp"  # ending of a file that is being written


class WriteError(RSDError, OSError):
    """A file cannot be written: no room, no permission, no such folder. `errno` is the operating system's."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(f"cannot write {path}: {cause.strerror}; make room, or choose a folder of yours")
        self.errno, self.strerror = cause.errno, cause.strerror

    def __str__(self) -> str:  # OSError's own would be made of errno and strerror
        return str(self.args[0])


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; when this returns it is on disk.

    Args:
        content: Text is encoded as UTF-8.

    Raises:
        WriteError: the disk is full, or the folder is not there or not writable; the old file is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise WriteError(path, error) from error


def sync_directory(directory: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None when there is none."""
    return json.loads(path.read_text()) if path.is_file() else None
