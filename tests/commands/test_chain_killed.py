"""A pipeline of real commands on made-up demonstrations: killed in a training, given again, and with a change."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.demonstrations import NAME, write_dataset

ROOT = Path(__file__).parents[2]
SMALL = ("model.image_size=28", "model.architecture.llm.hidden_size=32", "model.architecture.llm.intermediate_size=48")
STEPS = """
overrides: [quantizer=dct_d3, save_every=5]
steps:
  tokenizer: {command: train.py, arguments: [phase=rfsq]}
  base: {command: train.py, arguments: [phase=oft, phase.datamodule.batch_size=4, phase.max_steps=40]}
  draft: {command: train.py, arguments: [phase=draft, phase.max_steps=3], reads: [tokenizer, base]}
"""
COMMAND = """
import sys
from pathlib import Path
from rsd.commands.chain import run_pipeline
run_pipeline(Path(sys.argv[1]), sys.argv[2:])
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path) -> Path:
    write_dataset(tmp_path / "data", [13, 12, 14, 11])
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for path in (ROOT / "conf").iterdir():
        if path.name != "experiment":
            (tmp_path / "conf" / path.name).symlink_to(path)
    (tmp_path / "conf" / "experiment" / "small.yaml").write_text(STEPS)
    return tmp_path


def start(root: Path, *typed: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, str(root / "conf" / "train.yaml"), "experiment=small", *SMALL, *typed]
    command += [f"paths.root={root}", f"data.name={NAME}", f"data.unnorm_key={NAME}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def starts(folder: Path) -> dict[str, list[int]]:
    """Step to how often each of its runs was started."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*/*/provenance.json")):
        found.setdefault(path.parents[1].name, []).append(len(json.loads(path.read_text())["starts"]))
    return found


def test_a_killed_pipeline_goes_on_and_makes_again_only_what_hangs_on_a_change(root):
    folder = root / "runs" / "pipeline" / "small"
    first = start(root)
    while not list(folder.glob("base/*/resume/last.ckpt")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = start(root)
    printed, _ = again.communicate()
    assert again.returncode == 0, printed
    assert "step 'tokenizer': done already" in printed
    assert starts(folder) == {"tokenizer": [1], "base": [2], "draft": [1]}
    other = start(root, "draft.width=64")
    printed, _ = other.communicate()
    assert other.returncode == 0, printed
    assert starts(folder) == {"tokenizer": [1], "base": [2], "draft": [1, 1]}
    with (folder / "pipeline.csv").open() as file:
        rows = {row["step"]: row for row in csv.DictReader(file)}
    assert [row["status"] for row in rows.values()] == ["done"] * 3
    assert "tokenizer of tokenizer" in rows["draft"]["reads"] and "base of base" in rows["draft"]["reads"]
