"""All runs below a folder: what each one was, how far it came, what it read and what it made. Shown by scripts/runs.py.

A run is a folder with provenance.json. Nothing is stored beside the runs: the list is read from them each time, so it
cannot be out of date. What surprises first: lineage goes by content. A run that read a checkpoint of these digits is a
child of the run that made it, wherever either lies now and whatever its link points to since.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from rsd.checkpoint import JSON_FILE, content_sha256
from rsd.errors import RSDError, SettingError
from rsd.inputs import INPUTS_FILE, SHOWN
from rsd.locks import LOCK_FILE, is_held_elsewhere
from rsd.record import conform, read
from rsd.runs import (
    CONFIG_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    is_job_of_sweep,
    pipeline_of,
    read_overrides,
    read_provenance,
    read_yaml,
)

EVALUATION = "eval"
FINISHED, RUNNING, UNFINISHED, DAMAGED = "finished", "running", "unfinished", "damaged"
STATUSES = (FINISHED, RUNNING, UNFINISHED, DAMAGED)
REPORTS = ("report.html", "index.html")
OWN_KEYS = ("kind", "status")  # of `where`, beside the keys of the configuration
FIGURES = 3  # of a training's shown metrics


class _Reads(TypedDict):
    """What is read of a part in inputs.json."""

    path: str
    digest: str | None


@dataclass(frozen=True)
class RunRow:
    """A run.

    Attributes:
        folder: Where it is.
        kind: The phase's name, or "eval".
        status: One of STATUSES; "damaged" has an `error`.
        started: UTC, ISO; empty where nobody wrote it down.
        overrides: What was typed.
        config: As resolved, {} of a damaged run.
        metrics: Flat figures of a finished run.
        reads: Part to (path, digest).
        makes: Digests of its checkpoints, and the folder of each.
        size: Bytes on disk.
    """

    folder: Path
    kind: str
    status: str
    started: str = ""
    overrides: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reads: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    makes: Mapping[str, Path] = field(default_factory=dict)
    size: int = 0
    error: str | None = None

    @property
    def report(self) -> Path | None:
        """Its page, if it has one."""
        return next((self.folder / name for name in REPORTS if (self.folder / name).is_file()), None)

    @property
    def figures(self) -> str:
        """Its key numbers in words: success with its 95 % interval, or what its phase prints at the end."""
        if "success_rate" in self.metrics:
            parts = [self.metrics[f"success{name}"] for name in ("_rate", "_low", "_high")]
            rate, low, high = (f"{100 * part:.1f}" for part in parts)
            solved, total = (round(self.metrics[name]) for name in ("num_success", "num_episodes"))
            return f"{rate} % ({low}–{high}), {solved}/{total}"
        shown = value_at(self.config, "phase.shown") or ()
        found = {name: self._metric(name) for name in shown}
        return ", ".join(f"{name} {value:.4g}" for name, value in [*found.items()][:FIGURES] if value is not None)

    def _metric(self, name: str) -> float | None:
        """One of its figures; of one that it has a stage, the last stage's."""
        staged = [key for key in self.metrics if key.rpartition("/")[0] == name and key.rpartition("/")[2].isdigit()]
        return next((self.metrics[key] for key in (f"val/{name}", name, *staged[-1:]) if key in self.metrics), None)


def run_folders(root: Path) -> list[Path]:
    """Folders of runs below a root, jobs of sweeps included; none inside of another."""
    return sorted(path.parent for path in root.rglob(PROVENANCE_FILE))


def read_runs(folders: Iterable[Path]) -> Iterator[RunRow]:
    """Rows of the folders, in their order; what cannot be read becomes a damaged row."""
    for folder in folders:
        try:
            yield _read_run(folder)
        except RSDError as error:
            yield RunRow(folder, "?", DAMAGED, size=_size(folder), error=str(error))


def _read_run(folder: Path) -> RunRow:
    config = read_yaml(folder / CONFIG_FILE)
    starts = (read_provenance(folder / PROVENANCE_FILE) or {"starts": []})["starts"]
    held = (folder / LOCK_FILE).is_file() and is_held_elsewhere(folder)
    metrics: dict[str, float] = {}
    if (folder / METRICS_FILE).is_file():
        metrics = _read(folder / METRICS_FILE, dict[str, float])
    reads: dict[str, _Reads] = {}
    if (folder / INPUTS_FILE).is_file():
        reads = _read(folder / INPUTS_FILE, dict[str, _Reads])
    return RunRow(
        folder,
        kind=str(value_at(config, "phase.name") or EVALUATION),
        status=RUNNING if held else FINISHED if metrics else UNFINISHED,
        started=starts[0].get("time", "") if starts else "",
        overrides=tuple(read_overrides(folder)),
        config=config,
        metrics=metrics,
        reads={part: (one["path"], one["digest"]) for part, one in reads.items()},
        makes={content_sha256(path.parent): path.parent for path in sorted(folder.rglob(JSON_FILE))},
        size=_size(folder),
    )


def _read(path: Path, kind: Any) -> Any:
    found = read(path, dict[str, Any], error=SettingError, remedy="restore it as it was written")
    return conform({name: value for name, value in found.items() if name != "checksum"}, kind, str(path))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None  # type: ignore[assignment]
    return config


def matching(rows: Sequence[RunRow], where: Mapping[str, str], content: str | None = None) -> list[RunRow]:
    """Rows that have these values, and that read or made what these hex digits begin.

    Args:
        where: "kind", "status" or a key of the configuration, to the value as it is printed.
        content: First digits of a digest.

    Raises:
        SettingError: a key is in no run's configuration.
    """
    for key in where:
        if key not in OWN_KEYS and rows and all(value_at(row.config, key) is None for row in rows):
            raise SettingError(f"no run has a value at {key!r}; expected kind, status, or a key such as data.name")
    return [
        row
        for row in rows
        if all(
            str(getattr(row, key) if key in OWN_KEYS else value_at(row.config, key)) == v for key, v in where.items()
        )
        and (content is None or any(digest.startswith(content) for digest in _digests(row)))
    ]


def _digests(row: RunRow) -> list[str]:
    return [*row.makes, *(digest for _, digest in row.reads.values() if digest is not None)]


def parents(row: RunRow, rows: Sequence[RunRow]) -> dict[str, RunRow]:
    """Part that the run read to the run that made it, the latest where several made the same."""
    makers = {digest: other for other in sorted(rows, key=lambda one: one.started) for digest in other.makes}
    return {part: makers[digest] for part, (_, digest) in row.reads.items() if digest in makers}


def told_reads(row: RunRow, rows: Sequence[RunRow]) -> list[str]:
    """What the run read, a line a part: the run that made it, or its path; and the first digits of its content."""
    made = parents(row, rows)
    return [
        f"{part}: {made[part].folder if part in made else path} ({digest[:SHOWN] if digest else 'not there'})"
        for part, (path, digest) in row.reads.items()
    ]


def removable(rows: Sequence[RunRow], checkpoints: Path, older_than_s: float) -> list[RunRow]:
    """Runs that nobody will miss: unfinished, quiet for long, of no sweep or pipeline, and nothing they made is used.

    Args:
        checkpoints: Folder of the links that other commands follow; what a link leads to stays.
        older_than_s: Seconds since anything in the run's folder was written.
    """
    used = {path.resolve() for path in checkpoints.rglob("*") if path.is_symlink()} if checkpoints.is_dir() else set()
    read_by_others = {digest for row in rows for _, digest in row.reads.values()}
    found = []
    for row in rows:
        written = max((path.lstat().st_mtime for path in row.folder.rglob("*")), default=time.time())
        if (
            row.status == UNFINISHED
            and not is_job_of_sweep(row.folder)
            and pipeline_of(row.folder) is None
            and time.time() - written > older_than_s
            and not any(link.is_relative_to(row.folder.resolve()) for link in used)
            and not read_by_others & set(row.makes)
        ):
            found.append(row)
    return found


def remove(rows: Sequence[RunRow]) -> None:
    """Remove the folders of runs."""
    for row in rows:
        shutil.rmtree(row.folder)
