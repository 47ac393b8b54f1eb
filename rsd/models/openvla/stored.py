"""A checkpoint folder in the published layout as it lies on disk: files, and weights that are read one at a time.

For conversions, which change names and places and leave numbers alone: dtypes stay what they are, and the host holds
one shard at most. What surprises first: a *joined* folder has the heads' weights in its safetensors, under the names
that the network gives them (`action_head.…`), in the place of side files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from rsd.checkpoint import CheckpointError, Shape, check_finite, write_pickled, write_weights
from rsd.models.openvla.published import read_json, read_side_file, side_file
from rsd.models.openvla.published_writer import DEFAULT_SHARD_BYTES, shard_name
from rsd.models.openvla.streaming import INDEX_FILE, SINGLE_FILE, read_headers, read_tensor, weight_files

HEADS = ("action_head", "proprio_projector", "noisy_action_projector")
FILM = "vision_backbone"  # its side file replaces the towers of the shards
SIDE = (*HEADS, FILM)
PARTIAL = ".converting"  # ending of a folder that is being written; what lies there is removed
ADAPTER_FOLDER = "lora_adapter"

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Stored:
    """A checkpoint folder.

    Attributes:
        directory: Where it lies.
    """

    directory: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_json(self.directory, "config.json")

    @cached_property
    def headers(self) -> dict[str, tuple[Path, Shape]]:
        """Name → file and shape of the weights in safetensors."""
        return read_headers(weight_files(self.directory))

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the weights in safetensors."""
        return {name: shape for name, (_, shape) in self.headers.items()}

    def tensor(self, name: str) -> Tensor:
        """One of them, as it is on disk."""
        return read_tensor(self.headers[name][0], name)

    @cached_property
    def side_paths(self) -> dict[str, Path]:
        """Component → its side file, of those that are there."""
        found = {component: side_file(self.directory, component) for component in SIDE}
        return {component: path for component, path in found.items() if path is not None}

    def side(self, component: str) -> Weights:
        """Weights of a side file, without the wrapper's `module.`."""
        return read_side_file(self.side_paths[component])

    @property
    def joined(self) -> dict[str, list[str]]:
        """Component → its names among the safetensors, of the heads that lie there."""
        named = {head: [name for name in self.headers if name.startswith(f"{head}.")] for head in HEADS}
        return {head: names for head, names in named.items() if names}

    @property
    def others(self) -> dict[str, Path]:
        """Everything beside weights and side files: name below the folder → file. Temporary files are left out."""
        weights = {path.name for path in self.directory.glob("model*.safetensors")} | {INDEX_FILE}
        weights |= {path.name for path in self.side_paths.values()}
        found = {path.relative_to(self.directory).as_posix(): path for path in sorted(self.directory.rglob("*"))}
        return {
            name: path
            for name, path in found.items()
            if path.is_file() and name not in weights and not name.startswith(".") and not name.endswith(".tmp")
        }


def require_new(out: Path, *sources: Path) -> None:
    """See that a folder can be written there.

    Args:
        sources: What it will be made of.

    Raises:
        CheckpointError: something lies there already, it would lie in what it is made of, or has no name.
    """
    if out.name in ("", ".."):
        raise CheckpointError(f"{str(out)!r} is no name for a folder that is to be made; give one, such as ./NAME")
    partial = out.with_name(out.name + PARTIAL)
    for source in sources:
        if source.resolve().is_relative_to(partial.resolve()):
            raise CheckpointError(f"{source} is what a killed conversion to {out} has left; give a whole checkpoint")
        if out.resolve().is_relative_to(source.resolve()):
            raise CheckpointError(f"{out} lies in {source}, which it is made of; choose a folder elsewhere")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out} exists already and is not empty; move it away or choose another folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, beside `out`, which gets that name when the block has ended without an error.

    What a killed process has left there is removed first; after an error nothing is left.

    Raises:
        CheckpointError: something lies there already.
    """
    require_new(out)
    partial = out.with_name(out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_stored(
    folder: Path,
    *,
    files: Mapping[str, Path | bytes],
    shapes: Mapping[str, Shape],
    tensor_of: Callable[[str], Tensor],
    side: Mapping[str, Weights],
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a checkpoint into a folder that is being made.

    Args:
        files: Name below the folder → contents, or the file to copy.
        shapes: Names of what goes into safetensors, in order.
        tensor_of: Gives the tensor of a name, when its shard's turn has come; its dtype is kept.
        side: File name → weights, which get the `module.` that published side files have.
        shard_bytes: Largest shard.

    Raises:
        CheckpointError: weights are NaN or infinite.
    """
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)
    for name, weights in side.items():
        check_finite(weights, f"the {name} that was to be written")
        write_pickled({f"module.{one}": value.detach().cpu().clone() for one, value in weights.items()}, folder / name)
    shards: list[dict[str, int]] = []  # of each: name → bytes
    held: Weights = {}
    for name in shapes:
        value = tensor_of(name)
        size = value.numel() * value.element_size()
        if not shards or (held and sum(shards[-1].values()) + size > shard_bytes):
            _write_shard(folder, len(shards), held)
            shards.append({})
            held = {}
        held[name], shards[-1][name] = value, size
    _write_shard(folder, len(shards), held)
    if len(shards) == 1:
        os.replace(folder / _unnamed(1), folder / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = shard_name(number, len(shards))
        os.replace(folder / _unnamed(number), folder / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(sum(names.values()) for names in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _unnamed(number: int) -> str:
    """Of a shard while nobody knows how many there will be."""
    return f"shard-{number}"


def _write_shard(folder: Path, number: int, weights: Weights) -> None:
    if weights:
        check_finite(weights, "the model that was to be written")
        write_weights(weights, folder / _unnamed(number), metadata={"format": "pt"})


def json_file(record: Mapping[str, Any]) -> bytes:
    """Contents of a JSON file of the published layout."""
    return (json.dumps(record, indent=2) + "\n").encode()


def step_of(stored: Stored) -> str:
    """The step in the names of a folder's side files; "latest" where there is none."""
    for path in stored.side_paths.values():
        return path.name.partition("--")[2].removesuffix("_checkpoint.pt").removesuffix("checkpoint.pt") or "latest"
    return "latest"


def is_film(names: Mapping[str, Any]) -> bool:
    """Whether the towers among these weights are modulated by the instruction."""
    return any(name.startswith(f"{FILM}.") and name.endswith(".scale.weight") for name in names)
