"""Fixtures for every room."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The reference's arrays; RSD_GOLDEN names another set with the same files, other sizes and other seeds."""
    return Path(os.environ.get("RSD_GOLDEN", Path(__file__).parent / "golden"))
