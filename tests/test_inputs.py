"""What a run reads is held to by content: inputs.json, and what a resume says of another data set or checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rsd.checkpoint import JSON_FILE, CheckpointError, content_sha256, save_checkpoint
from rsd.data.rlds import RLDSDataset
from rsd.inputs import INPUTS_FILE, InputsError, content_of, contents, keep_inputs
from rsd.record import sealed
from tests.data.demonstrations import NAME, write_dataset


def checkpoint(folder: Path, value: float = 1.0, *, command: str = "a", **config) -> Path:
    weights = {"w": torch.full((2,), value)}
    provenance = {"command": [command], "unnorm_key": "toy"}
    save_checkpoint(folder, kind="base", config={"q99": [0.5], **config}, weights=weights, provenance=provenance)
    return folder


def published(folder: Path) -> Path:
    (folder / "lora_adapter").mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json", "dataset_statistics.json", "lora_adapter/a.json"):
        (folder / name).write_text(name)
    return folder


def test_a_first_start_writes_what_links_lead_to_and_the_same_content_elsewhere_is_accepted(tmp_path):
    folder = checkpoint(tmp_path / "runs" / "a" / "checkpoint")
    (tmp_path / "base").symlink_to(folder)
    keep_inputs(tmp_path, contents({"base": tmp_path / "base", "draft": None}), resumed=False)
    stored = json.loads((tmp_path / INPUTS_FILE).read_text())
    named = {"kind": "base", "path": str(tmp_path / "base"), "folder": str(folder), "digest": content_sha256(folder)}
    assert stored == sealed({"base": named})
    again = checkpoint(tmp_path / "elsewhere", command="b")  # the same numbers, by another command
    keep_inputs(tmp_path, contents({"base": again}), resumed=True)
    assert json.loads((tmp_path / INPUTS_FILE).read_text()) == stored


@pytest.mark.parametrize("change", [{"value": 2.0}, {"q99": [0.6]}, {"words": ["another"]}])
def test_another_checkpoint_behind_a_name_is_refused_with_both(tmp_path, change):
    checkpoint(tmp_path / "base")
    before = content_sha256(tmp_path / "base")
    keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=False)
    checkpoint(tmp_path / "base", **change)
    after = content_sha256(tmp_path / "base")
    with pytest.raises(
        InputsError, match=f"base .*/base is another one: digest {before[:12]} → {after[:12]}. Put that"
    ):
        keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=True)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "dataset_statistics.json"])
def test_every_file_of_a_published_checkpoint_counts(tmp_path, file):
    published(tmp_path / "base")
    keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=False)
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    keep_inputs(tmp_path, contents({"base": tmp_path / "copy"}), resumed=True)
    (tmp_path / "base" / file).write_text("another")
    with pytest.raises(InputsError, match=r"base .* is another one"):
        keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=True)


def test_a_data_set_is_told_by_its_records_and_the_message_has_both_figures(tmp_path):
    directory = write_dataset(tmp_path / "data", [13, 12])
    keep_inputs(tmp_path, contents({"data": directory}), resumed=False)
    first = content_of(directory)
    shutil.rmtree(directory)
    write_dataset(tmp_path / "data", [13, 12, 14])
    with pytest.raises(InputsError) as refused:
        keep_inputs(tmp_path, contents({"data": directory}), resumed=True)
    message, now = str(refused.value), content_of(directory)
    assert "num_episodes: 2 → 3" in message and "num_steps: 25 → 39" in message
    assert f"action_q99: {first['action_q99']} → {now['action_q99']}" in message
    assert f"digest {first['digest'][:12]} → {now['digest'][:12]}" in message


@pytest.mark.parametrize("spoiled", [[(5, 2)], [(step, 0) for step in range(12)]])
def test_a_data_set_with_numbers_that_are_not_finite_is_left_to_its_reader(tmp_path, monkeypatch, spoiled):
    """Who names episode, step and dim; the figures are of the other steps, and JSON."""
    whole = RLDSDataset.episodes

    def episodes(self):
        for episode in whole(self):
            action = episode["action"].copy()
            action[tuple(zip(*spoiled, strict=True))] = float("nan")
            yield episode | {"action": action}

    directory = write_dataset(tmp_path / "data", [12])
    monkeypatch.setattr(RLDSDataset, "episodes", episodes)
    keep_inputs(tmp_path, contents({"data": directory}), resumed=False)
    stored = json.loads((tmp_path / INPUTS_FILE).read_text())["data"]
    assert stored["num_steps"] == 12 and ("action_q01" in stored) == (len(spoiled) == 1)


def test_what_was_not_there_at_the_first_start_is_known_from_the_next_on(tmp_path):
    keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=False)
    checkpoint(tmp_path / "base")
    keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=True)
    checkpoint(tmp_path / "base", 2.0)
    with pytest.raises(InputsError, match="another one"):
        keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=True)


def test_a_run_of_an_earlier_revision_is_continued_and_says_what_nobody_knows(tmp_path, capsys):
    checkpoint(tmp_path / "base")
    keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=True)
    assert "inputs.json does not exist: nobody knows whether" in capsys.readouterr().out
    assert (tmp_path / INPUTS_FILE).is_file()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"provenance": {"base": NaN}}', '{"provenance": 1}', "[]"])
def test_a_damaged_checkpoint_json_is_one_line(tmp_path, text):
    (tmp_path / JSON_FILE).write_text(text)
    with pytest.raises(RuntimeError, match=r"checkpoint\.json.*; copy the checkpoint again, or make it anew"):
        content_of(tmp_path)


def test_a_data_set_has_a_name_that_says_nothing(tmp_path):
    one, two = (write_dataset(tmp_path / name, [13, length]) for name, length in (("a", 12), ("b", 11)))
    assert one.parent.name == two.parent.name == NAME
    assert content_of(one)["digest"] != content_of(two)["digest"]


def test_a_part_that_is_gone_is_left_to_its_reader(tmp_path):
    """Who says with which command it is made; and what was known of it is kept."""
    keep_inputs(tmp_path, contents({"base": checkpoint(tmp_path / "base")}), resumed=False)
    stored = (tmp_path / INPUTS_FILE).read_text()
    shutil.rmtree(tmp_path / "base")
    keep_inputs(tmp_path, contents({"base": tmp_path / "base"}), resumed=True)
    assert (tmp_path / INPUTS_FILE).read_text() == stored


@pytest.mark.parametrize("text", ["[" * 100_000, '{"provenance": {"base": NaN}}', '{"provenance": 1}', "[]"])
def test_a_record_that_is_none_has_no_content(tmp_path, text):
    (tmp_path / JSON_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint.json.*; copy the checkpoint again, or make it anew"):
        content_sha256(tmp_path)
