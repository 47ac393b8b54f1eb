"""One input has one name in every run; an offline run holds what it read and made; weights are sent when asked."""

import pytest
import torch

from rsd.checkpoint import save_checkpoint
from rsd.inputs import content_of, contents, keep_inputs
from rsd.training.lineage import artifact_name
from rsd.training.wandb_logger import WandbLogger
from tests.data.demonstrations import write_dataset
from tests.training.wandb_files import artifacts, records


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")


def tokenizer(folder, value=1.0):
    save_checkpoint(folder, kind="tokenizer", config={}, weights={"w": torch.tensor([value])}, provenance={})
    return folder


def offline(run_dir, **options):
    run_dir.mkdir(exist_ok=True)
    return WandbLogger(run_dir=run_dir, project="rsd", mode="offline", **options)


def test_a_name_is_kind_and_content_whatever_the_part_and_the_place(tmp_path):
    made, copy, other = (
        content_of(tokenizer(tmp_path / name, value)) for name, value in (("a", 1), ("b", 1), ("c", 2))
    )
    assert artifact_name(made) == artifact_name(copy) == f"tokenizer-{made['digest'][:12]}"
    assert artifact_name(other) != artifact_name(made)
    demonstrations = contents({"data bridge": write_dataset(tmp_path / "d", [12])})["data bridge"]
    assert artifact_name(demonstrations) == f"data-{demonstrations['digest'][:12]}"
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text("{}")
    assert artifact_name(content_of(tmp_path / "published")).startswith("base-")
    assert artifact_name({"kind": "visual tokens/2", "digest": "12ab" * 16}) == "visual_tokens_2-12ab12ab12ab"


def test_what_one_run_makes_another_reads_offline(tmp_path):
    """The same artifact to the last byte, so that the server draws an edge whichever run it gets first."""
    made = tokenizer(tmp_path / "first" / "checkpoint")
    first = offline(tmp_path / "first", job_type="rfsq")
    read = contents({"data": write_dataset(tmp_path / "d", [12]), "base": None})
    keep_inputs(tmp_path / "first", read, resumed=False)
    first.log_hyperparams({})
    first.log_made(content_of(made))
    first.close()
    data, name = artifact_name(read["data"]), artifact_name(content_of(made))
    assert artifacts(tmp_path / "first") == {data: [("data", True)], name: [("tokenizer", False)]}

    second = offline(tmp_path / "second", job_type="head", upload=True)
    (tmp_path / "published").symlink_to(made)
    keep_inputs(tmp_path / "second", contents({"tokenizer": tmp_path / "published"}), resumed=False)
    second.log_hyperparams({})
    second.log_read({"kind": "cache", "point": "layer.2", "folder": "c", "digest": "12ab34cd56ef"})
    head = tmp_path / "second" / "checkpoint"
    save_checkpoint(head, kind="head", config={}, weights={"w": torch.zeros(1)}, provenance={})
    second.log_made(content_of(head))
    second.close()
    made_name = artifact_name(content_of(head))
    assert artifacts(tmp_path / "second") == {
        name: [("tokenizer", True)],
        "cache-12ab34cd56ef": [("cache", True)],
        made_name: [("head", False)],
        f"{made_name}-files": [("head-files", False)],
    }
    digests = [
        {record.artifact.name: record.artifact.digest for record in records(folder) if record.HasField("artifact")}
        for folder in (tmp_path / "first", tmp_path / "second")
    ]
    assert digests[0][name] == digests[1][name]
    (sent,) = [one.artifact for one in records(tmp_path / "second") if one.artifact.name.endswith("-files")]
    assert [entry.path for entry in sent.manifest.contents] == ["checkpoint.json", "weights.safetensors"]
    assert all(entry.local_path.startswith(str(head)) for entry in sent.manifest.contents)  # no copy is made
