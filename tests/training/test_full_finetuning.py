"""phase=openvla_full and oft_full on a (tiny, random) model: all weights, from both layouts, whole and shared out."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from rsd.checkpoint import CheckpointError
from rsd.errors import SettingError
from rsd.models.openvla import load_base, prismatic
from rsd.models.openvla.pretrained import require_pretrained
from rsd.models.openvla.random_weights import (
    PUBLISHED_MEANS,
    PUBLISHED_STDS,
    openvla_architecture,
    stand_in_tokenizer,
    write_random_checkpoint,
)
from rsd.training.finetune import FinetuneModule
from rsd.training.sharded import ShardedStrategy, gather
from rsd.training.states import States, state_to_resume
from tests.data.demonstrations import write_dataset
from tests.models.test_prismatic import IDS, SIZES
from tests.models.test_prismatic import write as write_prismatic
from tests.training.several_ranks import run_ranks
from tests.training.test_finetune import build as build_finetuning
from tests.training.test_sharded import Losses, apart

WHOLE = {"rank": None, "gradient_checkpointing": True, "weight_decay": 0.0, "image_augmentation": False}
WHOLE |= {"learning_rate": 1e-4}
NEVER_CHANGED = (".featurizer.blocks.3.", ".fused_featurizer.blocks.4.", "featurizer.norm.", "attn_pool.")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, [13, 12, 14, 11])
    return directory


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> dict[str, Path]:
    """The same weights in both layouts."""
    folder = tmp_path_factory.mktemp("start")
    architecture = openvla_architecture(action_head="autoregressive", proprio_dim=None, size="tiny")
    write_random_checkpoint(folder / "published", architecture=architecture)
    parts = prismatic.to_prismatic(load_file(folder / "published" / "model.safetensors"))
    write_prismatic(folder / "vlm", parts, {"model": IDS | SIZES})
    (folder / "vlm" / "tokenizer.json").write_bytes(stand_in_tokenizer())
    return {name: folder / name for name in ("published", "vlm")}


def fit(root: Path, folder: Path, checkpoint: Path, steps: int = 2, resume: Path | None = None, changes=None) -> dict:
    """Losses of a training and its exported weights, of the first process."""
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    options = {**WHOLE, **(changes or {})}
    action_head = options.pop("action_head", "autoregressive")
    module, datamodule = build_finetuning(root, checkpoint, action_head, **options)
    datamodule.batch_size = 4 // ranks
    losses, point = Losses(), ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        strategy=ShardedStrategy(timeout=timedelta(seconds=60)) if ranks > 1 else "auto", plugins=[States()],
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, check_val_every_n_epoch=None,
        callbacks=[losses, point], gradient_clip_val=1.0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    gather(trainer, module)
    if not trainer.is_global_zero:
        return {}
    out = folder / f"export-{steps}"
    module.export(out, {})
    weights = {name: value.clone() for name, value in module.model.state_dict().items()}
    return {"losses": losses.values, "weights": weights, "out": str(out), "module": module if ranks == 1 else None}


@pytest.fixture(scope="module")
def alone(root, start, tmp_path_factory) -> dict:
    return fit(root, tmp_path_factory.mktemp("alone"), start["published"])


def test_every_weight_that_a_loss_reaches_is_trained_and_exported(start, alone):
    before, after = load_file(start["published"] / "model.safetensors"), load_file(f"{alone['out']}/model.safetensors")
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    trained = {name for name in before if not any(part in name for part in NEVER_CHANGED)}
    moved = {name for name, value in alone["weights"].items() if not torch.equal(value, before[name].float())}
    assert moved == trained and same >= set(before) - trained
    record = json.loads(Path(alone["out"], "training.json").read_text())
    assert (record["phase"], record["center_crop"]) == ("openvla_full", True)
    assert not Path(alone["out"], "lora_adapter").exists()
    wanted = {"views": ["image"], "use_proprio": False, "chunk_length": 1, "action_head": "autoregressive"}
    base = load_base(checkpoint=alone["out"], unnorm_key=None, num_images=1, **wanted)
    module: FinetuneModule = alone["module"]
    observation = module.trainer.datamodule.val[0]["observation"]
    assert base.look([observation]).chunk().shape == (1, 1, 7)
    with pytest.raises(CheckpointError, match="center_crop is True, asked for False"):
        load_base(checkpoint=alone["out"], unnorm_key=None, num_images=1, center_crop=False, **wanted)


def test_a_vlm_in_prismatics_layout_is_trained_alike(root, start, alone, tmp_path, monkeypatch):
    """The weights are the same, so are the losses; the export is in the published layout."""
    own = prismatic.processor_of(prismatic.read_config(start["vlm"])).means[0]
    assert own == (0.485, 0.456, 0.406)  # with which a VLM is trained; the published file has them rounded
    monkeypatch.setitem(prismatic.MEANS, prismatic.DINO, PUBLISHED_MEANS[0])
    monkeypatch.setitem(prismatic.STDS, prismatic.DINO, PUBLISHED_STDS[0])
    require_pretrained(start["vlm"], None, adapters=False)
    from_vlm = fit(root, tmp_path, start["vlm"])
    assert from_vlm["losses"] == alone["losses"] and apart(from_vlm, alone) == 0
    config = json.loads(Path(from_vlm["out"], "config.json").read_text())
    assert config["model_type"] == "openvla" and config["text_config"]["rms_norm_eps"] == 1e-6
    wanted = {"views": ["image"], "use_proprio": False, "chunk_length": 1, "action_head": "autoregressive"}
    assert (
        load_base(checkpoint=from_vlm["out"], unnorm_key=None, num_images=1, **wanted).text.encode("pick")[-1] == 29871
    )


def test_without_augmentation_and_crop_the_pictures_are_shown_whole(root, start, tmp_path):
    module, _ = build_finetuning(root, start["published"], "autoregressive", **WHOLE, center_crop=False)
    pictures = torch.randint(0, 256, (1, 56, 56, 3), dtype=torch.uint8)
    assert module._cropped(pictures) is pictures


def test_bad_starts_are_refused(root, start, tmp_path):
    with pytest.raises(SettingError, match=r"phase\.module\.dtype is 'bfloat16'.*needs float32"):
        build_finetuning(root, start["published"], "autoregressive", **WHOLE, dtype="bfloat16")
    parts = prismatic.to_prismatic(load_file(start["published"] / "model.safetensors"))
    bare = write_prismatic(tmp_path / "bare", parts, {"model": IDS | SIZES})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        require_pretrained(bare, None, adapters=False)
    (bare / "checkpoints" / "latest-checkpoint.pt").unlink()
    with pytest.raises(CheckpointError, match="is no Prismatic checkpoint"):
        require_pretrained(bare, None, adapters=False)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "action_head"), [("vlm", "autoregressive"), ("published", "l1")])
def test_two_processes_train_what_one_trains_and_go_on(root, start, tmp_path, layout, action_head):
    """From "meta": neither process ever holds the model whole."""
    changes = {"action_head": action_head}
    one = fit(root, tmp_path / "one", start[layout], 3, None, changes)
    two = run_ranks(fit, root, tmp_path / "two", start[layout], 3, None, changes)[0]
    assert apart({"weights": one["weights"]}, two) < 1e-5
    assert torch.load(state_to_resume(tmp_path / "two") / "meta.pt", weights_only=True)["global_step"] == 3
    run_ranks(fit, root, tmp_path / "stopped", start[layout], 2, None, changes)
    state = state_to_resume(tmp_path / "stopped")
    again = run_ranks(fit, root, tmp_path / "stopped", start[layout], 3, state, changes)[0]
    assert apart(again, two) == 0
