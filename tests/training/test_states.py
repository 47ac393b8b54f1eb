"""States to resume from: whole or the one before, checked, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import re
import zipfile

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


def flipped(content, bit):
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_every_changed_bit_is_found_or_harmless(tmp_path, capsys):
    """Whatever is wrong in the archive: its entries, their headers, its directory."""
    for step in (1, 2):
        States().save_checkpoint({"step": step, "weights": torch.full((3,), float(step))}, tmp_path / LAST)
    content = (tmp_path / LAST).read_bytes()
    directory = content.index(b"PK\1\2")
    for bit in [*range(0, directory * 8, 97), *range(directory * 8, len(content) * 8, 7)]:
        (tmp_path / LAST).write_bytes(flipped(content, bit))
        path = state_to_resume(tmp_path)
        state = States().load_checkpoint(path)
        expected = 1 if path.name == PREVIOUS else 2
        assert state["step"] == expected and state["weights"].tolist() == [expected] * 3, f"bit {bit}"
        assert (path.name == PREVIOUS) == (f"going on from the one before it, {path}" in capsys.readouterr().out)


@pytest.mark.parametrize(
    ("at", "bit"),
    [(10, 3), (38, 4), (42, 0)],
    ids=["method", "an entry that is called a folder", "place"],
)
def test_a_damaged_directory_is_found(folder, capsys, at, bit):
    """torch would take an entry that is called a folder for an empty one, without a word."""
    content = (folder / LAST).read_bytes()
    for entry in [one for one in range(len(content)) if content.startswith(b"PK\1\2", one)]:
        (folder / LAST).write_bytes(flipped(content, 8 * (entry + at) + bit))
        assert step_of(state_to_resume(folder)) == 1
        assert str(folder / LAST) in capsys.readouterr().out


def written(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (written(b"PK\5\6" + bytes(18)), "is no state of a training run: it is damaged, or holds something else"),
        (lambda path: path.mkdir(), r"is damaged \(\S+shards.json cannot be read: No such file or directory"),
        (os.mkfifo, r"is damaged \(it is no file\)"),
        (lambda path: torch.save([1], path), "is no state of a training run: it is a list, expected entries by name"),
        (lambda path: torch.save({"a": Evil()}, path), "is no state of a training run: it holds posix.system, which"),
    ],
    ids=["an empty archive", "a folder", "a pipe", "a list", "code"],
)
def test_what_torch_would_refuse_is_found_before(folder, capsys, put, said):
    (folder / LAST).unlink()
    put(folder / LAST)
    assert step_of(state_to_resume(folder)) == 1
    out = capsys.readouterr().out
    assert re.search(f"{LAST} {said}.*: going on from the one before it, {folder / PREVIOUS}", out), out
    (folder / PREVIOUS).unlink()
    with pytest.raises(StateError, match=f"^cannot resume: {folder / LAST} {said}.*; start anew without resume$"):
        state_to_resume(folder)


@pytest.mark.parametrize("name", [LAST, PREVIOUS])
def test_a_folder_in_the_place_of_a_state_makes_way_for_the_next(folder, name):
    (folder / name).unlink()
    (folder / name / "mine").mkdir(parents=True)
    for step in (3, 4):
        States().save_checkpoint({"step": step}, folder / LAST)
    assert step_of(folder / LAST) == 4 and step_of(folder / PREVIOUS) == 3
    assert (folder / f"{name}.folder" / "mine").is_dir()


@pytest.mark.parametrize(
    "words", [b"\x80\x02U", b"\x80\x02h\x01.", b"\x80\x02X\1\0\0\0\xff.", b"\x80\x02J", b"\x80\x02)R."]
)
def test_a_torn_state_is_refused_in_own_words(tmp_path, words):
    with zipfile.ZipFile(tmp_path / LAST, "w") as archive:
        for name, content in {"data.pkl": words, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    for read in (States().load_checkpoint, lambda path: state_to_resume(path.parent)):
        with pytest.raises(
            StateError, match="it is damaged, or holds something else, expected numbers, texts"
        ) as error:
            read(tmp_path / LAST)
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


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
