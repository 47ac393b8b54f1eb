"""Checkpoints as a folder of two files: weights.safetensors and checkpoint.json. Nothing is ever unpickled.

The json holds the kind ("tokenizer", "head", ...), the constructor's arguments, the weights' SHA-256, where the
weights came from, and its own checksum; without one it is of an earlier version, and a change of it goes unnoticed as
long as types and shapes fit. A folder appears whole or not at all: it is written beside its final name and renamed.
Weights and metrics that are not finite are neither written nor read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rsd.errors import RSDError
from rsd.files import WriteError, stranger
from rsd.record import read, sealed, shown

OS_ERROR = re.compile(r"\(os error (\d+)\)")
WEIGHTS_FILE = "weights.safetensors"
JSON_FILE = "checkpoint.json"
MADE_FOR = ("unnorm_key", "bounds", "norm_stats", "tokenizer", "base")  # entries of provenance that others are held to
LISTED_NAMES = 8  # at most this many names in an error message

Shape = tuple[int, ...]


class CheckpointError(RSDError, RuntimeError):
    """A checkpoint is missing, damaged, or not what the caller needs."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: its kind, constructor arguments, weights and provenance."""

    kind: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    provenance: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class CheckpointRecord:
    """checkpoint.json.

    Attributes:
        kind: "tokenizer", "head", "draft", …
        config: The constructor's arguments.
        provenance: Where the weights came from: data, command, metrics.
        sha256: Of weights.safetensors.
    """

    kind: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    sha256: str


class _Content(TypedDict):
    """What every checkpoint.json holds, of whatever version."""

    provenance: dict[str, Any]


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """`file_sha256`, read once a process as long as the file stays as it is."""
    return _sha256_of(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


def content_sha256(directory: Path) -> str:
    """One hash over all that loading a checkpoint reads; when and by which command it was made does not enter.

    Raises:
        CheckpointError: checkpoint.json cannot be read.
    """
    path, remedy = Path(directory) / JSON_FILE, "copy the checkpoint again, or make it anew"
    record = read(path, _Content, error=CheckpointError, remedy=remedy)
    content: dict[str, Any] = {name: record.get(name) for name in ("kind", "config", "sha256")}
    content["made_for"] = {name: record["provenance"].get(name) for name in MADE_FOR}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checkpoint_kind(directory: Path) -> str:
    """What a checkpoint says that it is: "tokenizer", "head", …; "checkpoint" of one that does not.

    Raises:
        CheckpointError: checkpoint.json cannot be read.
    """
    record = read(
        Path(directory) / JSON_FILE,
        _Content,
        error=CheckpointError,
        remedy="copy the checkpoint again, or make it anew",
    )
    return str(record.get("kind") or "checkpoint")


def save_checkpoint(
    directory: Path, *, kind: str, config: dict[str, Any], weights: dict[str, Tensor], provenance: dict[str, Any]
) -> None:
    """Write a checkpoint folder; an existing one of the same name is replaced only once the new one is complete.

    Raises:
        CheckpointError: weights or a number of the json are not finite; nothing is written.
        WriteError: there is no room, or the folder is not writable.
    """
    directory = Path(directory)
    check_finite(weights, f"the {kind} that was to be written to {directory}")
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_weights({name: value.detach() for name, value in weights.items()}, temporary / WEIGHTS_FILE)
    record = {
        "kind": kind,
        "config": config,
        "provenance": provenance,
        "sha256": file_sha256(temporary / WEIGHTS_FILE),
    }
    (temporary / JSON_FILE).write_text(checkpoint_json(record))
    if directory.exists():
        old = directory.with_name(directory.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(directory, old)
        os.rename(temporary, directory)
        shutil.rmtree(old)
    else:
        os.rename(temporary, directory)


def write_weights(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as a safetensors file.

    Raises:
        WriteError: there is no room, or the folder is not writable.
    """
    try:
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, path, metadata=metadata)
    except SafetensorError as error:  # the operating system's errno stands only in its message
        if (number := OS_ERROR.search(str(error))) is None:
            raise
        raise WriteError(path, OSError(int(number[1]), os.strerror(int(number[1])))) from error


def write_pickled(value: Any, path: Path) -> None:
    """Write what torch.save takes, and wait until it is on disk.

    Raises:
        WriteError: there is no room, or the folder is not writable.
    """
    try:
        with open(path, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch reports a broken archive where the disk is full or Ctrl-C came; that is what the report's context says
        before = error if isinstance(error, OSError) else error.__context__
        if isinstance(before, OSError):
            raise WriteError(path, before) from error
        if isinstance(before, KeyboardInterrupt):
            raise before from None
        raise


def checkpoint_json(record: Mapping[str, Any]) -> str:
    """Text of checkpoint.json, with the checksum of what it says now.

    Raises:
        CheckpointError: a number in it is not finite.
    """
    if infinite := not_finite(record):
        raise CheckpointError(f"{infinite} of the {record['kind']} is not finite; its training has diverged")
    return json.dumps(sealed(record), indent=1, sort_keys=True, allow_nan=False) + "\n"


def not_finite(value: Any, key: str = "") -> str | None:
    """Dotted name of the first number in a record that is not finite; None when all are."""
    if isinstance(value, float):
        return None if math.isfinite(value) else key
    if isinstance(value, Mapping | list | tuple):
        named = value.items() if isinstance(value, Mapping) else enumerate(value)
        found = (not_finite(one, f"{key}.{name}" if key else str(name)) for name, one in named)
        return next((name for name in found if name is not None), None)
    return None


def is_finite(values: Tensor) -> bool:
    """Whether all numbers are; in one pass and without another tensor: the extremes of numbers with a NaN are NaN."""
    if not values.is_floating_point() or values.numel() == 0:
        return True
    lowest, highest = values.detach().aminmax()
    return bool(lowest.isfinite() & highest.isfinite())


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """See that no weight is NaN or infinite.

    Args:
        where: What holds them, for the message.

    Raises:
        CheckpointError: some are; the first LISTED_NAMES of their names are told.
    """
    broken = [name for name, value in weights.items() if not is_finite(value)]
    if broken:
        raise CheckpointError(
            f"{where} has weights that are NaN or infinite: {', '.join(broken[:LISTED_NAMES])} "
            f"({len(broken)} of {len(weights)} tensors); its training has diverged, or the file is damaged"
        )


def load_checkpoint(directory: Path, *, kind: str, produce: str) -> Checkpoint:
    """Read a checkpoint folder and check it.

    Args:
        directory: The folder.
        kind: What the caller needs; another kind is an error.
        produce: The command that would make the missing checkpoint; part of the error message.

    Raises:
        CheckpointError: the folder or a file is missing, the json is damaged, the weights do not match their hash or
            are not finite, or the kind differs.
    """
    directory = Path(directory)
    for name in (JSON_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"no {kind} checkpoint: {directory / name} does not exist; make it with: {produce}")
    remedy = f"copy it again or make it again with: {produce}"
    record = read(directory / JSON_FILE, CheckpointRecord, error=CheckpointError, remedy=remedy)
    if record.kind != kind:
        raise CheckpointError(f"{directory} holds a checkpoint of kind {shown(record.kind)}, expected {kind!r}")
    sha256 = file_sha256(directory / WEIGHTS_FILE)
    if sha256 != record.sha256:
        size = (directory / WEIGHTS_FILE).stat().st_size
        raise CheckpointError(
            stranger(directory / WEIGHTS_FILE)
            or f"{directory / WEIGHTS_FILE} is damaged: {size} bytes with SHA-256 {sha256[:12]}…, expected "
            f"{record.sha256[:12]}…; {remedy}"
        )
    try:
        weights = load_file(directory / WEIGHTS_FILE)
    except SafetensorError as error:
        raise CheckpointError(f"{directory / WEIGHTS_FILE} cannot be read: {error}") from error
    check_finite(weights, str(directory / WEIGHTS_FILE))
    return Checkpoint(kind, record.config, weights, record.provenance, sha256)


def check_names(directory: Path, expected: dict[str, Shape], got: dict[str, Shape]) -> None:
    """Refuse weights whose names and shapes are others than expected; block numbers show which layer is missing.

    Raises:
        CheckpointError: they are; the first LISTED_NAMES differences are named.
    """
    problems = [f"missing {name}" for name in sorted(expected.keys() - got.keys())]
    problems += [f"unexpected {name}" for name in sorted(got.keys() - expected.keys())]
    problems += [
        f"{name} has shape {got[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & got.keys())
        if expected[name] != got[name]
    ]
    if problems:
        more = f"; and {len(problems) - LISTED_NAMES} more" if len(problems) > LISTED_NAMES else ""
        raise CheckpointError(f"{directory} is of another architecture: {'; '.join(problems[:LISTED_NAMES])}{more}")


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in weights.items()}


@torch.no_grad()
def round_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights to what a dtype can say, in place; their own dtype stays, and buffers stay as they are."""
    for parameter in module.parameters():
        parameter.copy_(parameter.to(dtype))


def weights_in(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's state with its weights in a dtype, for `save_checkpoint`; buffers stay as they are."""
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value.to(dtype) if name in weights else value for name, value in module.state_dict().items()}


def load_weights(module: nn.Module, checkpoint: Checkpoint, directory: Path) -> None:
    """Load weights strictly, into the module's own dtype, whatever they are stored in.

    Raises:
        CheckpointError: the weights belong to another architecture.
    """
    check_names(directory, shapes_of(module.state_dict()), shapes_of(checkpoint.weights))
    module.load_state_dict(checkpoint.weights)
