"""Checkpoints as a folder of two files: weights.safetensors and checkpoint.json. Nothing is ever unpickled.

The json holds the kind ("tokenizer", "head", ...), the constructor's arguments, the weights' SHA-256 and where the
weights came from. A folder appears whole or not at all: it is written beside its final name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rsd.errors import RSDError

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
    """One hash over everything that loading a checkpoint reads: not over when and by which command it was made.

    Raises:
        CheckpointError: checkpoint.json cannot be read.
    """
    path = Path(directory) / JSON_FILE
    try:
        record = json.loads(path.read_text())
        read = {name: record.get(name) for name in ("kind", "config", "sha256")}
        read["made_for"] = {name: record["provenance"].get(name) for name in MADE_FOR}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); copy the checkpoint again, or make it anew") from error
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def save_checkpoint(
    directory: Path, *, kind: str, config: dict[str, Any], weights: dict[str, Tensor], provenance: dict[str, Any]
) -> None:
    """Write a checkpoint folder; an existing one of the same name is replaced only once the new one is complete."""
    directory = Path(directory)
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary / WEIGHTS_FILE)
    record = {
        "kind": kind,
        "config": config,
        "provenance": provenance,
        "sha256": file_sha256(temporary / WEIGHTS_FILE),
    }
    (temporary / JSON_FILE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    if directory.exists():
        old = directory.with_name(directory.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(directory, old)
        os.rename(temporary, directory)
        shutil.rmtree(old)
    else:
        os.rename(temporary, directory)


def load_checkpoint(directory: Path, *, kind: str, produce: str) -> Checkpoint:
    """Read a checkpoint folder and check it.

    Args:
        directory: The folder.
        kind: What the caller needs; another kind is an error.
        produce: The command that would make the missing checkpoint; part of the error message.

    Raises:
        CheckpointError: the folder or a file is missing, the weights do not match their hash, or the kind differs.
    """
    directory = Path(directory)
    for name in (JSON_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"no {kind} checkpoint: {directory / name} does not exist; make it with: {produce}")
    try:
        record = json.loads((directory / JSON_FILE).read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{directory / JSON_FILE} is not valid JSON; make it again with: {produce}") from error
    if record.get("kind") != kind:
        raise CheckpointError(f"{directory} holds a checkpoint of kind {record.get('kind')!r}, expected {kind!r}")
    sha256 = file_sha256(directory / WEIGHTS_FILE)
    if sha256 != record["sha256"]:
        size = (directory / WEIGHTS_FILE).stat().st_size
        raise CheckpointError(
            f"{directory / WEIGHTS_FILE} is damaged: {size} bytes with SHA-256 {sha256[:12]}…, expected "
            f"{record['sha256'][:12]}…; copy it again or make it again with: {produce}"
        )
    try:
        weights = load_file(directory / WEIGHTS_FILE)
    except SafetensorError as error:
        raise CheckpointError(f"{directory / WEIGHTS_FILE} cannot be read: {error}") from error
    return Checkpoint(kind, record["config"], weights, record["provenance"], sha256)


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


def load_weights(module: nn.Module, checkpoint: Checkpoint, directory: Path) -> None:
    """Load weights strictly.

    Raises:
        CheckpointError: the weights belong to another architecture.
    """
    expected, got = (
        {name: tuple(value.shape) for name, value in weights.items()}
        for weights in (module.state_dict(), checkpoint.weights)
    )
    check_names(directory, expected, got)
    module.load_state_dict(checkpoint.weights)
