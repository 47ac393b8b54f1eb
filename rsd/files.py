"""Small files that are whole or not there: written beside their name, synced, renamed, and their folder synced."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from pathlib import Path, PurePosixPath

from rsd.errors import RSDError

TEMPORARY = ".tmp"  # ending of a file that is being written
CODE = ("*.py", "*.pyc", "*.pkl", "*.so")  # is never fetched, nor taken over from a folder that was
STRANGERS = {  # first bytes, in lower case, of what lies in the place of another file: what it is, and what to do
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "run git lfs pull there, or download it"),
    b"version https://hawser": ("a Git LFS pointer, not the file itself", "run git lfs pull there, or download it"),
    b"<!doctype html": ("a web page, not the file itself", "download the file"),
    b"<html": ("a web page, not the file itself", "download the file"),
    b"\x1f\x8b": ("compressed with gzip, and is read plain only", "unpack it with gunzip, under the same name"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd, and is read plain only", "unpack it with unzstd, under the same name"),
    b"\xfd7zxz\x00": ("compressed with xz, and is read plain only", "unpack it with unxz, under the same name"),
    b"bzh": ("compressed with bzip2, and is read plain only", "unpack it with bunzip2, under the same name"),
}


class WriteError(RSDError, OSError):
    """A file cannot be written: no room, no permission, no such folder. `errno` is the operating system's."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(f"cannot write {path}: {cause.strerror}; make room, or choose a folder of yours")
        self.errno, self.strerror = cause.errno, cause.strerror

    def __str__(self) -> str:  # OSError's own would be made of errno and strerror
        return str(self.args[0])


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; when this returns it is on disk.

    Of several processes that write the same file at once, one comes last, and none fails.

    Args:
        content: Text is encoded as UTF-8.

    Raises:
        WriteError: the disk is full, the folder is not there or not writable, or something that is no file (a device,
            a folder) has the name; what was there is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():  # a device would be replaced, too
            raise OSError(errno.EINVAL, "it is no file")
        temporary, descriptor = _open_temporary(path)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)  # while the lock is held
        sync_directory(path.parent)
    except OSError as error:
        raise WriteError(path, error) from error


def _open_temporary(path: Path) -> tuple[Path, int]:
    """The file to be written first, empty, and its descriptor, which holds a lock on it until it is closed.

    What a killed process has left is used again; while another process writes, a file of another name is.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(temporary)):  # not renamed in the meantime
            if os.fstat(descriptor).st_size > 0:
                os.ftruncate(descriptor, 0)
            return temporary, descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # another process is writing it, or has just put it in its place
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def sync_directory(directory: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def obstacle(path: Path) -> str | None:
    """What keeps files from being written in a folder, there or to be made; None where nothing does.

    Nothing is written to find out, so a full disk goes unnoticed.
    """
    for folder in (path.absolute(), *path.absolute().parents):
        try:
            folder.lstat()
            folder.stat()  # of links in a circle, or to nowhere
        except FileNotFoundError as error:
            if folder.is_symlink():
                return f"{folder}: {error.strerror}"
        except OSError as error:
            if error.errno != errno.ENOTDIR:
                return f"{folder}: {error.strerror}"
        else:
            if not folder.is_dir():
                return f"{folder} is not a folder"
            return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is not writable"
    return None


def in_words(error: OSError, otherwise: object) -> str:
    """What the operating system says, with the file that it is about and what to do.

    Args:
        otherwise: Named where the error names no file.
    """
    file = error.filename if error.filename is not None else otherwise
    remedy = "see who removes it" if error.errno == errno.ENOENT else "make room"
    return f"{file}: {error.strerror}; {remedy}, or choose a folder that can be written"


def is_inside(name: str) -> bool:
    """Whether a path is relative and never goes up, so that it names something inside of any folder."""
    path = PurePosixPath(name)
    return path.parts != () and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def file_inside(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder; None where there is none, or a link leads out of the folder."""
    path = folder / name
    try:
        is_own = is_inside(name) and path.resolve().is_relative_to(folder.resolve())
        return path if is_own and path.is_file() else None
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        return None


def stranger(path: Path, remedy: str = "copy it again, or make it anew") -> str | None:
    """What a file that cannot be read is by its first bytes, and what to do, as a message; None where they say nothing.

    Repositories cloned without Git LFS, downloads that ended at a log-in page or before their first byte, and packed
    files look like damage otherwise. Where an empty file is right, its reader does not ask.

    Args:
        remedy: What to do about an empty one.
    """
    with open(path, "rb") as file:
        head = file.read(max(map(len, STRANGERS))).lower()
    if not head:
        return f"{path} is damaged (it is empty, 0 bytes); {remedy}"
    for first, (what, way_out) in STRANGERS.items():
        if head.startswith(first):
            return f"{path} is {what} ({path.stat().st_size} bytes); {way_out}"
    return None
