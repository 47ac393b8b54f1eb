"""What an offline run of Weights & Biases holds, read from its .wandb file as `wandb sync` reads it.

The file is LevelDB's log: a header of 7 bytes, then blocks of 32 KiB with chunks (crc, length, kind), of which one or
several make a record.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, CHUNK = 32768, 7, 7
LAST = (1, 4)  # kinds of a chunk that ends a record: the whole of one, or the last of several


def records(folder: Path, wait_s: float = 20.0) -> list[Any]:
    """Records of the only run below a folder; wandb's process may still be writing when the run has ended.

    Args:
        wait_s: For the record of the run's end.
    """
    until = time.monotonic() + wait_s
    while True:
        found = list(_records(folder))
        if any(record.HasField("exit") for record in found) or time.monotonic() >= until:
            return found
        time.sleep(0.05)


def _records(folder: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.rglob("run-*.wandb")
    content, at, begun = path.read_bytes(), HEADER, b""
    while at + CHUNK <= len(content):
        if BLOCK - at % BLOCK < CHUNK:  # padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        begun += content[at + CHUNK : at + CHUNK + length]
        at += CHUNK + length
        if kind in LAST:
            record = Record()
            record.ParseFromString(begun)
            yield record
            begun = b""


def artifacts(folder: Path) -> dict[str, list[tuple[str, bool]]]:
    """Name of each artifact → (its kind, whether the run reads it), for every time that it was given."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for record in records(folder):
        if record.HasField("artifact"):
            found.setdefault(record.artifact.name, []).append((record.artifact.type, record.artifact.use_after_commit))
    return found


def figures(folder: Path, wait_s: float = 20.0) -> set[str]:
    """Names of all figures in the run's history."""
    rows = [record.history for record in records(folder, wait_s) if record.HasField("history")]
    return {item.key or "/".join(item.nested_key) for row in rows for item in row.item}
