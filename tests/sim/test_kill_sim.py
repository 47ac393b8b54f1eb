"""eval.py on LIBERO with the released policy and two simulator processes, killed at random moments and continued."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["experiment=released", "env=libero_spatial", "tasks=[4,9]", "num_trials=2", "num_workers=2"]
KILLS = 3

pytestmark = pytest.mark.sim


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "eval.py", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)


def lines(run_dir: Path) -> list[dict]:
    path = run_dir / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_kill_minus_nine_then_resume_gives_the_episodes_of_an_undisturbed_run(tmp_path):
    chance = random.Random(0)
    killed = tmp_path / "killed"
    for _ in range(KILLS):
        begun = (killed / "config.yaml").is_file()
        process = start(f"resume={killed}") if begun else start(*ARGUMENTS, f"hydra.run.dir={killed}")
        deadline = time.monotonic() + 120
        while not (killed / "config.yaml").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(chance.uniform(5, 25))  # while workers start, scenes compile, episodes run
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(f"resume={killed}").wait() == 0
    whole = tmp_path / "whole"
    assert start(*ARGUMENTS, f"hydra.run.dir={whole}").wait() == 0
    facts = ("task_id", "init_state_id", "seed", "success", "num_steps", "error", "stats", "protocol", "versions")
    first, second = (
        sorted([one[name] for name in facts] for one in map(dict, lines(folder))) for folder in (killed, whole)
    )
    assert len(second) == 4 and first == second
    assert json.loads((killed / "report.json").read_text())["complete"]
