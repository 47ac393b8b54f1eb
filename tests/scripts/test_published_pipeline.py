"""The commands on a random checkpoint in the published layout: caching, and a draft trained on the cache."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from rsd.data.datasets import Demonstrations
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from tests.data.demonstrations import NAME, write_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KINDS = {"oft_combined": ("l1", 8, 8), "openvla_goal": ("autoregressive", None, 1)}  # action_head, proprio dims, chunk


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    write_dataset(root / "data", [20, 18, 14])
    for model, (action_head, proprio_dim, _) in KINDS.items():
        architecture = openvla_architecture(action_head=action_head, proprio_dim=proprio_dim, size="tiny")
        entry = Demonstrations(root / "data" / NAME / "1.0.0").norm_stats
        write_random_checkpoint(root / model, architecture=architecture, entry=entry)
        statistics = root / model / "dataset_statistics.json"
        record = json.loads(statistics.read_text())
        statistics.write_text(json.dumps({NAME: record["libero_10_no_noops"]}))
    return root


def overrides(root, model):
    return [
        f"model={model}", f"chunk={KINDS[model][2]}", f"data.name={NAME}", f"data.unnorm_key={NAME}",
        f"paths.root={root}", f"model.backbone.checkpoint={root / model}", "model.draft_layer=1",
        *([] if KINDS[model][0] == "l1" else ["model.head_layer=2"]),
        "hydra/job_logging=none", "hydra/hydra_logging=none",
    ]  # fmt: skip


@pytest.mark.parametrize("model", KINDS)
def test_caching(root, model, monkeypatch, capsys):
    run_script(monkeypatch, "scripts/cache_hidden_states.py", *overrides(root, model), "cache.batch_size=4")
    (directory,) = (root / "cache").glob(f"{model}-*")
    assert (directory / "cache.json").is_file()
    assert f"layer.1, {'head' if KINDS[model][0] == 'l1' else 'layer.2'}, " in capsys.readouterr().out


def run_script(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [str(ROOT / name), *arguments])
    runpy.run_path(str(ROOT / name), run_name="__main__")


def test_the_original_openvla_needs_chunk_1(root, monkeypatch, capsys):
    arguments = [argument for argument in overrides(root, "openvla_goal") if not argument.startswith("chunk=")]
    with pytest.raises(SystemExit):
        run_script(monkeypatch, "scripts/cache_hidden_states.py", *arguments)
    assert "chunk_length is 1, asked for 8" in capsys.readouterr().err


def test_a_head_and_a_draft_train_on_a_published_model(root, monkeypatch, capsys):
    common = [*overrides(root, "oft_combined"), "phase.max_steps=2", "phase.datamodule.batch_size=4", "save_every=100"]
    for phase in ("rfsq", "head", "draft"):
        run_script(monkeypatch, "train.py", f"phase={phase}", "val_every=100", *common)
    assert (root / "checkpoints" / "draft").is_dir()


def test_fine_tuning_a_published_model(root, monkeypatch, capsys):
    pytest.importorskip("peft")
    small = ["phase.max_steps=2", "phase.datamodule.batch_size=4", "phase.datamodule.num_workers=0"]
    small += ["phase.module.dtype=float32", "model.image_size=56", "phase.module.rank=2"]
    run_script(monkeypatch, "train.py", "phase=oft_lora", *overrides(root, "oft_combined"), *small)
    (export,) = (root / "checkpoints" / "base").iterdir()
    assert {path.name for path in export.iterdir()} >= {
        "config.json", "model.safetensors", "action_head--2_checkpoint.pt", "proprio_projector--2_checkpoint.pt",
        "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json", "lora_adapter",
    }  # fmt: skip
