"""One process at a time in a run folder: a lock on the file `lock` there, which ends with the process, however it ends.

What surprises first: the lock is POSIX's, of a process and a file. Whoever closes any descriptor of that file lets go
of it, and a forked child does not hold it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rsd.errors import RSDError
from rsd.files import WriteError

LOCK_FILE = "lock"
_HELD: dict[Path, int] = {}  # run folders that this process keeps others from, and the descriptors that hold the locks
_OPENED: set[Path] = set()  # those of them in which it has begun or continued the run


class TakenError(RSDError, RuntimeError):
    """Another process is at work in a run folder, in which nothing may be written then."""


def hold(run_dir: Path) -> None:
    """Keep other processes from the folder until this one ends or lets go; again is as good as once.

    Raises:
        TakenError: one is at work there.
        WriteError: nothing can be written there.
    """
    if run_dir.resolve() in _HELD:
        return  # closing the file once more would let go of the lock
    try:
        descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise WriteError(run_dir / LOCK_FILE, error) from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which forked children would go on holding
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise _taken(run_dir) from error
        logging.getLogger(__name__).warning(
            "%s cannot be locked (%s): see that no other process goes on with this run", run_dir, error.strerror
        )
    _HELD[run_dir.resolve()] = descriptor


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for that folder; for what takes a moment.

    Where folders cannot be locked, two that start at the very same moment do not see each other.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def let_go(run_dir: Path) -> None:
    """Let another process go on with a run that this one has ended."""
    _OPENED.discard(run_dir.resolve())
    descriptor = _HELD.pop(run_dir.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def opened_here(run_dir: Path) -> bool:
    """Whether this process has begun the run in that folder, or gone on with it."""
    return run_dir.resolve() in _OPENED


def opened(run_dir: Path) -> None:
    """Note that this process has begun the run in a folder that it holds, or gone on with it."""
    _OPENED.add(run_dir.resolve())


def is_held_elsewhere(run_dir: Path) -> bool:
    """Whether another process is at work in that folder."""
    if run_dir.resolve() in _HELD:
        return False
    try:
        hold(run_dir)
    except TakenError:
        return True
    let_go(run_dir)
    return False


def _taken(run_dir: Path) -> TakenError:
    return TakenError(
        f"{run_dir} is being written by another process; wait for its end or stop it, then continue with "
        + shlex.quote(f"resume={run_dir}")
    )
