"""train.py -m as a user runs it: started twice at once, killed, and given again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.parabola import sweeps, table
from tests.data.demonstrations import NAME, write_dataset

ROOT = Path(__file__).parents[2]
SMALL = ("model.image_size=28", "model.architecture.llm.hidden_size=32", "model.architecture.llm.intermediate_size=48")
LIMIT_S = 300

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path) -> Path:
    write_dataset(tmp_path / "data", [13, 12, 14, 11])
    return tmp_path


def start(root: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", "-m", f"paths.root={root}", f"data.name={NAME}", f"data.unnorm_key={NAME}"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *overrides], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def wait_for(root: Path, pattern: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not list(root.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern}"
        time.sleep(0.05)


def starts(folder: Path) -> list[int]:
    jobs = sorted(folder.glob("*/provenance.json"))
    return [len(json.loads(path.read_text())["starts"]) for path in jobs]


def test_a_killed_sweep_goes_on_with_the_same_command_and_has_no_twin(root):
    command = ("phase=oft", *SMALL, "phase.datamodule.batch_size=4", "phase.max_steps=2,60", "save_every=5")
    both = [start(root, *command) for _ in range(2)]
    wait_for(root, "runs/sweep/*/1/resume/last.ckpt")
    end = time.monotonic() + LIMIT_S
    while all(process.poll() is None for process in both):  # the other one may come late
        assert time.monotonic() < end, "neither was refused"
        time.sleep(0.05)
    (refused,) = [process for process in both if process.poll() is not None]
    (working,) = [process for process in both if process is not refused]
    working.send_signal(signal.SIGKILL)
    working.communicate()
    (folder,) = sweeps(root / "runs" / "sweep")
    assert refused.returncode == 1 and f"error: the same sweep is at work in {folder}" in refused.communicate()[1]
    again = start(root, *command)
    assert (again.communicate()[1], again.returncode)[1] == 0
    assert sweeps(root / "runs" / "sweep") == [folder]
    assert [row["status"] for row in table(folder)] == ["done", "done"] and starts(folder) == [1, 2]


def test_a_killed_search_goes_on_with_the_same_command(root):
    optuna = pytest.importorskip("optuna", minversion="4")
    command = ("experiment=search_tokenizer", "phase=rfsq", "hydra.sweeper.n_trials=3")
    first = start(root, *command)
    wait_for(root, "runs/sweep/*/1/config.yaml")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = start(root, *command)
    stderr = again.communicate()[1]
    assert again.returncode == 0, stderr
    (folder,) = sweeps(root / "runs" / "sweep")
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/optuna.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert [row["status"] for row in table(folder)] == ["done"] * 3 and starts(folder) == [1, 2, 1]
    assert (folder / "sweep.html").read_text().count('class="front"') == 1
