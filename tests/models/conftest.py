"""Fixtures of the models' tests."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def published(golden_dir, tmp_path) -> Path:
    """A copy of the golden checkpoint, free to be damaged."""
    return Path(shutil.copytree(golden_dir / "ckpt_tiny", tmp_path / "ckpt"))
