"""States to resume a training from: resume/last.ckpt, and the one before it, each whole, checked, and never unpickled.

A state is written beside its name, synced and renamed; before that the state that it replaces becomes previous.ckpt. It
is a zip archive with a CRC-32 of every entry, which is compared before a run goes on from it. Whatever
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD says, a state is numbers, texts and tensors, and nothing in it is run.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from rsd.checkpoint import write_pickled
from rsd.errors import RSDError
from rsd.files import TEMPORARY, WriteError, stranger, sync_directory
from rsd.processes import say

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


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
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            line = str(error).partition("\n")[0]
            message = f"{path} is no state of a training run ({line}); start anew without resume"
            raise StateError(stranger(Path(path)) or message) from error


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
        raise StateError(f"cannot resume: {'; '.join(problems)}; start anew without resume")
    return None


def _problem(path: Path) -> str | None:
    """How a state is damaged, in words; None when it is sound."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError) as error:
        return stranger(path, "nothing was saved") or f"{path} is damaged ({error})"
    return None if broken is None else f"{path} is damaged (the checksum of {broken} is wrong)"
