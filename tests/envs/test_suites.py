"""Suites, their variants and instructions; init states from torch files and packed arrays; robosuite's settings."""

import pickle
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rsd.envs import suites
from rsd.envs.gl import SimulatorError
from rsd.envs.suites import check_suite, complete_variants, load_init_states, load_task, silence_robosuite, suite_name
from rsd.errors import RSDError

STATES = np.arange(6.0).reshape(2, 3)


def test_packed_states(tmp_path):
    np.savez(tmp_path / "task.pruned_init.npz", states=STATES)
    np.testing.assert_array_equal(load_init_states(tmp_path / "task.pruned_init"), STATES)


def test_upstreams_torch_file(tmp_path):
    torch.save(STATES, tmp_path / "task.pruned_init")
    loaded = load_init_states(tmp_path / "task.pruned_init")
    np.testing.assert_array_equal(loaded, STATES)
    assert loaded.dtype == np.float64


class Malicious:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_torch_file_cannot_run_code(tmp_path, capsys):
    torch.save(Malicious(), tmp_path / "task.pruned_init")
    with pytest.raises(pickle.UnpicklingError):
        load_init_states(tmp_path / "task.pruned_init")
    assert "must not run" not in capsys.readouterr().out


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_init_states(tmp_path / "task.pruned_init")


def test_robosuite_writes_no_log_file_in_the_shared_folder(monkeypatch):
    monkeypatch.delitem(sys.modules, "robosuite.macros_private", raising=False)
    silence_robosuite()
    settings = sys.modules.get("robosuite.macros_private")
    if settings is None:
        pytest.skip("somebody has written a macros_private.py here")
    assert settings.FILE_LOGGING_LEVEL is None
    monkeypatch.delitem(sys.modules, "robosuite.macros_private")


@dataclass(frozen=True)
class PackageTask:
    """What the package says of a task."""

    problem_folder: str
    language: str = "pick up the bowl"
    bddl_file: str = "pick_up_the_bowl.bddl"
    init_states_file: str = "pick_up_the_bowl.pruned_init"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Suites of two tasks with three init states each: libero_x and two variants; files of a third are missing."""
    names = ("libero_x", "libero_x_lan", "libero_x_swap", "libero_x_env")

    def files(task):
        folder = tmp_path / task.problem_folder
        return folder / task.bddl_file, folder / task.init_states_file

    for name in names[:-1]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "pick_up_the_bowl.bddl").write_text("(:language\n  Lift the  Bowl) (:goal (On bowl plate))")
        np.savez(tmp_path / name / "pick_up_the_bowl.pruned_init.npz", states=np.zeros((3, 4)))
    registered = {
        name: lambda name=name: SimpleNamespace(tasks=[PackageTask(name), PackageTask(name)]) for name in names
    }
    monkeypatch.setattr(suites, "known_suites", lambda: registered)
    monkeypatch.setattr(suites, "_files", files)
    return tmp_path


def test_names_of_suites():
    assert suite_name("libero_10", None) == "libero_10" and suite_name("libero_10", "lan") == "libero_10_lan"


def test_the_instruction_is_the_file_names_unless_the_perturbation_is_in_the_words(package):
    assert load_task("libero_x", 0).instruction == load_task("libero_x_swap", 1).instruction == "pick up the bowl"
    assert load_task("libero_x_lan", 0).instruction == "lift the bowl"


@pytest.mark.parametrize("task_id", [-1, 2])
def test_a_task_that_the_suite_lacks_speaks_to_the_user(package, task_id):
    with pytest.raises(RSDError, match=rf"task_id {task_id} is not in suite 'libero_x'; expected 0\.\.1"):
        load_task("libero_x", task_id)


def test_a_description_without_words_is_refused(package):
    (package / "libero_x_lan" / "pick_up_the_bowl.bddl").write_text("(:goal (On bowl plate))")
    with pytest.raises(SimulatorError, match=r"bddl holds no instruction, expected \(:language …\); pip"):
        load_task("libero_x_lan", 0)


def test_a_complete_suite_passes(package):
    check_suite("libero_x", None, num_tasks=2, num_init_states=3)
    check_suite("libero_x", "swap", num_tasks=2, num_init_states=2)
    assert complete_variants("libero_x") == ["lan", "swap"]


@pytest.mark.parametrize(
    ("variant", "sizes", "message"),
    [
        ("env", (2, 3), r"'libero_x_env' is registered, but files of 2 of its 2 tasks .*choose .*\['lan', 'swap'\]"),
        ("red", (2, 3), r"'libero_x' has no variant 'red'; complete ones: \['lan', 'swap'\]"),
        ("swap", (3, 3), r"has 2 tasks, env\.num_tasks is 3"),
        ("swap", (2, 50), r"task 0 of suite 'libero_x_swap' has 3 init states, .* is 50; set env\.num_init_states=3"),
    ],
)
def test_what_does_not_fit_is_refused(package, variant, sizes, message):
    with pytest.raises((SimulatorError, ValueError), match=message):
        check_suite("libero_x", variant, num_tasks=sizes[0], num_init_states=sizes[1])


def test_empty_init_states_and_missing_files_of_the_suite_itself(package):
    np.savez(package / "libero_x" / "pick_up_the_bowl.pruned_init.npz", states=np.zeros(0))
    with pytest.raises(ValueError, match=r"has 0 init states, env\.num_init_states is 3; choose another suite"):
        check_suite("libero_x", None, num_tasks=2, num_init_states=3)
    (package / "libero_x" / "pick_up_the_bowl.bddl").unlink()
    with pytest.raises(SimulatorError, match=r"of libero_x task 0 is missing: .*bddl; pip"):
        check_suite("libero_x", None, num_tasks=2, num_init_states=3)
