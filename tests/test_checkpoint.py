"""Checkpoint folders: whole or not at all, and never silently damaged."""

import json
import resource
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

from rsd.checkpoint import (
    WEIGHTS_FILE,
    CheckpointError,
    file_sha256,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    write_pickled,
    write_weights,
)
from rsd.files import WriteError
from tests.records import edit


@pytest.fixture
def folder(tmp_path):
    weights = torch.nn.Linear(3, 2).state_dict()
    save_checkpoint(tmp_path / "c", kind="head", config={"width": 3}, weights=weights, provenance={"a": 1})
    return tmp_path / "c"


def load(folder, kind="head"):
    return load_checkpoint(folder, kind=kind, produce="python train.py phase=head")


def test_round_trip_and_replacement(folder):
    first = load(folder)
    assert first.config == {"width": 3} and first.provenance == {"a": 1}
    save_checkpoint(folder, kind="head", config={}, weights={"w": torch.ones(1)}, provenance={})
    assert list(load(folder).weights) == ["w"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["c"]


def test_truncated_weights_are_named(folder):
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"weights.safetensors is damaged: \d+ bytes"):
        load(folder)


def test_missing_kind_and_json(folder):
    with pytest.raises(CheckpointError, match="holds a checkpoint of kind 'head', expected 'draft'"):
        load(folder, kind="draft")
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load(folder)
    (folder / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="does not exist; make it with: python train"):
        load(folder)


def test_another_architecture_lists_all_differences(folder):
    with pytest.raises(CheckpointError, match=r"another architecture: missing extra.weight; weight has shape \(2, 3\)"):
        module = torch.nn.Linear(4, 2)
        module.extra = torch.nn.Linear(1, 1, bias=False)
        load_weights(module, load(folder), folder)


def test_a_write_that_fails_leaves_the_old_checkpoint(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rsd.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, kind="head", config={}, weights={}, provenance={})
    assert json.loads((folder / "checkpoint.json").read_text())["config"] == {"width": 3}
    assert load(folder).config == {"width": 3}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(folder, value):
    weights = {"ok": torch.ones(2), "broken": torch.tensor([1.0, value])}
    with pytest.raises(CheckpointError, match=r"has weights that are NaN or infinite: broken \(1 of 2 tensors\)"):
        save_checkpoint(folder, kind="head", config={}, weights=weights, provenance={})
    assert load(folder).config == {"width": 3}  # the good one stays
    save_file(weights, folder / WEIGHTS_FILE)
    edit(folder / "checkpoint.json", lambda record: record.update(sha256=file_sha256(folder / WEIGHTS_FILE)))
    with pytest.raises(CheckpointError, match=r"weights.safetensors has weights that are NaN or infinite: broken"):
        load(folder)


def test_metrics_that_are_not_finite_are_not_written(folder):
    with pytest.raises(CheckpointError, match=r"provenance\.metrics\.ece\.1 of the head is not finite"):
        provenance = {"metrics": {"ece": [0.1, float("nan")]}}
        save_checkpoint(folder, kind="head", config={}, weights={"w": torch.ones(1)}, provenance=provenance)
    assert load(folder).config == {"width": 3}


@pytest.mark.parametrize("name", ["kind", "config", "provenance", "sha256"])
@pytest.mark.parametrize("value", [None, 3, [], "x" * 1000, "missing"])
def test_a_damaged_entry_is_named(folder, name, value):
    def change(record):
        record.update({name: value})
        if value == "missing":
            del record[name]

    edit(folder / "checkpoint.json", change)
    with pytest.raises(CheckpointError) as error:
        load(folder)
    line = str(error.value)
    assert str(folder) in line and "\n" not in line and len(line) < len(str(folder)) + 250


@pytest.mark.parametrize("changed", ['"width": 4', '"a": 2'])
def test_a_changed_number_is_found_by_the_checksum(folder, changed):
    path = folder / "checkpoint.json"
    before = {"width": '"width": 3', "a": '"a": 1'}[changed.split('"')[1]]
    path.write_text(path.read_text().replace(before, changed))
    with pytest.raises(CheckpointError, match=r"checkpoint.json is damaged or was edited: its entry 'checksum'"):
        load(folder)


def test_a_checkpoint_without_checksum_is_of_an_earlier_version(folder):
    path = folder / "checkpoint.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(record))
    assert load(folder).config == {"width": 3}


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file of this process grows beyond 64 KiB: the operating system refuses the rest, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", [write_weights, write_pickled])
def test_weights_for_which_there_is_no_room_are_one_line(tmp_path, little_room, write):
    """torch and safetensors say it in words of their own."""
    with pytest.raises(WriteError, match=r"cannot write \S+/file: File too large; make room"):
        write({"a": torch.zeros(100_000)}, tmp_path / "file")
    with pytest.raises(WriteError, match=r"cannot write \S+/nowhere/file: No such file or directory"):
        write({"a": torch.zeros(1)}, tmp_path / "nowhere" / "file")


def test_ctrl_c_in_the_middle_of_a_state_is_no_broken_archive(tmp_path, monkeypatch):
    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch's writer does when it is closed

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_pickled({"a": torch.zeros(1)}, tmp_path / "file")


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_old_one(folder, little_room):
    before = load(folder).sha256
    with pytest.raises(WriteError, match=r"weights\.safetensors: File too large"):
        save_checkpoint(folder, kind="head", config={}, weights={"a": torch.zeros(100_000)}, provenance={})
    assert load(folder).sha256 == before
