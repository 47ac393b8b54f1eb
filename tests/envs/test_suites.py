"""Init states from upstream's torch files and from packed arrays; robosuite's settings in memory."""

import pickle
import sys

import numpy as np
import pytest
import torch

from rsd.envs.suites import load_init_states, silence_robosuite

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
