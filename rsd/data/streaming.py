"""Data sets that are too large for memory: an index on disk instead of arrays, and an order in which records stay near.

    <index_dir>/<name>-<key>/       the key is a hash of the records' checksums and of the layout
        index.json                  counts, instructions, statistics; written last, so it is whole or not there
        action.npy, proprio.npy, gripper.npy, words.npy, length.npy, picture-0.npy …   a row a step; memory-mapped
        part-0000000.npz …          of a pass that was broken off; the next one goes on behind them

The first use reads every record once, checksum included; every further one, of whatever run, opens the index. Pictures
are read when they are asked for. What surprises first: there is no buffer of pictures in any process. Rows are shuffled
within windows of whole episodes, which are drawn anew in each epoch, and what a window needs is `buffer_mb` of files,
which the operating system keeps in memory where it has room. So processes that load, and ranks, share it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from rsd.data import DataError
from rsd.data.datasets import Demonstrations, Trajectory
from rsd.data.shuffle import EpochShuffle
from rsd.files import WriteError, write_atomically
from rsd.processes import say
from rsd.progress import track
from rsd.record import read, write
from rsd.settings import Positive, Text, checked

FORMAT = 1  # of the folder; part of its key
INDEX_FILE, LOCK_FILE = "index.json", "lock"
PART_EPISODES = 256  # in a part: what a pass that is broken off loses at most
COLUMNS = ("action", "proprio", "gripper", "words", "length")
OTHERS = {"length", "gripper"}  # of each episode, and of each recorded step; the others are of each step that is kept
MEGABYTE = 1e6


@checked
@dataclass(frozen=True)
class Stream:
    """How a data set that is too large for memory is read: data.stream of conf/data/_rlds.yaml.

    Args:
        index_dir: Where indices are kept.
        buffer_mb: Encoded pictures among which rows are shuffled, MB; None reads the whole set at the start instead.
    """

    index_dir: Text
    buffer_mb: Positive | None = None


class _Index(TypedDict):
    """index.json."""

    num_steps: int
    num_idle: int
    texts: list[str]
    norm_stats: dict[str, Any]


class EpisodeWindows(EpochShuffle):
    """Rows in windows of consecutive episodes of a new order; shuffled within each window.

    Args:
        episode: Of each row; those of an episode stand together, [N].
        window: Rows in one.
        seed: Of both orders.
    """

    def __init__(self, episode: np.ndarray, window: int, seed: int) -> None:
        super().__init__(len(episode), seed)
        self.window = window
        self._first = np.flatnonzero(np.diff(episode, prepend=-1))  # [E]  row where an episode begins
        self._count = np.diff(self._first, append=len(episode))  # [E]

    def order(self) -> np.ndarray:
        """Rows in the order of the current epoch, [N], int64."""
        random = np.random.default_rng((self.seed, self.epoch))
        episodes = random.permutation(len(self._first))
        count = self._count[episodes]
        begins = np.cumsum(count) - count  # [E]  place in the order
        rows: np.ndarray = np.repeat(self._first[episodes] - begins, count) + np.arange(self.length)
        for start in range(0, self.length, self.window):
            random.shuffle(rows[start : start + self.window])
        return rows

    def share(self, rank: int, num_ranks: int) -> np.ndarray:
        """One piece of the order for each process, so that each reads files of its own."""
        size = self.length // num_ranks
        return self.order()[rank * size : (rank + 1) * size]


class StreamedDemonstrations(Demonstrations):
    """Demonstrations whose numbers are memory-mapped from an index.

    Attributes:
        frame_bytes: Encoded pictures of one step, on average.
    """

    def __init__(self, dataset_dir: Path | str, *args: Any, index_dir: Path | str, **options: Any) -> None:
        """Open a data set's index, made on the first use.

        Args:
            index_dir: Where indices are kept.
            args, options: Of Demonstrations.
        """
        self._index_dir = Path(index_dir)
        super().__init__(dataset_dir, *args, **options)

    def _read_all(self) -> None:
        folder = self._index_dir / f"{self.name}-{self._key()}"
        if not (folder / INDEX_FILE).is_file():
            with _alone_in(folder):
                if not (folder / INDEX_FILE).is_file():  # another process may have made it meanwhile
                    self._make(folder)
        remedy = f"remove {folder}, and the next run makes it again"
        index: _Index = read(folder / INDEX_FILE, _Index, error=DataError, remedy=remedy)
        names = [*COLUMNS, *(f"picture-{number}" for number in range(len(self._pictures())))]
        try:
            columns = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in names}
        except (OSError, ValueError) as error:
            raise DataError(f"the index {folder} is damaged ({error}); {remedy}") from error
        starts = np.concatenate([[0], np.cumsum(columns["length"])])  # [E + 1]
        wrong = [name for name in names if name not in OTHERS and len(columns[name]) != index["num_steps"]]
        if wrong or len(starts) != len(self.rlds) + 1 or starts[-1] != index["num_steps"]:
            raise DataError(f"the index {folder} is damaged ({', '.join(wrong) or 'length'}.npy is cut off); {remedy}")
        spans = {name: columns[f"picture-{number}"] for number, name in enumerate(self._pictures())}
        self.trajectories = _Trajectories(columns, starts, index["texts"])
        self._spans = _Spans(spans, starts)
        self.frame_bytes = sum(float(where[:, 1].mean()) for where in spans.values())
        self.num_idle = index["num_idle"]
        self._check([columns["gripper"]], index["num_steps"])
        self.norm_stats = index["norm_stats"]

    def window(self, buffer_mb: float) -> int:
        """Steps whose encoded pictures take so many MB."""
        return max(1, int(buffer_mb * MEGABYTE / max(self.frame_bytes, 1.0)))

    def _key(self) -> str:
        layout = dataclasses.replace(self.layout, statistics=None)  # says where, and not what
        parts = [FORMAT, self.rlds.content_id(), repr(layout), repr(self.places)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def _make(self, folder: Path) -> None:
        """Read all records, part by part, and write the index."""
        starts = range(0, len(self.rlds), PART_EPISODES)
        parts = [(folder / f"part-{start:07d}.npz", start) for start in starts]
        say(f"indexing {self.rlds.directory} once, in {folder}")
        done = PART_EPISODES * sum(path.exists() for path, _ in parts)
        with track("episodes read", total=len(self.rlds), done=min(done, len(self.rlds)), report=say) as advance:
            for path, start in parts:
                if not path.exists():
                    stop = min(start + PART_EPISODES, len(self.rlds))
                    self._write_part(path, range(start, stop))
                    advance(stop - start)
        self._merge(folder, [path for path, _ in parts])

    def _write_part(self, path: Path, episodes: range) -> None:
        self.num_idle = 0
        found = [self._read(index) for index in episodes]
        texts = sorted({text for one, _, _ in found for text in one.instructions})
        number = {text: row for row, text in enumerate(texts)}
        said = [[number[text] for text in one.instructions] or [-1] * len(one.actions) for one, _, _ in found]
        columns = {
            "action": np.concatenate([one.actions for one, _, _ in found]),
            "proprio": np.concatenate([one.proprio for one, _, _ in found]),
            "gripper": np.concatenate([gripper for _, _, gripper in found]),
            "words": np.concatenate([np.array(one, dtype=np.int32) for one in said]),
            "length": np.array([len(one.actions) for one, _, _ in found]),
            "idle": np.array(self.num_idle),
            "texts": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
        }
        for row, name in enumerate(self._pictures()):
            columns[f"picture-{row}"] = np.concatenate([spans[name] for _, spans, _ in found])
        buffer = io.BytesIO()
        np.savez(buffer, **cast("dict[str, Any]", columns))
        write_atomically(path, buffer.getvalue())

    def _merge(self, folder: Path, paths: Sequence[Path]) -> None:
        """One file a column out of all parts, and what is known of the whole."""
        texts: dict[str, int] = {}
        files: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {}
        num_idle = 0
        for path in paths:
            with np.load(path) as part:
                num_idle += int(part["idle"])
                for name in set(part.files) - {"texts", "idle"}:
                    sizes[name] = sizes.get(name, 0) + len(part[name])
        done = dict.fromkeys(sizes, 0)
        for path in paths:
            with np.load(path) as part:
                own = json.loads(part["texts"].tobytes())
                numbers = np.array([texts.setdefault(text, len(texts)) for text in own] or [-1], dtype=np.int32)
                values = {name: part[name] for name in sizes}
            values["words"] = np.where(values["words"] < 0, -1, numbers[values["words"]])
            for name, column in values.items():
                if name not in files:
                    shape, place = (sizes[name], *column.shape[1:]), folder / f"{name}.npy"
                    files[name] = np.lib.format.open_memmap(place, mode="w+", dtype=column.dtype, shape=shape)
                files[name][done[name] : done[name] + len(column)] = column
                done[name] += len(column)
        self._check([files["gripper"]], sizes["action"])
        for column in files.values():
            column.flush()  # type: ignore[attr-defined]  # a memory map
        index: _Index = {
            "num_steps": sizes["action"],
            "num_idle": num_idle,
            "texts": list(texts),
            "norm_stats": self._computed([files["action"]], [files["proprio"]]) | {"num_trajectories": len(self.rlds)},
        }
        write(folder / INDEX_FILE, index)
        for path in paths:
            path.unlink()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder; processes that train together wait here for the one that makes the index."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise WriteError(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class _Trajectories(Sequence[Trajectory]):
    """Trajectories that are made when they are asked for."""

    def __init__(self, columns: dict[str, np.ndarray], starts: np.ndarray, texts: Sequence[str]) -> None:
        self._columns, self._starts, self._texts = columns, starts, texts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        rows = slice(int(self._starts[index]), int(self._starts[index + 1]))
        words = self._columns["words"][rows].tolist()
        said = () if words and words[0] < 0 else tuple(self._texts[word] for word in words)
        return Trajectory(self._columns["action"][rows], self._columns["proprio"][rows], said)


class _Spans(Sequence[dict[str, np.ndarray]]):
    """Where the pictures of an episode lie, by feature."""

    def __init__(self, spans: dict[str, np.ndarray], starts: np.ndarray) -> None:
        self._spans, self._starts = spans, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        rows = slice(int(self._starts[index]), int(self._starts[index + 1]))
        return {name: where[rows] for name, where in self._spans.items()}
