"""The reference of commands has every program of the checkout, and what each of them says of itself."""

import re
from pathlib import Path

import pytest

from rsd.commands.programs import page, programs

ROOT = Path(__file__).parents[2]


def test_programs_are_the_files_that_can_be_started():
    calls = programs(ROOT)
    assert {path for path in ROOT.glob("scripts/*.py")} - set(calls.values()) == {ROOT / "scripts" / "recorded.py"}
    started = ("python train.py", "python scripts/benchmark_7b", "python -m rsd.selfcheck")
    assert [call in calls for call in started] == [True] * 3
    assert "python -m rsd.commands.programs" not in calls


@pytest.mark.slow
def test_the_page_has_each_programs_help():
    shown = page(ROOT)
    titles = re.findall(r"^## (.*)$", shown, re.M)
    assert sorted(titles) == sorted(call.removeprefix("python ").removeprefix("-m ") for call in programs(ROOT))
    assert "usage: python scripts/runs.py [-h]" in shown and "--where KEY=VALUE" in shown
    assert "simulator_timeout_s=300" in shown  # of a command that Hydra reads
