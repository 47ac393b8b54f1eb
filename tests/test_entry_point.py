"""What an entry point prints for which error, on a small Hydra main of its own."""

import sys
from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate

from rsd.entry_point import report_errors, run
from rsd.errors import SettingError
from rsd.processes import say
from rsd.runs import WriteError, write_atomically

CONFIG = """# Raise something.
# python raise.py
defaults:
  - _self_

chunk: 8  # steps
kind: setting
make:
  _target_: tests.test_entry_point.Made
  kind: ${kind}
"""


class Made:
    """Raises in its constructor, inside what Hydra wraps around it."""

    def __init__(self, kind: str) -> None:
        raise {"setting": SettingError, "value": ValueError, "os": OSError}[kind]("size is 3, expected 4")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs it with overrides; returns (exit code, stdout, stderr, content of error.log)."""
    (tmp_path / "root.yaml").write_text(CONFIG)

    @hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="root")
    @report_errors
    def main(cfg):
        instantiate(cfg.make)

    def call(*overrides: str) -> tuple[int, str, str, str]:
        monkeypatch.setattr(sys, "argv", ["raise.py", f"hydra.run.dir={tmp_path}/run", *overrides])
        with pytest.raises(SystemExit) as stopped:
            run(main, tmp_path / "root.yaml")
        log = tmp_path / "run" / "error.log"
        return stopped.value.code, *capsys.readouterr(), log.read_text() if log.exists() else ""

    return call


def test_an_error_of_this_package_is_one_line_and_its_traceback_is_in_a_file(command, tmp_path):
    code, _, err, log = command()
    assert (code, err) == (1, f"error: size is 3, expected 4\n(traceback in {tmp_path}/run/error.log)\n")
    assert "Traceback" in log and "InstantiationException" in log


@pytest.mark.parametrize(("kind", "shown"), [("value", "ValueError: size is 3"), ("os", "OSError: size is 3")])
def test_any_other_error_keeps_its_traceback_on_the_screen(command, kind, shown):
    code, _, err, log = command(f"kind={kind}")
    assert code == 1 and "Traceback" in err and "in __init__" in err and shown in err and log == ""


def test_what_hydra_says_of_the_configuration_is_one_line(command):
    code, _, err, log = command("kind=${nowhere}")
    assert code == 1 and err.startswith("error: Interpolation key 'nowhere' not found") and len(err.splitlines()) == 2
    assert "Traceback" in log


@pytest.mark.parametrize("chunk", ["0", "-1", "1.5", "true", "null", "'8'"])
def test_a_chunk_is_a_number_of_steps(command, chunk):
    code, _, err, _ = command(f"chunk={chunk}")
    assert code == 1 and ", expected a whole number of control steps, 1 or more: chunk=8" in err


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WriteError, match=r"cannot write .*absent/a\.json: No such file or directory; make room"):
        write_atomically(tmp_path / "absent" / "a.json", "{}")


def test_help_needs_no_configuration_that_composes(tmp_path, monkeypatch, capsys):
    for name, text in (("root.yaml", CONFIG + "hydra:\n  run:\n    dir: out\n"), ("paths/default.yaml", "root: out\n")):
        Path(tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["raise.py", "--help"])
    run(lambda: pytest.fail("main was called"), tmp_path / "root.yaml")
    assert capsys.readouterr().out.startswith("Raise something.\n\nUsage\n  python raise.py [GROUP=CHOICE …]")


@pytest.mark.parametrize(("rank", "printed"), [(None, "a line\n"), ("0", "a line\n"), ("1", "")])
def test_one_of_several_processes_speaks(monkeypatch, capsys, rank, printed):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    say("a line")
    assert capsys.readouterr().out == printed
