"""States to resume a training from: resume/last.ckpt, and the one before it, each whole, checked, and never unpickled.

A state is written beside its name, synced and renamed; before that the state that it replaces becomes previous.ckpt. It
is a zip archive with a CRC-32 of every entry, which is compared before a run goes on from it. torch's own reader of
such archives sees other parts of their directory and compares no CRC-32, so a state is also read once as torch does.
Whatever TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD says, a state is numbers, texts and tensors, and nothing in it is run.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from rsd.checkpoint import write_pickled
from rsd.errors import RSDError
from rsd.files import TEMPORARY, WriteError, stranger, sync_directory
from rsd.processes import say
from rsd.record import read
from rsd.settings import Natural

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SHARDS_FILE = "shards.json"  # of a state that is a folder, see rsd/training/sharded.py: {file: bytes}
ANEW = "; start anew without resume"
IS_FOLDER = 0x10  # bit of an archive's entry, for whose content torch then has zeros
FOLDER = ".folder"  # ending that a folder in the place of a state gets
UNREADABLE = (  # what torch raises of bytes that it did not write
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, TypeError, LookupError),
    *(ArithmeticError, AttributeError, AssertionError),
)
NAMED = re.compile(r"GLOBAL ([\w.]+)")  # code that a state names, in torch's words


class StateError(RSDError, RuntimeError):
    """No state of a run can be read."""


class States(TorchCheckpointIO):
    """How Lightning writes and reads them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a state.

        Raises:
            WriteError: there is no room, or the folder is not writable; what was there before is still there.
        """
        path = Path(path)
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_pickled(checkpoint, temporary)
            for one in (path, path.with_name(PREVIOUS)):
                if one.is_dir():  # no state; no file could take its place
                    os.replace(one, one.with_name(one.name + FOLDER))
            if path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
            sync_directory(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise WriteError(path, error) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a state, without unpickling whatever is asked for.

        Raises:
            StateError: it holds something else than numbers, texts and tensors.
        """
        try:
            state = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except UNREADABLE as error:
            code = NAMED.search(str(error))
            what = f"holds {code[1]}, which is code" if code else "is damaged, or holds something else"
            message = f"{path} is no state of a training run: it {what}, expected numbers, texts and tensors alone"
            raise StateError(stranger(Path(path)) or message + ANEW) from error
        if not isinstance(state, dict):
            what = f"it is a {type(state).__name__}, expected entries by name"
            raise StateError(f"{path} is no state of a training run: {what}{ANEW}")
        return state


def state_to_resume(folder: Path) -> Path | None:
    """The newest sound state of a run; None when none was saved yet.

    Args:
        folder: The run's resume/.

    Raises:
        StateError: there are states, and none is sound.
    """
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    problems: list[str] = []
    for path in found:
        problem = _problem(path)
        if problem is None:
            if problems or path.name == PREVIOUS:
                say(f"{'; '.join(problems) or f'{folder / LAST} is missing'}: going on from the one before it, {path}")
            return path
        problems.append(problem)
    if problems:
        raise StateError(f"cannot resume: {'; '.join(problems)}{ANEW}")
    return None


def _problem(path: Path) -> str | None:
    """How a state is damaged, in words; None when it is sound."""
    if path.is_dir():
        return _problem_of_shards(path)
    if not path.is_file():  # a pipe would never end
        return f"{path} is damaged (it is no file)"
    try:
        with zipfile.ZipFile(path) as archive:
            odd = [one.filename for one in archive.infolist() if one.compress_type or one.external_attr & IS_FOLDER]
            broken = None if odd else archive.testzip()
        if odd:
            return f"{path} is damaged (what its directory says of {odd[0]} is wrong)"
        if broken is not None:
            return f"{path} is damaged (the checksum of {broken} is wrong)"
        States().load_checkpoint(path)
    except StateError as error:
        return str(error).removesuffix(ANEW)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        return stranger(path, "nothing was saved") or f"{path} is damaged ({error})"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None


def _problem_of_shards(folder: Path) -> str | None:
    """See `_problem`, of a state that several processes wrote."""
    try:
        promised = read(folder / SHARDS_FILE, dict[str, Natural], error=StateError, remedy="it was not written whole")
        sizes = {name: (folder / name).stat().st_size for name in promised}
    except StateError as error:
        return f"{folder} is damaged ({error})"
    except OSError as error:
        return f"{folder} is damaged ({error.filename}: {error.strerror})"
    wrong = [name for name in promised if sizes[name] != promised[name]]
    if wrong:
        return f"{folder} is damaged ({wrong[0]} has {sizes[wrong[0]]} bytes, expected {promised[wrong[0]]})"
    return None
