"""Fixtures for every room."""

from pathlib import Path

import pytest

from tests.golden_files import GOLDEN


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The reference's arrays; RSD_GOLDEN names another set with the same files, other sizes and other seeds."""
    return GOLDEN
