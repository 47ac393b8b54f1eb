"""The tables of a LeRobot data set: which rows and seconds an episode is, its numbers, its instructions.

What surprises first: an episode is looked for in its file by episode_index, never by row numbers: those count over all
files, and sets that were edited have gaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rsd.data import DataError
from rsd.data.conversion import INSTALL
from rsd.files import stranger

if TYPE_CHECKING:
    import pyarrow as pa

TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes"
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{FILE}.parquet", f"videos/{{video_key}}/{FILE}.mp4"  # unless info.json says others
AGAIN = "fetch the data set again"


class Clip(NamedTuple):
    """Where the pictures of an episode are: in a file from a time on, seconds."""

    path: Path
    start: float


class Rows:
    """What the data files have of one episode, in the order of its steps."""

    def __init__(self, table: pa.Table, path: Path, index: int, root: Path) -> None:
        self.path, self.num_steps = path, len(table)
        self._table, self._index, self._root = table, index, root

    def where(self, key: str, step: int | None = None) -> str:
        """File, episode and feature, for messages."""
        at = "" if step is None else f", step {step}"
        return f"{self.path}: episode {self._index}{at}, feature {key}"

    def numbers(self, key: str, shape: Sequence[int]) -> np.ndarray:
        """[n, *shape]."""
        array = self._column(key)
        while hasattr(array, "storage"):  # of Array2D and the like
            array = array.storage
        while array.type.num_fields and hasattr(array, "flatten"):  # lists, of a fixed length or not
            array = array.flatten()
        values = np.asarray(array.to_numpy(zero_copy_only=False))
        if array.null_count or values.size != self.num_steps * int(np.prod(shape)) or values.dtype.kind not in "fiub":
            got = f"{array.null_count} missing ones" if array.null_count else f"{values.size} of {values.dtype}"
            raise DataError(
                f"{self.where(key)}: expected {[self.num_steps, *shape]} numbers, got {got}; see features in "
                f"meta/info.json, or {AGAIN}"
            )
        return values.reshape(self.num_steps, *shape)

    def texts(self, key: str) -> list[str]:
        """n texts."""
        texts = self._column(key).to_pylist()
        texts = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in texts]
        if not all(isinstance(one, str) for one in texts):
            raise DataError(
                f"{self.where(key)}: expected texts, got {next(t for t in texts if not isinstance(t, str))!r}"
            )
        return texts

    def images(self, key: str) -> Iterator[bytes]:
        """n encoded pictures, from the table or from files that it names."""
        for step, stored in enumerate(self._column(key).to_pylist()):
            data = stored.get("bytes") if isinstance(stored, dict) else stored
            if data is None and isinstance(stored, dict) and stored.get("path"):
                path = self._root / stored["path"]
                if not path.is_file():
                    raise DataError(f"{self.where(key, step)}: no file {path}; {AGAIN}")
                data = path.read_bytes()
            if not isinstance(data, bytes):
                raise DataError(f"{self.where(key, step)}: expected an encoded picture, got {data!r}; {AGAIN}")
            yield data

    def _column(self, key: str) -> Any:
        if key not in self._table.column_names:
            raise DataError(f"{self.where(key)}: no such column; there are {self._table.column_names}; {AGAIN}")
        return self._table.column(key).combine_chunks()


class Tables:
    """Episodes, tasks and rows of a data set.

    Args:
        root: Its folder.
        data_path, video_path: Of info.json.

    Attributes:
        episodes: Numbers of the episodes, ascending.

    Raises:
        DataError: a table is missing, damaged, or lacks a column.
    """

    def __init__(self, root: Path, data_path: str | None, video_path: str | None) -> None:
        self._root, self._paths = root, (data_path or DATA_PATH, video_path or VIDEO_PATH)
        self._tasks = self._read_tasks()
        self._places = self._read_episodes()
        self.episodes = sorted(self._places)
        self._open: tuple[Path, Any] | None = None

    def rows(self, index: int) -> Rows:
        """The rows of an episode.

        Raises:
            DataError: there are others than meta/episodes counts.
        """
        import pyarrow.compute as pc

        place = self._places[index]
        path = self._root / _formatted(self._paths[0], place, "data", self._root)
        if self._open is None or self._open[0] != path:
            self._open = None  # before the next one is read: files have a hundred megabytes
            self._open = (path, _table(path))
        table = self._open[1]
        for column in ("episode_index", "frame_index", "task_index"):
            if column not in table.column_names:
                raise DataError(f"{path}: no column {column}; there are {table.column_names}; {AGAIN}")
        rows = table.filter(pc.equal(table["episode_index"], index)).sort_by("frame_index")
        if len(rows) != place["length"] or rows["frame_index"].to_pylist() != list(range(len(rows))):
            raise DataError(
                f"{path}: episode {index}: meta/episodes counts {place['length']} steps, expected frame_index from 0 "
                f"to {place['length'] - 1}, got {len(rows)} rows; {AGAIN}"
            )
        return Rows(rows, path, index, self._root)

    def instructions(self, rows: Rows, index: int) -> list[str]:
        """The task of every step in words."""
        numbers = rows.numbers("task_index", (1,))[:, 0].tolist()
        if missing := sorted(set(numbers) - set(self._tasks)):
            raise DataError(f"{rows.where('task_index')}: task {missing[0]} is not in {self._root / TASKS}; {AGAIN}")
        return [self._tasks[number] for number in numbers]

    def clip(self, index: int, key: str) -> Clip:
        """Where an episode's pictures of a camera are."""
        place, prefix = self._places[index], f"videos/{key}"
        start = place.get(f"{prefix}/from_timestamp")
        if start is None:
            raise DataError(f"{self._root / EPISODES}: episode {index} has no {prefix}/from_timestamp; {AGAIN}")
        path = self._root / _formatted(self._paths[1], place, prefix, self._root, video_key=key)
        if not path.is_file():
            raise DataError(f"{path}: no such file, with episode {index}, feature {key}; {AGAIN}")
        return Clip(path, float(start))

    def _read_tasks(self) -> dict[int, str]:
        path = self._root / TASKS
        table = _table(path)
        texts = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
        if texts is None or "task_index" not in table.column_names:
            raise DataError(f"{path}: expected columns task_index and task, got {table.column_names}; {AGAIN}")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[texts].to_pylist()), strict=True))

    def _read_episodes(self) -> dict[int, dict[str, Any]]:
        paths = sorted((self._root / EPISODES).glob("*/*.parquet"))
        if not paths:
            raise DataError(f"{self._root / EPISODES} holds no chunk-000/file-000.parquet; {AGAIN}")
        places: dict[int, dict[str, Any]] = {}
        for path in paths:
            table = _table(path, lambda name: not name.startswith("stats/"))
            for name in ("episode_index", "length", "data/chunk_index", "data/file_index"):
                if name not in table.column_names:
                    raise DataError(f"{path}: no column {name}; there are {table.column_names}; {AGAIN}")
            for place in table.to_pylist():
                if place["episode_index"] in places:
                    raise DataError(f"{path}: episode {place['episode_index']} is there twice; remove the older file")
                places[place["episode_index"]] = place
        return places


def _formatted(pattern: str, place: dict[str, Any], prefix: str, root: Path, **more: str) -> str:
    """A path of info.json with an episode's numbers."""
    try:
        chunk, file = place[f"{prefix}/chunk_index"], place[f"{prefix}/file_index"]
        path = pattern.format(chunk_index=chunk, file_index=file, **more)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f"{root}: {pattern!r} has no place for episode {place['episode_index']}: {error}") from error
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise DataError(f"{root / 'meta/info.json'}: path {path!r} leads out of the data set; expected one inside")
    return path


def _table(path: Path, wanted: Any = None) -> pa.Table:
    """A parquet file, or those columns of it whose name is `wanted`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"reading LeRobot data sets needs pyarrow ({error}); install it with: {INSTALL}") from error
    if not path.is_file():
        raise DataError(f"{path}: no such file; {AGAIN}")
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if wanted is None or wanted(name)]
            return file.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(stranger(path) or f"{path} is no parquet file, or a damaged one: {line}; {AGAIN}") from error
