"""Fine-tuning a (tiny, random) checkpoint in the published layout: what is trained, resuming, merging, exporting."""

import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from rsd.checkpoint import CheckpointError
from rsd.commands.configured import configured_policy
from rsd.commands.entry_point import run as run_command
from rsd.commands.error_lines import cause_of
from rsd.commands.use_command import use_command
from rsd.data.datamodules import FrameDataModule
from rsd.models.openvla import load_base
from rsd.models.openvla.lora import LoRAError, adapted_layers, add_lora, merge_lora
from rsd.models.openvla.pretrained import load_pretrained, save_pretrained
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
    state = torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["state_dict"]
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


def typed_for(root: Path, base: Path, where: Path) -> list[str]:
    """What a user types to fine-tune a tiny model on one view with short chunks."""
    return [
        "phase=oft_lora", "model=openvla_7b", f"model.backbone.checkpoint={base}", "model.image_size=56",
        f"data.root={root}", f"data.name={NAME}", f"data.unnorm_key={NAME}", f"paths.root='{where}'",
        "model.backbone.views=[image]", "chunk=4", "phase.max_steps=1", "phase.module.dtype=float32",
        "phase.module.rank=2", "phase.datamodule.num_workers=0", "phase.datamodule.batch_size=2",
    ]  # fmt: skip


def check_that_the_command_works(command: str, export: Path) -> None:
    """The configuration that it stands for gives a policy of the export; model=openvla_7b is told what it is."""
    python, script, *overrides = shlex.split(command)
    assert (python, script) == ("python", "eval.py") and "env=libero_spatial" in overrides
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", [*overrides, "model.backbone.dtype=float32"])
    assert Path(cfg.model.backbone.checkpoint).resolve() == export.resolve()
    spec = configured_policy(cfg, overrides).base.spec
    assert (spec.views, spec.chunk_length, spec.proprio_dim, spec.space.name) == (("image",), 4, 8, NAME)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        wrong = compose("eval", ["model=openvla_7b", "chunk=1", f"model.backbone.checkpoint='{export}'"])
    with pytest.raises(InstantiationException) as refused:
        instantiate(wrong.model.backbone)
    assert str(cause_of(refused.value)) == (
        f"{export} was trained for something else: action_head is 'l1', asked for 'autoregressive'; chunk_length is 4, "
        "asked for 1; use_proprio is True, asked for False; center_crop is True, asked for False; model=oft_lora "
        "chunk=4 loads what phase=oft_lora makes"
    )


@needs_peft
def test_the_printed_command_uses_the_export(tmp_path, root, base, monkeypatch, capsys):
    """phase=oft_lora as a user runs it, and its last line."""
    monkeypatch.syspath_prepend(CONF.parent)
    train = importlib.import_module("train")
    typed = typed_for(root, base["openvla"], tmp_path / "my root")
    monkeypatch.setattr("sys.argv", ["train.py", "-cp", str(CONF), *typed])
    run_command(train.main, train.CONFIG)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("use it with: ")]
    command = line.removeprefix("use it with: ").replace(f"--config-path {CONF} ", "")
    check_that_the_command_works(command, tmp_path / "my root" / "checkpoints" / "base" / f"openvla_7b-{NAME}-t4")


def test_the_command_for_an_export_works(tmp_path, root, base, monkeypatch):
    """The same without peft, of which only the adapters are made: an export of the network as it begins."""
    typed = typed_for(root, base["openvla"], tmp_path / "my root")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", typed, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    monkeypatch.setattr("sys.argv", ["train.py", *typed])
    export = Path(cfg.phase.checkpoint)
    command = use_command(cfg, export)
    HydraConfig.instance().cfg = None
    module, datamodule = instantiate(cfg.phase.module), instantiate(cfg.phase.datamodule)
    datamodule.setup()
    pretrained = load_pretrained(
        checkpoint=module.checkpoint, action_head="l1", action_dim=7, proprio_dim=8, device="cpu", dtype=torch.float32
    )
    statistics = {NAME: dict(datamodule.space.statistics)}
    save_pretrained(export, pretrained, statistics=statistics, step=1, training=module.trained_with(), others={})
    check_that_the_command_works(command, export)


def test_the_command_for_an_export_of_a_mixture_chooses_statistics(tmp_path, monkeypatch):
    typed = ["phase=oft_lora", "model=openvla_7b", "data=mixture", "data.members={b: 1, a: 1}"]
    (tmp_path / "dataset_statistics.json").write_text('{"b": {}, "a": {}}')
    for more, chosen in (([], "a"), (["data.unnorm_key=b"], "b")):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*typed, *more], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        words = shlex.split(use_command(cfg, tmp_path))
        HydraConfig.instance().cfg = None
        assert [word for word in words if "unnorm_key" in word] == [f"data.unnorm_key={chosen}"]


def test_an_oft_checkpoint_is_not_called_an_openvla_one(base):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", ["model=openvla_7b", "chunk=1", f"model.backbone.checkpoint={base['oft']}"])
    with pytest.raises(InstantiationException, match=r"holds action_head--\w+\.pt, .* is l1 or diffusion: set"):
        instantiate(cfg.model.backbone)


def test_a_checkpoint_without_action_head_names_the_decoders_that_are_possible(base):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", ["model=oft_spatial", f"model.backbone.checkpoint={base['openvla']}"])
    said = r"has no action_head.* 'autoregressive' \(an original OpenVLA: .*chunk=1\) or as 'discrete' .*put the file"
    with pytest.raises(InstantiationException, match=said):
        instantiate(cfg.model.backbone)


@pytest.mark.parametrize(
    ("phase", "views"),
    [("oft_lora", ["image", "wrist_image"]), ("openvla_lora", ["image"]), ("oft", ["image", "wrist_image"])],
)
def test_views_have_one_key_in_all_phases(phase, views):
    model = "oft_tiny" if phase == "oft" else "openvla_7b"
    for typed, expected in (([], views), (["model.backbone.views=[a]"], ["a"])):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [f"phase={phase}", f"model={model}", *typed])
        module, datamodule = cfg.phase.module, cfg.phase.datamodule
        for node in (cfg.model.backbone, module, datamodule, datamodule.collate):
            assert list(node.views) == expected
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["phase=head", "model.backbone.views=[a]"])
    assert list(cfg.phase.datamodule.cache.dataset.views) == ["a"]


@pytest.mark.parametrize("phase", ["oft_lora", "openvla_lora"])
def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path, base, phase):
    shutil.copytree(base["openvla"], tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"phase={phase}", "model=openvla_7b", f"model.backbone.checkpoint={tmp_path}/base"])
    with pytest.raises(InstantiationException, match=r"tokenizer\.json does not exist; copy the tokenizer files"):
        instantiate(cfg.phase.check)


def test_a_missing_tokenizer_is_said_before_the_weights_are_read(tmp_path, base):
    shutil.copytree(base["oft"], tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        load_base(checkpoint=tmp_path / "base", unnorm_key="libero_spatial", views=["image", "wrist_image"],
                  use_proprio=True, chunk_length=8)  # fmt: skip
