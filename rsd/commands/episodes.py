"""Episodes of many evaluations as one table, a row an episode, for dataframes: scripts/runs.py --episodes FILE.

    pandas.read_csv("outputs/runs/episodes.csv")    # or read_parquet("….parquet")

Columns that a run did not record are empty. What surprises first: counters are sums over an episode, and milliseconds
are the policy's for it, of a machine that others kept busy where the run had several workers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rsd.commands.run_index import RunRow, value_at
from rsd.errors import SettingError
from rsd.evaluation.results import RESULTS_FILE, read_episodes
from rsd.files import write_atomically
from rsd.types import EpisodeResult

OF_RUN = {"model": "model.name", "decoding": "decoding.name", "target": "target.name", "draft": "draft.name"}
OF_EPISODE = (
    "suite",
    "task_id",
    "instruction",
    "init_state_id",
    "seed",
    "success",
    "error",
    "num_steps",
    "num_still",
    "jerk",
    "model_ms",
    "wall_s",
    "protocol",
    "video",
    "trace",
)
SUFFIXES = (".csv", ".parquet")


def episode_table(rows: Iterable[RunRow], root: Path) -> dict[str, list[Any]]:
    """Column to its values, a row an episode, of all runs that have episodes.

    Args:
        root: Runs are named by their folder below it.

    Raises:
        ResultsError: a line of a run is damaged.
    """
    records = []
    for row in rows:
        path = row.folder / RESULTS_FILE
        if path.is_file():
            own = {"run": row.folder.relative_to(root).as_posix(), "policy": value_at(row.config, "policy")}
            own |= {name: value_at(row.config, key) for name, key in OF_RUN.items()}
            records += [own | _record(result) for result in read_episodes(path)]
    columns = list(dict.fromkeys(name for record in records for name in record))
    return {name: [record.get(name) for record in records] for name in columns}


def _record(result: EpisodeResult) -> dict[str, Any]:
    """An episode in plain values; lists of counters are left out."""
    counters = {name: value for name, value in sorted(result.stats.items()) if not isinstance(value, list)}
    seen = {f"seen_{name}": digest for name, digest in result.seen.items()}
    versions = {f"version_{name}": version for name, version in result.versions.items()}
    return {name: getattr(result, name) for name in OF_EPISODE} | counters | versions | seen


def write_table(path: Path, table: dict[str, list[Any]]) -> None:
    """Write a table as .csv or .parquet.

    Raises:
        SettingError: the file's name ends otherwise, or pyarrow is missing.
        WriteError: the file cannot be written.
    """
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
        write_atomically(path, text.getvalue())
    elif path.suffix == ".parquet":
        write_atomically(path, _parquet(table))
    else:
        raise SettingError(f"--episodes is {str(path)!r}, expected a name that ends in {' or '.join(SUFFIXES)}")


def _parquet(table: dict[str, list[Any]]) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SettingError(
            f"writing parquet needs pyarrow ({error}); install it with: pip install -e '.[convert]', or name a .csv"
        ) from error
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(table), sink)
    return sink.getvalue().to_pybytes()
