"""Checkpoint folders: whole or not at all, and never silently damaged."""

import json

import pytest
import torch

from rsd.checkpoint import WEIGHTS_FILE, CheckpointError, load_checkpoint, load_weights, save_checkpoint


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
