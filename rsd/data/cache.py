"""The hidden-state cache on disk: what a frozen base model sees in every frame, in immutable safetensors shards.

    <cache>/<model>-<data>-<key>/
        cache.json                     what the numbers were made from; written first, never changed
        lock                           held by the process that writes
        rows/                          a part: what every frame has, whatever is read of the base model
            index.jsonl                one line a finished shard: file, start, rows, bytes, sha256
            shard-00000.safetensors    tensors [rows, ...] for consecutive frames of the data set
        layer.16/  head/  …            a part for each point of the base model that somebody asked for, likewise

    rows/        actions [T, A] standard, base_actions [T, A] (the model's own chunk), float32; episode, step, int64
    layer.16/    states [K, H] of a layer at the action positions, bfloat16
    head/        states [T, H] that the L1 head's last linear layer reads, bfloat16

The key is a hash of base model and data set and says nothing about points (rsd/points.py): a further point adds its
folder, and nothing that is there is computed or written again. All parts are cut into shards at the same rows. The
cache knows neither tokenizer nor indices, so a new tokenizer keeps it valid.

cache.json carries its own checksum, the index that of every shard; both are compared whenever a cache is opened, which
reads all of the opened parts once.

Only an index counts: a shard that it does not name does not exist, and a last line without a newline was never written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rsd.differences import differences
from rsd.errors import RSDError
from rsd.files import stranger
from rsd.record import EntryError, check_seal, conform, parse, read, shown
from rsd.settings import Count, Total
from rsd.space import check_statistics
from rsd.types import CachedRows

CACHE_FILE = "cache.json"
INDEX_FILE = "index.jsonl"
ROWS = "rows"  # the part that is no point
STATES = "states"  # a point's only tensor
FORMAT = 2  # of the folder; part of the content key
HIDDEN_DTYPE = torch.bfloat16
GIGABYTE = 1e9

PartLayout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # tensor name → shape and dtype of one row
Grid = list[tuple[int, int]]  # rows [start, stop) of every shard


class _Data(TypedDict):
    num_episodes: Count


class _Content(TypedDict):
    """What is read of it; all of it is compared."""

    base: dict[str, Any]
    data: _Data
    unnorm_key: str


class _Record(TypedDict):
    """cache.json."""

    format: int
    content: _Content
    num_frames: Count
    rows_per_shard: Count
    norm_stats: dict[str, Any]
    command: str


class Entry(TypedDict):
    """A line of an index: a finished shard."""

    file: str
    start: Total
    rows: Count
    bytes: Total
    sha256: str


class CacheError(RSDError, RuntimeError):
    """A cache is damaged, does not fit on the disk, or belongs to another model or data set."""


class IncompleteCache(CacheError):
    """A cache is missing, or shards of it are missing or torn: filling it again completes it."""


def cache_layout(points: Mapping[str, tuple[int, int]], chunk_length: int, action_dim: int) -> dict[str, PartLayout]:
    """Tensors of one row in each part, for points with these (states a chunk, H)."""
    chunk = ((chunk_length, action_dim), torch.float32)
    rows = {"actions": chunk, "base_actions": chunk, "episode": ((), torch.int64), "step": ((), torch.int64)}
    return {ROWS: rows} | {point: {STATES: (shape, HIDDEN_DTYPE)} for point, shape in points.items()}


def row_bytes(layout: PartLayout) -> int:
    """Bytes that one row takes on disk, without the shard's header."""
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layout.values())


def shard_grid(num_frames: int, rows_per_shard: int) -> Grid:
    """Rows [start, stop) of every shard; only the last one may be smaller."""
    starts = range(0, num_frames, rows_per_shard)
    return [(start, min(start + rows_per_shard, num_frames)) for start in starts]


def as_json(value: Any) -> Any:
    """`value` as it looks after a trip through JSON: tuples become lists, keys become strings."""
    return json.loads(json.dumps(value, sort_keys=True))


def content_key(content: Mapping[str, Any]) -> str:
    """Twelve hex digits that change when anything that determines the cached numbers changes."""
    text = json.dumps({"format": FORMAT, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_record(directory: Path, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """cache.json. Whoever opens a cache, to read or to write, is held to it here.

    Args:
        directory: The cache's own folder.
        content: What the cache must have been made from; None accepts any.

    Raises:
        IncompleteCache: there is no cache.
        CacheError: the file is not JSON, of another format, or of another model or data set; both sides are named.
    """
    path = Path(directory) / CACHE_FILE
    if not path.is_file():
        raise IncompleteCache(
            f"no hidden-state cache: {path} does not exist; make it with: python scripts/cache_hidden_states.py"
        )
    remedy = "remove the folder and make the cache again"
    record: dict[str, Any] = read(path, dict[str, Any], error=CacheError, remedy=remedy, raw=True)
    if record.get("format") != FORMAT:
        raise CacheError(
            f"{path} is of cache format {shown(record.get('format'))}, expected {FORMAT}, and is left as it is: remove "
            "the folder or choose another one, and make the cache again with: python scripts/cache_hidden_states.py"
        )
    try:
        conform(record, _Record, str(path))
        check_seal(record, str(path))
        unnorm_key = record["content"]["unnorm_key"]
        parts = ("action", "proprio") if "proprio" in record["norm_stats"] else ("action",)
        check_statistics(record["norm_stats"], f"{path}: entry 'norm_stats' of {unnorm_key!r}", parts)
    except EntryError as error:
        raise CacheError(f"{error}; {remedy}") from error
    different = [] if content is None else differences(record["content"], as_json(content))
    lines = [one.named("cache", "configuration") for one in different]
    if lines:
        raise CacheError(
            f"{directory} is the cache of another model or data set: {'; '.join(lines)}; "
            "choose the configuration that it was made with, or another folder"
        )
    return record


def fill_command(record: Mapping[str, Any], parts: Sequence[str]) -> str:
    """The command that completes or repairs these parts."""
    points = ",".join(part for part in parts if part != ROWS)
    return f'{record["command"]} "layers=[{points}]"'


def read_index(folder: Path) -> tuple[list[Entry], list[str], int]:
    """A part's index, up to its last newline.

    Returns:
        Finished shards in the order of their rows, each once; what is wrong with the other lines; and the bytes.
    """
    path = Path(folder) / INDEX_FILE
    whole = path.read_bytes() if path.is_file() else b""
    if whole and (other := stranger(path)):
        return [], [other], len(whole)
    whole = whole[: whole.rfind(b"\n") + 1]
    entries: dict[int, Entry] = {}
    problems: list[str] = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            entry: Entry = parse(line, Entry, f"{path}, line {number}")
        except EntryError as error:
            problems.append(str(error))
            continue
        if entry["start"] in entries:
            problems.append(f"{path}, line {number} names rows from {entry['start']} for a second time")
        elif Path(entry["file"]).name != entry["file"]:
            problems.append(f"{path}, line {number}: entry 'file' is {shown(entry['file'])}, expected a name")
        else:
            entries[entry["start"]] = entry
    return [entries[start] for start in sorted(entries)], problems, len(whole)


def shard_problem(folder: Path, entry: Entry, verify: bool = True) -> str | None:
    """What is wrong with an indexed shard, or None; `verify` reads the file to compare its SHA-256."""
    path = Path(folder) / entry["file"]
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != entry["bytes"]:
        return stranger(path) or f"{path} has {path.stat().st_size} bytes, expected {entry['bytes']}"
    if not verify:
        return None
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 == entry["sha256"]:
        return None
    return stranger(path) or f"{path} has SHA-256 {sha256[:12]}…, expected {entry['sha256'][:12]}…"


class CacheReader:
    """A complete cache, by row. Shards are memory-mapped: nothing is read before it is asked for.

    Attributes:
        content: What the cache was made from; the content key is a hash of it.
        points: Points whose states can be read.
        norm_stats: Statistics {"action", "proprio"} that the base model un-normalises with.
        num_episodes: Episodes of the data set, also those too short to give a row.
        episodes, steps: [N], int64, of every row.
    """

    def __init__(
        self,
        directory: Path,
        points: Sequence[str] | None = None,
        *,
        content: Mapping[str, Any] | None = None,
        verify: bool = True,
    ) -> None:
        """Open and check the rows and these points; other points may be missing, or just being filled.

        Args:
            directory: The cache's own folder.
            points: Names of points; None for all that have a folder.
            content: What the configuration asks for; None accepts any cache.
            verify: Compare every shard's SHA-256, which reads all of what is opened, about a second a gigabyte.

        Raises:
            IncompleteCache: the cache is missing or incomplete, or a shard is not what the index says.
            CacheError: the cache is of something else, or cannot be read.
        """
        self.directory = Path(directory)
        record = read_record(self.directory, content)
        self.content: dict[str, Any] = record["content"]
        self.norm_stats: dict[str, Any] = record["norm_stats"]
        self.num_episodes: int = record["content"]["data"]["num_episodes"]
        if points is None:
            points = sorted(path.parent.name for path in self.directory.glob(f"*/{INDEX_FILE}"))
        self.points = [point for point in points if point != ROWS]
        parts = [ROWS, *self.points]
        found = {part: read_index(self.directory / part) for part in parts}
        indices = {part: entries for part, (entries, _, _) in found.items()}
        self._check(record, indices, [problem for _, problems, _ in found.values() for problem in problems], verify)
        self._indices = indices
        self._starts = torch.tensor([0, *(entry["rows"] for entry in indices[ROWS])]).cumsum(0)  # [shards + 1]
        self._shards = {
            part: [_map_shard(self.directory / part / entry["file"]) for entry in entries]
            for part, entries in indices.items()
        }
        self.episodes = torch.cat([shard["episode"] for shard in self._shards[ROWS]])
        self.steps = torch.cat([shard["step"] for shard in self._shards[ROWS]])

    def _check(
        self, record: dict[str, Any], indices: dict[str, list[Entry]], problems: list[str], verify: bool
    ) -> None:
        shards = [(self.directory / part, entry) for part, entries in indices.items() for entry in entries]
        with ThreadPoolExecutor() as pool:  # hashed side by side
            found = pool.map(lambda shard: shard_problem(shard[0], shard[1], verify), shards)
            problems = problems + [problem for problem in found if problem is not None]
        if problems:
            command = fill_command(record, [*indices])
            raise IncompleteCache(f"damaged cache: {'; '.join(problems)}; repair it with: {command}")
        grid = shard_grid(record["num_frames"], record["rows_per_shard"])
        short = {
            part: sum(entry["rows"] for entry in entries)
            for part, entries in indices.items()
            if [(entry["start"], entry["start"] + entry["rows"]) for entry in entries] != grid
        }
        if short:
            counts = ", ".join(f"{rows} of {record['num_frames']} frames in {part}" for part, rows in short.items())
            raise IncompleteCache(
                f"{self.directory} is incomplete: {counts}; complete it with: {fill_command(record, [*indices])}"
            )

    def __len__(self) -> int:
        return len(self.episodes)

    def digest(self, points: Sequence[str] | None = None) -> str:
        """Twelve hex digits that change with any number in the rows or at these points; None is all that are open."""
        parts = [ROWS, *(self.points if points is None else points)]
        shards = [[part, entry["start"], entry["sha256"]] for part in parts for entry in self._indices[part]]
        return hashlib.sha256(json.dumps(sorted(shards)).encode()).hexdigest()[:12]

    def contents(self) -> list[dict[str, Any]]:
        """What identifies the states at each opened point, as in `rsd.inputs`: a cache gets further points later."""
        return [
            {"kind": "cache", "point": point, "folder": str(self.directory), "digest": self.digest([point])}
            for point in self.points
        ]

    def state_shape(self, point: str) -> tuple[int, int]:
        """(states a chunk, H) at a point."""
        states, width = self._shards[point][0][STATES].shape[1:]
        return states, width

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows, at the opened points."""
        return sum(tensor.nbytes for shards in self._shards.values() for shard in shards for tensor in shard.values())

    def load_into_memory(self) -> None:
        """Copy what is opened into memory, as one tensor a name."""
        for part, shards in self._shards.items():
            self._shards[part] = [{name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}]
        self._starts = torch.tensor([0, len(self)])

    def __getitem__(self, row: int) -> CachedRows:
        """One frame: `read` without the batch axis."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a cache of {len(self)} frames")
        batch = self.read(torch.tensor([row]), self.points)
        return {
            "hidden": {point: states[0] for point, states in batch["hidden"].items()},
            "actions": batch["actions"][0],
            "base_actions": batch["base_actions"][0],
            "episode": batch["episode"][0],
            "step": batch["step"][0],
        }

    def read(self, rows: Tensor, points: Sequence[str]) -> CachedRows:
        """Rows in the given order.

        Args:
            rows: [B], int64, in 0..N-1.
            points: Those of the opened points that are wanted.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        shard_of_row = torch.bucketize(rows, self._starts, right=True) - 1  # [B]
        places = {  # shard → where in the batch its rows go
            shard: (shard_of_row == shard).nonzero()[:, 0] for shard in shard_of_row.unique().tolist()
        }
        return {
            "hidden": {point: self._gather(point, STATES, rows, places) for point in points},
            "actions": self._gather(ROWS, "actions", rows, places),
            "base_actions": self._gather(ROWS, "base_actions", rows, places),
            "episode": self._gather(ROWS, "episode", rows, places),
            "step": self._gather(ROWS, "step", rows, places),
        }

    def _gather(self, part: str, name: str, rows: Tensor, places: Mapping[int, Tensor]) -> Tensor:
        """Rows of one tensor, [B, ...]."""
        shards = self._shards[part]
        result = torch.empty((len(rows), *shards[0][name].shape[1:]), dtype=shards[0][name].dtype)
        for shard, where in places.items():
            result[where] = shards[shard][name][rows[where] - self._starts[shard]]
        return result


def caches_of(datamodule: Any) -> list[dict[str, Any]]:
    """What identifies the states that a training has read; nothing of one that reads none."""
    cache = getattr(datamodule, "cache", None)
    return cache.contents() if isinstance(cache, CacheReader) else []


def _map_shard(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        message = f"{path} cannot be read: {error}; remove it and complete the cache again"
        raise CacheError(stranger(path) or message) from error
