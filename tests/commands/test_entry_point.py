"""What an entry point prints for which error, on a small Hydra main of its own."""

import logging
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate

from rsd.commands.command_line import check_sweep
from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.errors import SettingError
from rsd.files import WriteError, write_atomically
from rsd.locks import let_go, opened_here
from rsd.processes import say

CONFIG = """# Raise something.
# python raise.py
defaults:
  - _self_

chunk: 8  # steps
kind: setting
make:
  _target_: tests.commands.test_entry_point.Made
  kind: ${kind}
"""


TRAIN = Path(__file__).parents[2] / "conf" / "train.yaml"

NO_MEMORY = {
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "gpu": RuntimeError("CUDA out of memory. Tried to allocate 16.00 GiB.\nGPU 0 has a total capacity of 79 GiB"),
    "numpy": MemoryError("Unable to allocate 7.28 TiB for an array with shape (10,)"),
    "python": MemoryError(),
}


class Made:
    """Raises in its constructor, inside what Hydra wraps around it."""

    def __init__(self, kind: str) -> None:
        logging.getLogger(__name__).warning("about to raise")
        if kind in NO_MEMORY:
            raise NO_MEMORY[kind]
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
        folders = (f"hydra.run.dir={tmp_path}/run", f"hydra.sweep.dir={tmp_path}/sweep")
        monkeypatch.setattr(sys, "argv", ["raise.py", *overrides, *folders])
        with pytest.raises(SystemExit) as stopped:
            run(main, tmp_path / "root.yaml")
        log = tmp_path / "run" / "error.log"
        return stopped.value.code, *capsys.readouterr(), log.read_text() if log.exists() else ""

    return call


def test_an_error_of_this_package_is_one_line_and_its_traceback_is_in_a_file(command, tmp_path):
    code, _, err, log = command()
    assert (code, err) == (1, f"error: size is 3, expected 4\n(traceback in {tmp_path}/run/error.log)\n")
    assert "Traceback" in log and "InstantiationException" in log


def test_a_job_of_a_multirun_says_it_in_one_line_as_well(command, tmp_path):
    """Each job as it ends, and Hydra the first of them at the end."""
    code, _, err, _ = command("-m", "chunk=8,16")
    lines = [f"error: size is 3, expected 4\n(traceback in {tmp_path}/sweep/{job}/error.log)\n" for job in (0, 1)]
    assert code == 1 and err.startswith("".join(lines)) and "SettingError: size is 3, expected 4" in err
    assert "Traceback" not in err and "Traceback" in (tmp_path / "sweep" / "1" / "error.log").read_text()


def test_a_log_for_which_there_is_no_room_prints_no_traceback_of_its_own(command, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # afterwards those of before
    code, out, err, _ = command("hydra.job_logging.handlers.file.filename=/dev/full")
    assert code == 1 and err.startswith("error: size is 3, expected 4\n") and "Traceback" not in err
    assert "about to raise" in out


@pytest.mark.parametrize("phase", ["rfsq,head", "choice(rfsq,head)", "glob(*)"])
def test_a_sweep_over_phases_is_refused_before_anything_is_written(command, tmp_path, phase):
    code, _, err, _ = command("-m", f"phase={phase}")
    message = "a sweep varies settings of one phase; run the phases one after another"
    assert code == f"error: phase={phase}: {message}" and err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["root.yaml"]
    check_sweep(["-m", "phase=rfsq", "phase.module.learning_rate=1e-3,5e-3", "quantizer=a,b"])


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_where_no_memory_is_left_the_line_says_what_needs_less(command, kind):
    code, _, err, log = command(f"kind={kind}")
    said = " ".join(str(NO_MEMORY[kind]).split()) or "MemoryError"
    told = f"error: no memory is left ({said}); a smaller batch, shorter chunk or smaller model needs less\n"
    assert code == 1 and err.startswith(told) and "Traceback" not in err and "Traceback" in log


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


@pytest.mark.parametrize("typed", ["resume=", "hydra.run.dir="])
def test_a_folder_whose_name_is_too_long_is_one_line(monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", ["train.py", "phase=rfsq", typed + "a" * 300])
    with pytest.raises(SystemExit, match=r"^error: a{300}\S*: File name too long; make room, or choose a folder"):
        run(lambda: pytest.fail("main was called"), TRAIN)


def test_a_run_that_goes_on_is_held_from_before_hydra_writes_there(tmp_path, monkeypatch):
    (tmp_path / "overrides.yaml").write_text("- phase=rfsq\n")
    (tmp_path / "config.yaml").write_text("phase: {}\n")
    program = "import sys; from pathlib import Path; from rsd.locks import hold; hold(Path(sys.argv[1]))"
    other = [sys.executable, "-c", program, str(tmp_path)]
    ends = []
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={tmp_path}"])
    run(lambda: ends.append(subprocess.run(other, capture_output=True, text=True)), TRAIN)
    assert f"TakenError: {tmp_path} is being written by another process" in ends[0].stderr
    assert not opened_here(tmp_path)  # this process only keeps others from it
    let_go(tmp_path)
    assert subprocess.run(other).returncode == 0


@pytest.mark.parametrize("typed", ["phase", "seed='7", "tasks=[0", "seed=7,"])
def test_an_argument_that_hydra_cannot_read_is_named(command, typed):
    code, _, _, _ = command("chunk=4", typed)
    assert str(code).startswith(f"error: {typed!r} cannot be read; write key=value, and quotes")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--nosuch"], "unrecognized arguments: --nosuch"),
        (["-x", "chunk=4"], "unrecognized arguments: -x"),
        (["--cfg", "nosuch"], "argument --cfg/-c: invalid choice: 'nosuch'"),
        (["--cfg", "job", "-m"], "--multirun and --cfg do not go together"),
        (["--resolve"], "--resolve goes with --cfg alone"),
    ],
)
def test_an_option_that_is_not_hydras_is_one_line(command, typed, said):
    code, out, err, _ = command(*typed)
    assert code.startswith(f"error: {said}") and code.endswith("--hydra-help Hydra's options") and "\n" not in code
    assert out == err == ""


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
