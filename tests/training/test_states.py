"""States to resume from: whole or the one before, checked, and nothing in them is run."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from rsd.errors import RSDError
from rsd.training.states import LAST, PREVIOUS, StateError, States, state_to_resume


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2):
        States().save_checkpoint({"step": step, "weights": torch.full((1000,), float(step))}, tmp_path / LAST)
    return tmp_path


def step_of(path):
    return States().load_checkpoint(path)["step"]


def test_the_last_one_is_taken_and_the_one_before_is_kept(folder, capsys):
    assert step_of(state_to_resume(folder)) == 2 and step_of(folder / PREVIOUS) == 1
    assert sorted(path.name for path in folder.iterdir()) == [LAST, PREVIOUS]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_one_changed_bit_is_found_and_the_one_before_is_used(folder, capsys, place):
    content = bytearray((folder / LAST).read_bytes())
    at = content.index(torch.full((2,), 2.0).numpy().tobytes()) + int(place * 3000)
    content[at] ^= 1
    (folder / LAST).write_bytes(content)
    assert step_of(state_to_resume(folder)) == 1
    said = capsys.readouterr().out
    assert f"{LAST} is damaged" in said and f"going on from the one before it, {folder / PREVIOUS}" in said


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip"])
def test_an_empty_or_torn_one_is_not_used(folder, capsys, content):
    (folder / LAST).write_bytes(content)
    assert step_of(state_to_resume(folder)) == 1
    (folder / PREVIOUS).write_bytes(content)
    with pytest.raises(StateError, match=r"cannot resume: \S*last.ckpt is damaged .*previous.ckpt is damaged"):
        state_to_resume(folder)


def test_killed_between_the_two_renames(folder, capsys):
    (folder / LAST).unlink()
    assert step_of(state_to_resume(folder)) == 1
    assert "last.ckpt is missing: going on from the one before it" in capsys.readouterr().out


def test_no_state_yet(tmp_path):
    assert state_to_resume(tmp_path) is None and state_to_resume(tmp_path / "resume") is None


def test_a_write_that_fails_leaves_both(folder, monkeypatch):
    def full(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RSDError, match=r"cannot write \S*last.ckpt: No space left on device"):
        States().save_checkpoint({}, folder / LAST)
    assert sorted(path.name for path in folder.iterdir()) == [LAST, PREVIOUS]
    assert step_of(folder / LAST) == 2


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize("asked", [None, False, True])
def test_nothing_in_a_state_is_run(tmp_path, monkeypatch, force, asked):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Evil()}, tmp_path / LAST)
    with pytest.raises(StateError, match=r"last.ckpt is no state of a training run"):
        States().load_checkpoint(tmp_path / LAST, weights_only=asked)
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StateError, match=r"old.ckpt is no state of a training run"):
        States().load_checkpoint(tmp_path / "old.ckpt", weights_only=asked)
    assert not (tmp_path / "evil").exists()
