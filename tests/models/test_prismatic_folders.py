"""Prismatic's folders and published ones: the same logits, whole folders, one line about what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import prismatic
from rsd.models.openvla.prismatic_folders import from_prismatic, to_prismatic
from rsd.models.openvla.published import read_norm_stats
from rsd.models.openvla.same_outputs import distance, load_network, outputs
from tests.models.published_copy import edit_json
from tests.models.tiny_checkpoints import random


@pytest.fixture
def published(tmp_path) -> Path:
    return random(tmp_path / "published", "openvla")


@pytest.fixture
def theirs(published, tmp_path) -> Path:
    to_prismatic(published, tmp_path / "theirs")
    return tmp_path / "theirs"


def rewritten(folder: Path, change) -> None:
    """Change what a Prismatic checkpoint file holds."""
    path = folder / prismatic.CHECKPOINT_FILE
    record = torch.load(path, weights_only=True)
    change(record["model"])
    torch.save(record, path)


def test_there_and_back_is_the_same_checkpoint(published, theirs, tmp_path):
    record = json.loads((theirs / "config.json").read_text())
    assert record["vla"]["base_vlm"] == "prism-dinosiglip-224px+7b" == record["model"]["model_id"]
    assert (theirs / "dataset_statistics.json").is_file()
    lines = from_prismatic(theirs, tmp_path / "back", shard_bytes=2_000_000)
    assert lines[0] == "logits of both layouts differ by 0 of the largest" and "32064" not in "".join(lines)
    before = load_file(published / "model.safetensors")
    shards = [load_file(path) for path in sorted((tmp_path / "back").glob("model-*.safetensors"))]
    after = {name: value for shard in shards for name, value in shard.items()}
    assert len(shards) > 1 and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.bfloat16 for name in before)
    assert read_norm_stats(tmp_path / "back") == read_norm_stats(published)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()


def test_names_are_theirs_and_a_short_vocabulary_is_padded(theirs, tmp_path):
    def shorten(parts):
        llm = parts["llm_backbone"]
        assert "llm.model.embed_tokens.weight" in llm and "projector.4.bias" in parts["projector"]
        assert "dino_featurizer.blocks.0.ls1.gamma" in parts["vision_backbone"]
        for name in ("llm.model.embed_tokens.weight", "llm.lm_head.weight"):
            llm[name] = llm[name][:32001].clone()

    rewritten(theirs, shorten)
    lines = from_prismatic(theirs, tmp_path / "out")
    assert "the vocabulary of 32001 was made one of 32064" in lines
    assert len(load_file(tmp_path / "out" / "model.safetensors")["language_model.lm_head.weight"]) == 32064


def test_rounding_to_bfloat16_is_told_and_float32_is_exact(theirs, tmp_path):
    rewritten(
        theirs, lambda parts: [part.update({n: v.float() * 1.001 for n, v in part.items()}) for part in parts.values()]
    )
    off = float(from_prismatic(theirs, tmp_path / "rounded")[0].split()[-4])
    assert 0 < off < 0.1
    assert from_prismatic(theirs, tmp_path / "exact", dtype="float32")[0].endswith(" 0 of the largest")
    one, other = (outputs(load_network(tmp_path / name, device="cpu")) for name in ("rounded", "exact"))
    assert distance(one, other) == pytest.approx(off, rel=0.1)


def test_what_is_missing_or_of_another_layout_is_one_line_and_nothing_is_written(published, theirs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="is not in Prismatic's layout"):
        from_prismatic(published, out)
    with pytest.raises(CheckpointError, match="is in Prismatic's layout; convert it with from-prismatic first"):
        to_prismatic(theirs, out)
    with pytest.raises(CheckpointError, match="for which Prismatic's layout has no place"):
        to_prismatic(random(tmp_path / "oft"), out)
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; name a folder"):
        from_prismatic(theirs, out, tokenizer=tmp_path)
    edit_json(theirs / "dataset_statistics.json", lambda record: next(iter(record.values()))["action"].pop("q01"))
    with pytest.raises(CheckpointError, match=r"dataset_statistics.json: .*action.q01"):
        from_prismatic(theirs, out)
    (theirs / "dataset_statistics.json").unlink()
    rewritten(theirs, lambda parts: parts["projector"].pop("projector.0.bias"))
    with pytest.raises(CheckpointError, match=r"missing projector\.fc1\.bias"):
        from_prismatic(theirs, out)
    rewritten(theirs, lambda parts: parts["projector"].update({"projector.0.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"projector.fc1.bias has shape \(3,\), expected \(336,\)"):
        from_prismatic(theirs, out)
    assert not out.exists() and not list(tmp_path.glob("*.converting"))


def test_a_model_without_actions_or_tokenizer_is_converted_with_notes(theirs, tmp_path):
    for name in ("dataset_statistics.json", "tokenizer.json"):
        (theirs / name).unlink()
    lines = from_prismatic(theirs, tmp_path / "out", check_outputs=False)
    assert sum(line.startswith("note: ") for line in lines) == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["norm_stats"] == {}
