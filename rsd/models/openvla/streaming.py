"""Weights from safetensors files into a module, one tensor at a time, after all names and shapes have been compared.

The headers of all shards are read first, so a wrong checkpoint is refused before gigabytes move. Then every tensor goes
straight to its device; the host holds at most the one shard that is mapped, and what stays there by the caller's wish.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rsd.checkpoint import LISTED_NAMES, CheckpointError, Shape, check_finite
from rsd.files import stranger
from rsd.record import read, shown

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOATING = ("F32", "F16", "BF16")


class _Index(TypedDict):
    weight_map: dict[str, str]


def weight_files(directory: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a checkpoint → the tensors that the index promises in each; None without an index.

    Raises:
        CheckpointError: a file is missing or elsewhere, or the index is not one.
    """
    index = directory / INDEX_FILE
    names: dict[str, set[str] | None] = {SINGLE_FILE: None}
    if index.is_file():
        remedy = "that is not an index of weights, copy it again"
        weight_map = read(index, _Index, error=CheckpointError, remedy=remedy)["weight_map"]
        if strange := sorted(name for name in set(weight_map.values()) if Path(name).name != name):
            raise CheckpointError(f"{index} names files that are not beside it: {shown(strange)}; copy it again")
        names = {file: {name for name in weight_map if weight_map[name] == file} for file in set(weight_map.values())}
    missing = sorted(name for name in names if not (directory / name).is_file())
    if missing:
        raise CheckpointError(f"{directory} has no {', '.join(missing)}; copy the missing files there")
    return {directory / name: names[name] for name in sorted(names)}


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except SafetensorError as error:
        size = path.stat().st_size
        message = f"{path} is damaged ({error}); it has {size} bytes, copy it again"
        raise CheckpointError(stranger(path) or message) from error


def read_headers(files: dict[Path, set[str] | None]) -> dict[str, tuple[Path, Shape]]:
    """Tensor name → its file and shape, from the headers alone.

    Raises:
        CheckpointError: a file is damaged or truncated, holds other tensors than the index says, or not numbers of
            floating point.
    """
    found: dict[str, tuple[Path, Shape]] = {}
    for path, promised in files.items():
        with _opened(path, "cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            kinds = {name: value.get_dtype() for name, value in slices.items()}
            shapes = {name: tuple(value.get_shape()) for name, value in slices.items()}
        if promised is not None and promised != shapes.keys():
            strange = sorted(promised ^ shapes.keys())[:LISTED_NAMES]
            raise CheckpointError(f"{path} and {INDEX_FILE} disagree about {strange}; copy both again")
        wrong = sorted(name for name, kind in kinds.items() if kind not in FLOATING)
        if wrong:
            raise CheckpointError(f"{path} holds {kinds[wrong[0]]} in {wrong[:LISTED_NAMES]}, expected {FLOATING}")
        found |= {name: (path, shape) for name, shape in shapes.items()}
    return found


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file, in memory of its own.

    Raises:
        CheckpointError: the file is damaged, or the tensor has numbers that are NaN or infinite.
    """
    with _opened(path, "cpu") as file:
        value = file.get_tensor(name).clone()
    check_finite({name: value}, str(path))
    return value


def stream(
    module: nn.Module, found: dict[str, tuple[Path, Shape]], *, device: str | torch.device, dtype: torch.dtype
) -> None:
    """Put the tensors of `found` (name in the module → file) into the module, file by file.

    Every tensor is copied into memory of its own: nothing of the module stays bound to the files.
    """
    by_file: dict[Path, list[str]] = {}
    for name, (path, _) in found.items():
        by_file.setdefault(path, []).append(name)
    for path, names in by_file.items():
        with _opened(path, str(device)) as file:
            for name in names:
                tensor = file.get_tensor(name)
                value = torch.empty_like(tensor, dtype=dtype).copy_(tensor)
                check_finite({name: value}, f"{path}, read as {dtype},")
                put(module, name, value)


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace one parameter, which may be on the meta device."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))
