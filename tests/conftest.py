"""Fixtures for every room."""

import signal
import sys
from pathlib import Path

import absl.logging
import pytest

from tests.composing import compose_quickly
from tests.golden_files import GOLDEN

compose_quickly()

# A shell starts background jobs with Ctrl-C ignored, and their children inherit that; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# absl, which tensorflow-datasets brings, closes the stream its handler was made with whenever logging is configured
# anew, as Hydra does. Made under pytest, that stream is pytest's own capture file; the real stderr is never closed.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The reference's arrays; RSD_GOLDEN names another set with the same files, other sizes and other seeds."""
    return GOLDEN
