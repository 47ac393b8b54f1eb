"""Commands one after the other, each with its log, time and peak memory; what fails is found out at the end.

What surprises first: a step that fails skips those alone that need it. The same plan given again goes on where it was:
a step that succeeded with the same command is not run again, unless one that it needs was.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.25  # between two looks at the GPU's memory
OK = "ok"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of the step and of its log.
        command: Arguments for Python.
        needs: Steps that must have succeeded.
        packages: Modules without which the step is skipped.
    """

    name: str
    command: list[str]
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


class GpuMemory(threading.Thread):
    """Largest memory in use on the first GPU while the thread runs, bytes; None without nvidia-smi."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak: int | None = None
        self.done = threading.Event()

    def run(self) -> None:
        query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self.done.wait(POLL_S):
            found = subprocess.run(query, capture_output=True, text=True)
            if found.returncode == 0:
                self.peak = max(self.peak or 0, int(found.stdout.split()[0]) * 2**20)


def run_step(step: Step, out: Path, limit_s: float) -> dict[str, Any]:
    """Run one command into its log, in a process group of its own that ends with it."""
    started, memory = time.monotonic(), GpuMemory()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if shutil.which("nvidia-smi"):
        memory.start()
    with open(out / f"{step.name}.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        timer = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:  # after Ctrl-C, too, which a session of its own does not hear
            timer.cancel()
            memory.done.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    late = f"; stopped after {limit_s:.0f} s" if code < 0 and seconds >= limit_s else ""
    return {
        "status": OK if code == 0 else f"exit code {code}{late}",
        "seconds": round(seconds, 1),
        "host_peak_bytes": usage.ru_maxrss * 1024,  # of the largest process
        "gpu_peak_bytes": memory.peak,
    }


def missing(step: Step, records: dict[str, Any]) -> str | None:
    """Why the step cannot be run, or None."""
    absent = [name for name in step.packages if importlib.util.find_spec(name) is None]
    if absent:
        return f"skipped: {' and '.join(absent)} not installed"
    broken = [name for name in step.needs if records.get(name, {}).get("status") != OK]
    return f"not run: needs {' and '.join(broken)}" if broken else None


def run_all(
    steps: list[Step],
    out: Path,
    records: dict[str, dict[str, Any]],
    *,
    limit_s: float,
    finished: Callable[[Step, dict[str, Any]], None],
) -> list[str]:
    """Run what is not done yet.

    Args:
        steps: In an order in which nothing comes before what it needs.
        out: Folder of the logs.
        records: Step name → result of an earlier run; brought up to date in place.
        limit_s: Longest time of one step.
        finished: Called after each step with its record.

    Returns:
        Names of the steps that failed, or could not run because another one did.
    """
    again: set[str] = set()
    for step in steps:
        command = " ".join(["python", *step.command])
        done = records.get(step.name, {})
        if done.get("status") == OK and done["command"] == command and not again.intersection(step.needs):
            continue
        again.add(step.name)
        reason = missing(step, records)
        record = {"status": reason} if reason else run_step(step, out, limit_s)
        records[step.name] = {**record, "command": command}
        finished(step, records[step.name])
    return [step.name for step in steps if not records[step.name]["status"].startswith((OK, "skipped"))]


def with_needs(steps: list[Step], names: list[str]) -> list[Step]:
    """The named steps and those that they need, in order.

    Raises:
        ValueError: a name is unknown.
    """
    by_name = {step.name: step for step in steps}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"no steps {unknown}; there are {list(by_name)}")
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting += by_name[name].needs
    return [step for step in steps if step.name in wanted]
