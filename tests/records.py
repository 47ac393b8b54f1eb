"""Edits of records on disk, by somebody who knows of the checksum: what is tested is what the record then says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsd.record import CHECKSUM, sealed


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record in its file; it gets a new checksum where it had one."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(sealed(record) if CHECKSUM in record else record))
