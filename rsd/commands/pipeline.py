"""A sequence of commands with a run folder each, that can be interrupted anywhere and goes on when asked again.

What surprises first: a step is not a function but a command line that a user could type. It runs in a process of its
own and is printed before; finished ones are skipped, one that was under way is resumed. It ends when this process does,
even by a kill -9.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.commands.quoting import quoted
from rsd.differences import differences
from rsd.errors import RSDError
from rsd.files import write_atomically
from rsd.record import read_json, write
from rsd.runs import CONFIG_FILE, MAY_DIFFER, OVERRIDES_FILE, read_yaml

SETTINGS_FILE = "settings.json"
PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent ends
SAVING_S = 5.0  # that a step gets to save what it has after Ctrl-C, before it is interrupted once more
LEAVING_S = 60.0  # and then before it is killed
RUNS, TIMES = "runs", "times"  # folders below the root: run folders, and the seconds that each step took


class PipelineError(RSDError, RuntimeError):
    """A step failed, or does not fit what is on disk."""


class InterruptedStepError(PipelineError):
    """The user broke a step off."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of its run folder, <root>/runs/<name>.
        command: Script and overrides.
        finished: File in the run folder that says it has finished; None for a command that has no run folder.
        made: What such a command makes, whole or not at all; None where it finds out itself what is left to do, and is
            always run.
    """

    name: str
    command: list[str]
    finished: str | None
    made: Path | None = None

    def folder(self, root: Path) -> Path:
        """The run folder."""
        return root / RUNS / self.name


def keep_settings(root: Path, settings: dict[str, Any]) -> None:
    """Write down what decides the results of all steps, at a first start; later ones must not differ.

    Raises:
        PipelineError: they do; finished steps would be taken for those of the new settings.
    """
    path = root / SETTINGS_FILE
    stored = read_json(path)
    if stored is None:
        root.mkdir(parents=True, exist_ok=True)
        write(path, settings)
    elif differing := differences(stored, settings):
        places = "; ".join(map(str, differing))
        raise PipelineError(f"{root} was begun with other settings: {places}; give the old ones, or another folder")


def run_steps(steps: Sequence[Step], root: Path, *, limit_s: float | None = None) -> None:
    """Run what is not finished, in order.

    Args:
        limit_s: Longest time of one step.

    Raises:
        PipelineError: a step failed, was interrupted or took too long, or its folder holds a run with other settings.
    """
    os.environ.setdefault("WANDB_RUN_GROUP", root.resolve().name)  # the steps' runs belong together there
    for step in steps:
        if is_finished(step, root):
            print(f"step {step.name!r} is finished")
            continue
        started = time.monotonic()
        try:
            run_step(step, root, limit_s)
        finally:
            file = root / TIMES / f"{step.name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps((seconds(step, root) or 0.0) + time.monotonic() - started) + "\n")


def is_finished(step: Step, root: Path) -> bool:
    """Whether this very command has run to its end.

    Raises:
        PipelineError: the folder holds a run with other settings.
    """
    folder = step.folder(root)
    if step.finished is None:
        return step.made is not None and step.made.exists()
    if not (folder / step.finished).is_file():
        return False
    stored: list[str] = read_yaml(folder / OVERRIDES_FILE, list[str])
    if _that_matter(stored) != _that_matter(step.command[1:]):
        raise PipelineError(f"{folder} was made with {stored}, not {step.command[1:]}; remove {root} to start afresh")
    report = read_json(folder / step.finished)
    if "complete" not in report:
        return True
    return report["complete"] and report["success"]["num_errors"] == 0


def _that_matter(overrides: Sequence[str]) -> list[str]:
    return [quoted(one) for one in overrides if one.partition("=")[0].rpartition(".")[-1] not in MAY_DIFFER]


def run_step(step: Step, root: Path, limit_s: float | None = None) -> None:
    """Run a step in its own folder, resuming one that was under way.

    Raises:
        PipelineError: it failed, was interrupted or took too long.
    """
    folder = step.folder(root)
    command = [sys.executable, *step.command]
    if step.finished is not None:
        started = (folder / CONFIG_FILE).is_file()
        command.append(f"resume={folder}" if started else f"hydra.run.dir={folder}")
    code = run_command(step.name, command, limit_s)
    if code != 0:
        raise PipelineError(f"step {step.name!r} failed; the same command goes on from here once it is repaired")


def run_command(name: str, command: Sequence[str], limit_s: float | None = None) -> int:
    """Print a step's command and run it in a process that ends with this one; its exit code.

    Raises:
        PipelineError: it took too long.
        InterruptedStepError: Ctrl-C.
    """
    print(f"\n$ python {shlex.join(command[1:])}", flush=True)
    with subprocess.Popen(command, preexec_fn=_ending_with(os.getpid())) as process:
        try:
            return process.wait(limit_s)
        except KeyboardInterrupt:
            _interrupt(process)
            raise InterruptedStepError("interrupted; the same command goes on from here") from None
        except subprocess.TimeoutExpired:
            process.kill()
            raise PipelineError(f"step {name!r} was stopped after {limit_s:.0f} s") from None


def _ending_with(parent: int) -> Callable[[], None]:
    """What a new process calls to be killed when its parent ends, however that ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded here: little may be done between fork and exec

    def ask_for_it() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before
            os._exit(1)

    return ask_for_it


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """See that an interrupted step ends.

    After a Ctrl-C on a terminal it has had the same signal and is saving what it has; a signal that was sent to this
    process alone has to be handed on.
    """
    for wait_s, then in ((SAVING_S, signal.SIGINT), (LEAVING_S, signal.SIGKILL)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
            return
        process.send_signal(then)


def seconds(step: Step, root: Path) -> float | None:
    """What the step took so far; None when it was never run."""
    return read_json(root / TIMES / f"{step.name}.json")
