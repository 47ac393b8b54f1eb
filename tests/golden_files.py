"""Which golden arrays there are. RSD_GOLDEN names another directory; each one is tested on what it holds, whole."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(os.environ.get("RSD_GOLDEN", Path(__file__).parent / "golden"))
BASE_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def names(pattern: str) -> list[str]:
    """Names of the arrays that match, without the suffix."""
    return sorted(path.stem for path in GOLDEN.glob(f"{pattern}.npz"))


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def compose_checkpoint(directory: Path, sources: dict[str, Path]) -> Path:
    """A checkpoint folder of links: the base model of ckpt_tiny, and from each source the files that begin so."""
    directory.mkdir()
    for name in BASE_FILES:
        (directory / name).symlink_to(GOLDEN / "ckpt_tiny" / name)
    for beginning, source in sources.items():
        for path in sorted((GOLDEN / source).glob(f"{beginning}*")):
            (directory / path.name).symlink_to(path)
    return directory


def golden_tests(fixture: str, pattern: str, check: Callable[[Any, str], None]) -> dict[str, Callable]:
    """A test test_golden_<array> for each array that matches; it calls check(the fixture's value, name)."""

    def make(name: str) -> Callable:
        def test(request: Any) -> None:
            check(request.getfixturevalue(fixture), name)

        return test

    return {f"test_golden_{name}": make(name) for name in names(pattern)}
