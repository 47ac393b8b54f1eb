"""The tutorial, executed: its files written and its commands run in a copy of the checkout, in the page's order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial_insulator.md"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.M | re.S)  # language, file, content
SAYS = {  # what a command's output must hold
    "scripts/inspect_data.py": ["episodes    12", "8 dims", "480×640", "2 instructions"],
    "phase=rfsq": ["rfsq_d8-insulator-t8", "gripper_errors"],
    "phase=oft": ["oft_tiny-insulator-t8", "gripper_majority"],
    "env=replay": ["verdict: training said l1", "on the same held-out episodes: equal"],
    "scripts/diagnose.py": [
        "Do not run it on a robot: it does not predict the demonstrations",
        "diagnosis.html",
        "exit code 1",
    ],
}


def blocks() -> list[tuple[str, str, str]]:
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def test_every_block_is_a_file_or_a_command_of_which_something_is_asked():
    assert {language for language, file, _ in blocks() if not file} == {"bash"}
    commands = "".join(content for _, file, content in blocks() if not file)
    assert [asked for asked in SAYS if asked not in commands] == []


def test_the_data_set_is_written_in_thirty_lines():
    (script,) = [content for _, file, content in blocks() if file == "write_insulator.py"]
    body = script[script.index("features = ") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 40


@pytest.mark.slow
def test_from_files_to_a_verdict(tmp_path: Path):
    for name in ("rsd", "conf", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, tmp_path)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    for _, file, content in blocks():
        if file:
            (tmp_path / file).write_text(content, encoding="utf-8")
            continue
        for command in content.replace("\\\n", "").splitlines():
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            for asked, said in SAYS.items():
                if asked in command:
                    missing = [words for words in said if words not in done.stdout + done.stderr]
                    assert not missing, f"{command}: no {missing} in\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
