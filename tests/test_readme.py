"""The README's Python example runs as it stands, from the root of the repository."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def python_blocks(path: Path) -> list[str]:
    return PYTHON_BLOCK.findall(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_example_prints_an_action_and_the_work():
    (example,) = python_blocks(ROOT / "README.md")
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    action, work = re.fullmatch(r"\[([^\]]*)\] (\{.*\})\n", done.stdout, re.S).groups()
    numbers = [float(word) for word in action.split()]
    assert len(numbers) == 7 and numbers[-1] in (-1.0, 1.0)
    counted = {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", work)}
    assert counted["num_chunks"] == counted["vision_calls"] == 1
    assert counted["pictures_prepared"] == counted["draft_passes"] == 2
    assert counted["base_layers"] == (3 if counted["early_exits"] else 6)


def test_the_example_is_short():
    (example,) = python_blocks(ROOT / "README.md")
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 10
