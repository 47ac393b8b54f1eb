"""A command that takes no time, swept in this process."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from rsd import runs
from rsd.commands import entry_point
from tests.commands import parabola

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Run the command with -m; returns (exit code, what it printed, what it printed as error)."""
    monkeypatch.setattr(runs, "provenance", lambda: {"device": "cpu"})

    def run(*overrides: str, sweeper: str = "grid", command: ModuleType = parabola) -> tuple[int, str, str]:
        argv = ["parabola.py", "-m", f"hydra.searchpath=[file://{CONF}]", f"hydra/sweeper={sweeper}", *overrides]
        monkeypatch.setattr(sys, "argv", [*argv, f"root={tmp_path}"])
        code: int | str | None = 0
        try:
            entry_point.run(command.main, command.CONFIG)
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return (code, *printed) if isinstance(code, int) else (1, printed.out, printed.err + str(code))

    return run
