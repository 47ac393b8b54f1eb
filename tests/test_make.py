"""What the Makefile says to all that it starts."""

import os
import subprocess
from pathlib import Path


def test_bytecode_is_kept_whatever_the_image_says():
    """Without it, a command that imports Lightning takes twice as long, and the tests start hundreds of processes."""
    command = ["make", "-s", "--eval", 'said: ; @echo "[$$PYTHONDONTWRITEBYTECODE]"', "said"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    root = Path(__file__).parents[1]
    assert subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True).stdout == "[]\n"
