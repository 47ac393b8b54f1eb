"""Fine-tuning a (tiny, random) checkpoint in the published layout: what is trained, resuming, merging, exporting."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from rsd.checkpoint import CheckpointError
from rsd.data.datamodules import FrameDataModule
from rsd.models.openvla import load_base
from rsd.models.openvla.lora import LoRAError, adapted_layers, add_lora, merge_lora
from rsd.models.openvla.published import build_model
from rsd.models.openvla.random_weights import openvla_architecture, random_model, write_random_checkpoint
from rsd.training.finetune import FinetuneModule
from rsd.training.oft import FrameCollate
from tests.data.demonstrations import NAME, write_dataset

CONF = Path(__file__).parents[2] / "conf"
PUBLISHED = ("oft_spatial", "oft_object", "oft_goal", "oft_10", "oft_combined", "openvla_7b", "openvla_spatial",
             "openvla_object", "openvla_goal", "openvla_10")  # fmt: skip
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra [peft]")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, [13, 11, 12])
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict[str, Path]:
    """An original OpenVLA and an OFT model."""
    folder = tmp_path_factory.mktemp("base")
    for kind, action_head, proprio in (("openvla", "autoregressive", None), ("oft", "l1", 8)):
        architecture = openvla_architecture(action_head=action_head, proprio_dim=proprio, size="tiny")
        write_random_checkpoint(folder / kind, architecture=architecture)
    return {kind: folder / kind for kind in ("openvla", "oft")}


def build(root: Path, checkpoint: Path, action_head: str = "l1", **changes) -> tuple[FinetuneModule, FrameDataModule]:
    token = action_head == "autoregressive"
    views, length = (("image",), 1) if token else (("image", "wrist_image"), 8)
    arguments = {
        "checkpoint": str(checkpoint), "hub_id": None, "action_head": action_head,
        "views": views, "use_proprio": not token,
        "chunk_length": length, "learning_rate": 1e-3, "decay_step": None, "warmup_steps": 0, "rank": 4,
        "image_augmentation": True, "gradient_checkpointing": False, "dtype": "float32", "seed": 0,
    }  # fmt: skip
    module = FinetuneModule(**{**arguments, **changes})
    datamodule = FrameDataModule(
        root=str(root), name=NAME, version="1.0.0", chunk_length=length, views=views, batch_size=4, num_workers=0,
        seed=0, collate=FrameCollate(image_size=56, views=views),
    )  # fmt: skip
    return module, datamodule


def trainer(folder: Path, steps: int, **changes) -> Trainer:
    return Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False, deterministic=True,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, check_val_every_n_epoch=None,
        callbacks=[ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)], **changes,
    )  # fmt: skip


def trained(module: FinetuneModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}


@needs_peft
def test_adapters_are_on_every_linear_layer_and_on_nothing_else():
    model = random_model(openvla_architecture(size="tiny"), seed=0, device="cpu", dtype=torch.float32)
    layers = adapted_layers(model)
    assert "vision_backbone.fused_featurizer.attn_pool.q" in layers and "projector.fc2" in layers
    assert not [name for name in layers if "lm_head" in name or "action_head" in name or "proprio" in name]
    # 4 and 5 blocks of 4 linear layers, 5 of the attention pool, 3 of the projector, 2 layers of 7
    assert len(layers) == 4 * 4 + 5 * 4 + 5 + 3 + 2 * 7
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, rank=4)
    names = {name.partition(".lora_")[0] for name, value in model.named_parameters() if ".lora_" in name}
    assert names == set(layers)
    free = [name for name, value in model.named_parameters() if value.requires_grad and ".lora_" not in name]
    assert free and all(name.startswith(("action_head.", "proprio_projector.")) for name in free)
    assert model.projector.fc1.scaling["default"] == 1.0  # alpha min(4, 16) over rank 4
    assert torch.equal(model.projector.fc1.get_base_layer().weight, before["projector.fc1.weight"])


@needs_peft
@pytest.mark.parametrize(("kind", "action_head"), [("openvla", "l1"), ("oft", "l1"), ("openvla", "autoregressive")])
def test_training_changes_what_it_should_and_the_export_loads_as_published(tmp_path, root, base, kind, action_head):
    module, datamodule = build(root, base[kind], action_head)
    run = trainer(tmp_path / "run", 3, accumulate_grad_batches=2)
    run.fit(module, datamodule)
    run.validate(module, datamodule, verbose=False)
    metrics = module.export(tmp_path / "export", {})
    assert 0 <= metrics["merge_difference"] < 1e-4 and metrics["l1"] > 0
    assert 0 <= metrics["gripper_accuracy"] <= 1 and 0 <= metrics["gripper_majority"] <= 1
    assert ("token_accuracy" in metrics) == (action_head == "autoregressive")

    start, end = (load_file(folder / "model.safetensors") for folder in (base[kind], tmp_path / "export"))
    assert start.keys() == end.keys()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert "language_model.model.layers.0.mlp.down_proj.weight" in changed
    assert not [name for name in changed if "lm_head" in name or "norm" in name or "embed" in name]
    assert json.loads((tmp_path / "export" / "dataset_statistics.json").read_text()).keys() == {NAME}
    if action_head == "l1":
        stored = torch.load(next((tmp_path / "export").glob("action_head--3_checkpoint.pt")), weights_only=True)
        reference = torch.load(next(base["oft"].glob("action_head--*")), weights_only=True)
        assert stored.keys() == reference.keys()

    views, length = module.views, module.chunk_length
    base = load_base(
        checkpoint=tmp_path / "export", unnorm_key=None, views=views, use_proprio=module.use_proprio,
        chunk_length=length, action_head=action_head, num_images=len(views),
    )  # fmt: skip
    inputs = base.prepare([datamodule.val[0]["observation"]])
    got, kept = (which.look(inputs).at("layer.2") for which in (base, module.base))
    assert (got - kept).abs().max() < 0.2 * kept.abs().max()  # the export is rounded to bfloat16


@needs_peft
def test_peft_reads_the_exported_adapters(tmp_path, root, base):
    from peft import PeftModel

    module, datamodule = build(root, base["oft"])
    run = trainer(tmp_path / "run", 2)
    run.fit(module, datamodule)
    module.export(tmp_path / "export", {})
    merged = load_file(tmp_path / "export" / "model.safetensors")
    adapter = tmp_path / "export" / "lora_adapter"
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4, "oft")

    start = build_model(base["oft"], use_proprio=True, device="cpu", dtype=torch.float32)
    before = start.projector.fc2.weight.clone()
    adapted = PeftModel.from_pretrained(start, adapter).merge_and_unload().state_dict()
    assert not torch.equal(adapted["projector.fc2.weight"], before)
    for name, value in merged.items():
        torch.testing.assert_close(adapted[name].bfloat16(), value, rtol=2**-7, atol=0)  # one rounding apart at most


@needs_peft
def test_stopping_and_resuming_equals_training_through(tmp_path, root, base):
    through, datamodule = build(root, base["openvla"])
    trainer(tmp_path / "a", 4).fit(through, datamodule)
    first, datamodule = build(root, base["openvla"])
    trainer(tmp_path / "b", 2).fit(first, datamodule)
    state = torch.load(tmp_path / "b" / "last.ckpt", weights_only=False)["state_dict"]
    assert state.keys() == trained(first).keys()  # not the frozen weights
    second, datamodule = build(root, base["openvla"], seed=0)
    trainer(tmp_path / "b", 4).fit(second, datamodule, ckpt_path=tmp_path / "b" / "last.ckpt")
    expected, got = trained(through), trained(second)
    assert all(torch.equal(expected[name], got[name]) for name in expected)

    other, datamodule = build(root, base["openvla"], use_proprio=False)
    with pytest.raises(CheckpointError, match=r"trained other weights than this one: 4 differ"):
        trainer(tmp_path / "c", 4).fit(other, datamodule, ckpt_path=tmp_path / "b" / "last.ckpt")


@needs_peft
def test_gradient_checkpointing_gives_the_same_weights(tmp_path, root, base):
    results = []
    for number, checkpointing in enumerate((False, True)):
        module, datamodule = build(root, base["openvla"], gradient_checkpointing=checkpointing)
        trainer(tmp_path / str(number), 2).fit(module, datamodule)
        assert module.model.language_model.model.layers[0].gradient_checkpointing is checkpointing
        results.append(trained(module))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-6, rtol=1e-5)


@needs_peft
def test_bfloat16_weights_with_float32_adapters(tmp_path, root, base):
    module, datamodule = build(root, base["openvla"], dtype="bfloat16")
    run = trainer(tmp_path / "run", 2, precision="bf16-mixed")
    run.fit(module, datamodule)
    assert {value.dtype for value in trained(module).values()} == {torch.float32}
    assert module.model.language_model.lm_head.weight.dtype == torch.bfloat16
    assert module.export(tmp_path / "export", {})["merge_difference"] < 0.1


@needs_peft
def test_a_merge_that_changes_the_outputs_is_refused():
    model = random_model(openvla_architecture(size="tiny"), seed=0, device="cpu", dtype=torch.float32)
    add_lora(model, rank=4)
    calls = iter([torch.ones(3), torch.ones(3) * 1.5])
    with pytest.raises(LoRAError, match=r"changed the outputs by 0\.5 of their largest value, expected at most 0\.1"):
        merge_lora(model, lambda: next(calls), tolerance=0.1)


def test_missing_peft_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    model = random_model(openvla_architecture(size="tiny"), seed=0, device="cpu", dtype=torch.float32)
    with pytest.raises(LoRAError, match=r"needs peft .*pip install -e '\.\[peft\]'"):
        add_lora(model, rank=4)


def test_bfloat16_weights_without_mixed_precision_are_refused(tmp_path, root, base):
    module, datamodule = build(root, base["oft"], dtype="bfloat16")
    with pytest.raises(ValueError, match=r"in torch.bfloat16 need a mixed precision, .* '32-true': set trainer=finet"):
        trainer(tmp_path, 1).fit(module, datamodule)


def test_recipes_that_make_no_sense_are_refused(root, base):
    with pytest.raises(ValueError, match="action_head 'diffusion' cannot be fine-tuned"):
        build(root, base["oft"], action_head="diffusion")
    with pytest.raises(ValueError, match=r"takes one image, no proprio and chunks of 1; got .* chunk_length 8"):
        build(root, base["openvla"], action_head="autoregressive", chunk_length=8)


def test_the_rate_is_a_tenth_after_the_decay_and_warms_up(root, base):
    module, _ = build(root, base["openvla"], decay_step=100)
    assert [module._rate_factor(step) for step in (0, 99, 100)] == [1.0, 1.0, 0.1]
    module, _ = build(root, base["openvla"], decay_step=100, warmup_steps=10)
    assert [module._rate_factor(step) for step in (0, 5, 10, 100)] == pytest.approx([0.1, 0.55, 1.0, 0.1])


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("phase", ["oft_lora", "openvla_lora"])
def test_every_published_model_composes(model, phase):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"phase={phase}", f"model={model}", "trainer=finetune"])
    OmegaConf.resolve(cfg)
    assert cfg.phase.module.hub_id == cfg.model.backbone.hub_id
    assert list(cfg.phase.datamodule.collate.views) == list(cfg.phase.module.views)
    assert cfg.trainer.gradient_clip_val is None
