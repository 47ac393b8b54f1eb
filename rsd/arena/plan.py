"""plan.json: what a folder of the arena was measured with; whoever goes on in it measures with the same."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rsd.arena import ArenaError
from rsd.differences import differences, told
from rsd.record import read_json, write

PACKAGES = ("torch", "tokenizers", "vector-quantize-pytorch")


def keep_plan(out: Path, settings: Mapping[str, Any], data: Mapping[str, str]) -> dict[str, Any]:
    """What the folder was measured with, written at the first start; all others are held to it.

    Args:
        settings: Name → value of each option that the figures depend on.
        data: Suite → what its data set holds; further suites may join.

    Raises:
        ArenaError: what lies there was measured otherwise.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    stored = read_json(out / "plan.json")
    known: dict[str, Any] = {} if stored is None else {key: value for key, value in stored.items() if key != "checksum"}
    every = known.get("data", {}) | data
    plan = {**settings, "versions": versions, "data": every}
    if known and (different := differences(known | {"data": {**every, **known["data"]}}, plan)):
        raise ArenaError(f"{out} holds what was measured otherwise: {told(different)}; choose another --out")
    write(out / "plan.json", plan)
    return plan
