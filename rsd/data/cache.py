"""The hidden-state cache on disk: what a frozen base model sees in every frame, in immutable safetensors shards.

    <cache>/<model>-<data>-<key>/
        cache.json                 what the cache was made from and how a row looks; written first, never changed
        index.jsonl                one line a finished shard: file, start, rows, bytes, sha256
        shard-00000.safetensors    tensors [rows, ...] for consecutive frames of the data set
        lock                       held by the process that writes

A row is one frame: bf16 hidden states of the chosen layers at the K action positions, the raw action chunk, the base
model's own chunk, episode and step. The cache knows neither tokenizer nor indices, so a new tokenizer keeps it valid.

What surprises first: only the index counts. A shard that it does not name does not exist, and a last line without a
newline was never written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rsd.errors import RSDError

CACHE_FILE = "cache.json"
INDEX_FILE = "index.jsonl"
FORMAT = 1  # of the folder; part of the content key
HIDDEN_DTYPE = torch.bfloat16
GIGABYTE = 1e9

RowLayout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # tensor name → shape and dtype of one row


class CacheError(RSDError, RuntimeError):
    """A cache is missing, incomplete, damaged, does not fit on the disk, or belongs to another model or data set."""


def hidden_name(layer: int) -> str:
    """Name of a layer's tensor in a shard."""
    return f"hidden.{layer}"


def row_layout(state_shapes: Mapping[int, tuple[int, int]], chunk_length: int, action_dim: int) -> RowLayout:
    """Tensors of one row: hidden.<layer> [K or T, H] bf16; (base_)actions [T, A] float32; episode and step, int64."""
    chunk = ((chunk_length, action_dim), torch.float32)
    layout: RowLayout = {hidden_name(layer): (shape, HIDDEN_DTYPE) for layer, shape in state_shapes.items()}
    return layout | {"actions": chunk, "base_actions": chunk, "episode": ((), torch.int64), "step": ((), torch.int64)}


def row_bytes(layout: RowLayout) -> int:
    """Bytes that one row takes on disk, without the shard's header."""
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layout.values())


def as_json(value: Any) -> Any:
    """`value` as it looks after a trip through JSON: tuples become lists, keys become strings."""
    return json.loads(json.dumps(value, sort_keys=True))


def content_key(content: Mapping[str, Any]) -> str:
    """Twelve hex digits that change when anything that determines the cached numbers changes."""
    text = json.dumps({"format": FORMAT, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(
    left: Any, right: Any, name: str = "", sides: tuple[str, str] = ("cache", "configuration")
) -> list[str]:
    """Each place where two JSON values differ, as "backbone.weights: cache 'a', configuration 'b'"."""
    if isinstance(left, dict) and isinstance(right, dict):
        absent = "(absent)"
        return [
            line
            for key in sorted(left.keys() | right.keys())
            for line in differences(left.get(key, absent), right.get(key, absent), f"{name}.{key}".lstrip("."), sides)
        ]
    return [] if left == right else [f"{name}: {sides[0]} {left!r}, {sides[1]} {right!r}"]


def check_content(directory: Path, cached: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a cache that was made from something else.

    Raises:
        CacheError: some value differs; both values are named, key by key.
    """
    lines = differences(as_json(cached), as_json(wanted))
    if lines:
        raise CacheError(
            f"{directory} is the cache of another model or data set: {'; '.join(lines)}; "
            "choose the configuration that it was made with, or another folder"
        )


def read_record(directory: Path) -> dict[str, Any]:
    """Contents of cache.json.

    Raises:
        CacheError: there is no such file, it is not JSON, or it is of another format.
    """
    path = Path(directory) / CACHE_FILE
    if not path.is_file():
        raise CacheError(
            f"no hidden-state cache: {path} does not exist; make it with: python scripts/cache_hidden_states.py"
        )
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CacheError(f"{path} is not valid JSON ({error}); remove the folder and make the cache again") from error
    if record.get("format") != FORMAT:
        raise CacheError(f"{path} is of cache format {record.get('format')!r}, expected {FORMAT}; make the cache again")
    return record


def read_index(directory: Path) -> tuple[list[dict[str, Any]], int]:
    """Finished shards in the order of their rows, and the bytes of the index up to its last newline."""
    path = Path(directory) / INDEX_FILE
    whole = path.read_bytes() if path.is_file() else b""
    whole = whole[: whole.rfind(b"\n") + 1]
    try:
        entries = [json.loads(line) for line in whole.splitlines()]
    except json.JSONDecodeError as error:
        raise CacheError(f"{path} is damaged ({error}); remove the folder and make the cache again") from error
    return sorted(entries, key=lambda entry: entry["start"]), len(whole)


def shard_problem(directory: Path, entry: Mapping[str, Any], verify: bool = False) -> str | None:
    """What is wrong with an indexed shard, or None. `verify` also reads the file and compares its SHA-256."""
    path = Path(directory) / entry["file"]
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path} has {path.stat().st_size} bytes, expected {entry['bytes']}"
    if verify:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != entry["sha256"]:
            return f"{path} has SHA-256 {sha256[:12]}…, expected {entry['sha256'][:12]}…"
    return None


def is_complete(directory: Path) -> bool:
    """Whether every frame is in an indexed shard of the right size. False when there is no cache yet."""
    if not (Path(directory) / CACHE_FILE).is_file():
        return False
    entries, _ = read_index(directory)
    rows = sum(entry["rows"] for entry in entries if shard_problem(directory, entry) is None)
    return rows == read_record(directory)["num_frames"]


class CacheReader:
    """A complete cache, by row. Shards are memory-mapped: nothing is read before it is asked for.

    Attributes:
        content: What the cache was made from; the content key is a hash of it.
        layers: Cached layers, ascending.
        norm_stats: Statistics {"action", "proprio"} that the base model un-normalises with.
        num_episodes: Episodes of the data set, also those too short to give a row.
        episodes, steps: [N], int64, of every row.
    """

    def __init__(self, directory: Path, *, expected: Mapping[str, Any] | None = None, verify: bool = False) -> None:
        """Open and check a cache.

        Args:
            directory: The cache's own folder.
            expected: The content that the configuration asks for; None accepts any cache.
            verify: Also compare every shard's SHA-256, which reads all of it.

        Raises:
            CacheError: the cache is missing, of something else, incomplete, or a shard is not what the index says.
        """
        self.directory = Path(directory)
        record = read_record(self.directory)
        self.content: dict[str, Any] = record["content"]
        self.norm_stats: dict[str, Any] = record["norm_stats"]
        self.layers: list[int] = record["content"]["layers"]
        self.num_episodes: int = record["content"]["data"]["num_episodes"]
        if expected is not None:
            check_content(self.directory, self.content, expected)
        entries, _ = read_index(self.directory)
        problems = [problem for entry in entries if (problem := shard_problem(self.directory, entry, verify))]
        if problems:
            raise CacheError(f"damaged cache: {'; '.join(problems)}; repair it with: {record['command']}")
        starts = torch.tensor([0, *(entry["rows"] for entry in entries)]).cumsum(0)  # [shards + 1]
        if starts[-1] != record["num_frames"]:
            raise CacheError(
                f"{self.directory} is incomplete: {starts[-1]} of {record['num_frames']} frames; "
                f"complete it with: {record['command']}"
            )
        if [entry["start"] for entry in entries] != starts[:-1].tolist():
            raise CacheError(f"{self.directory / INDEX_FILE} names overlapping shards; remove the folder")
        self._starts = starts
        self._shards = [_map_shard(self.directory / entry["file"]) for entry in entries]
        self.episodes = torch.cat([shard["episode"] for shard in self._shards])
        self.steps = torch.cat([shard["step"] for shard in self._shards])

    def __len__(self) -> int:
        return len(self.episodes)

    def state_shape(self, layer: int) -> tuple[int, int]:
        """(states a chunk, H) of a cached layer."""
        return tuple(self._shards[0][hidden_name(layer)].shape[1:])

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(tensor.nbytes for shard in self._shards for tensor in shard.values())

    def load_into_memory(self) -> None:
        """Copy the whole cache into memory, as one tensor a name."""
        self._shards = [{name: torch.cat([shard[name] for shard in self._shards]) for name in self._shards[0]}]
        self._starts = torch.tensor([0, len(self)])

    def __getitem__(self, row: int) -> dict[str, Any]:
        """One frame: `read` without the batch axis."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a cache of {len(self)} frames")
        batch = self.read(torch.tensor([row]), self.layers)
        hidden = {layer: states[0] for layer, states in batch.pop("hidden").items()}
        return {"hidden": hidden} | {name: tensor[0] for name, tensor in batch.items()}

    def read(self, rows: Tensor, layers: Sequence[int]) -> dict[str, Any]:
        """Rows in the given order.

        Args:
            rows: [B], int64, in 0..N-1.
            layers: Those of the cached layers that are wanted.

        Returns:
            "hidden": {layer: [B, K or T, H] bf16}; "actions" and "base_actions": [B, T, A] float32;
            "episode" and "step": [B] int64.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        names = [*map(hidden_name, layers), "actions", "base_actions", "episode", "step"]
        shard_of_row = torch.bucketize(rows, self._starts, right=True) - 1  # [B]
        result = {name: _empty_like_rows(self._shards[0][name], len(rows)) for name in names}
        for shard in shard_of_row.unique().tolist():
            places = (shard_of_row == shard).nonzero()[:, 0]  # where in the batch they go
            for name in names:
                result[name][places] = self._shards[shard][name][rows[places] - self._starts[shard]]
        hidden = {layer: result.pop(hidden_name(layer)) for layer in layers}
        return {"hidden": hidden, **result}


def _empty_like_rows(tensor: Tensor, rows: int) -> Tensor:
    return torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype)


def _map_shard(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CacheError(f"{path} cannot be read: {error}; remove it and complete the cache again") from error
