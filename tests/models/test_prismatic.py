"""Prismatic's layout: names there and back, the padded vocabulary, towers of timm's, and the same logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import prismatic
from rsd.models.openvla.random_weights import openvla_architecture, random_model
from rsd.models.openvla.token_loss import token_rows

TINY = openvla_architecture(size="tiny", action_head="autoregressive", proprio_dim=None)
SIZES = {
    "image_sizes": [56, 56],
    "timm_model_kwargs": [
        {"embed_dim": 48, "depth": 4, "num_heads": 4},
        {"embed_dim": 36, "depth": 5, "num_heads": 3},
    ],
    "text_config": {name: value for name, value in TINY.llm.items() if name != "vocab_size"} | {"rms_norm_eps": 1e-6},
}
IDS = {
    "model_id": "prism-dinosiglip-224px+7b",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "llama2-7b-pure",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "image_resize_strategy": "resize-naive",
}
# of openvla @ c8f03f4, convert_openvla_weights_to_hf.py: theirs → ours
NAMES = {
    ("vision_backbone", "dino_featurizer.blocks.3.ls1.gamma"): "vision_backbone.featurizer.blocks.3.ls1.scale_factor",
    ("vision_backbone", "dino_featurizer.reg_token"): "vision_backbone.featurizer.reg_token",
    ("vision_backbone", "siglip_featurizer.attn_pool.latent"): "vision_backbone.fused_featurizer.attn_pool.latent",
    ("projector", "projector.0.weight"): "projector.fc1.weight",
    ("projector", "projector.2.bias"): "projector.fc2.bias",
    ("projector", "projector.4.weight"): "projector.fc3.weight",
    ("llm_backbone", "llm.model.layers.1.mlp.up_proj.weight"): "language_model.model.layers.1.mlp.up_proj.weight",
    ("llm_backbone", "llm.lm_head.weight"): "language_model.lm_head.weight",
}


@pytest.fixture(scope="module")
def model():
    return random_model(TINY, seed=0, device="cpu", dtype=torch.float32)


def write(directory: Path, parts, record=None, file="latest-checkpoint.pt") -> Path:
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(record or {"model": IDS | SIZES}))
    torch.save({"model": parts}, directory / "checkpoints" / file)
    return directory


def logits(model, rows: int = 32000):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 6, 56, 56, generator=generator)
    ids, labels = token_rows([[1, 512, 29871], [1, 512, 278, 29871]], torch.linspace(-1, 1, 14).view(2, 1, 7), 32000)
    with torch.no_grad():
        return model.token_logits(pixels, ids, labels)[0][:, :rows]


def test_every_name_goes_there_and_back(model):
    weights = model.state_dict()
    parts = prismatic.to_prismatic(weights)
    for (part, theirs), ours in NAMES.items():
        assert parts[part][theirs] is weights[ours]
    assert prismatic.to_published(parts).keys() == weights.keys()
    assert sum(map(len, parts.values())) == len(weights)


def test_a_single_tower_is_called_featurizer():
    weights = {"vision_backbone.featurizer.norm.bias": torch.zeros(1), "projector.fc1.bias": torch.zeros(1)}
    parts = prismatic.to_prismatic(weights)
    assert list(parts["vision_backbone"]) == ["featurizer.norm.bias"] and list(parts["projector"]) == [
        "projector.0.bias"
    ]
    assert prismatic.to_published(parts).keys() == weights.keys()


def test_the_loaded_model_has_the_logits_of_the_one_written(model, tmp_path):
    parts = prismatic.to_prismatic(model.state_dict())
    parts["llm_backbone"]["llm.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)  # of older libraries
    loaded = prismatic.load_prismatic(write(tmp_path / "run", parts), action_dim=7)
    assert torch.equal(logits(loaded), logits(model))
    outlined = prismatic.load_prismatic(tmp_path / "run", action_dim=7, device="meta")
    assert {value.device.type for value in outlined.state_dict().values()} == {"meta"}


def test_a_vocabulary_that_is_not_padded_is_filled_with_rows_that_never_win(model, tmp_path):
    cut = prismatic.with_vocabulary(model.state_dict(), 32001)
    assert len(cut["language_model.lm_head.weight"]) == 32001
    loaded = prismatic.load_prismatic(write(tmp_path / "run", prismatic.to_prismatic(cut)), action_dim=7)
    all_logits = logits(loaded, 32064)
    assert torch.equal(all_logits[:, :32000], logits(model)) and all_logits.shape[1] == 32064
    assert (all_logits.argmax(dim=1) < 32001).all()
    mean = all_logits[:, :32000].mean(dim=1)
    assert torch.allclose(all_logits[:, 32063], mean, atol=1e-4)
    with pytest.raises(CheckpointError, match="has 32064 tokens, which cannot become 31999; Llama has 32000"):
        prismatic.with_vocabulary(model.state_dict(), 31999)


def test_a_vlm_has_the_towers_of_timm(model, tmp_path):
    """Its checkpoint leaves them out; DINOv2's positions are those of a larger picture."""
    weights = model.state_dict()
    parts = prismatic.to_prismatic(weights)
    towers = parts.pop("vision_backbone")
    directory = write(tmp_path / "vlm", parts)
    with pytest.raises(CheckpointError, match=r"dinov2\.lvd142m\.safetensors does not exist; download"):
        prismatic.load_prismatic(directory, action_dim=7)
    large = torch.randn(1, 36, 48)
    for name, theirs in zip(prismatic.VISION_BACKBONES["dinosiglip-vit-so-224px"][0], prismatic.TOWERS, strict=False):
        own = {key.removeprefix(theirs): value for key, value in towers.items() if key.startswith(theirs)}
        save_file(own | ({"pos_embed": large} if "dino" in theirs else {}), directory / f"{name}.safetensors")
    loaded = prismatic.load_prismatic(directory, action_dim=7).state_dict()
    positions = "vision_backbone.featurizer.pos_embed"
    assert all(torch.equal(loaded[name], value) for name, value in weights.items() if name != positions)
    grid = large.view(1, 6, 6, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    assert torch.allclose(loaded[positions], expected)


def test_the_file_of_the_highest_step_is_taken(model, tmp_path):
    parts = prismatic.to_prismatic(model.state_dict())
    directory = write(tmp_path / "run", parts, file="step-002500-epoch-01-loss=0.9.pt")
    (directory / "checkpoints" / "step-000100-epoch-00-loss=inf.pt").touch()
    assert prismatic.checkpoint_file(directory).name == "step-002500-epoch-01-loss=0.9.pt"


def test_the_published_configuration_of_the_7b_models(tmp_path):
    for number, record in enumerate(({"model": IDS}, {"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}})):
        config = prismatic.read_config(write(tmp_path / str(number), {}, record))
        assert config["text_config"]["vocab_size"] == 32064 and config["text_config"]["rms_norm_eps"] == 1e-5
        assert config["image_sizes"] == [224, 224] and config["use_fused_vision_backbone"]
    assert prismatic.processor_of(config).sizes == (224, 224)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"model": IDS | {"llm_backbone_id": "phi-2-3b"}}, "llm_backbone_id 'phi-2-3b'; supported"),
        ({"vla": {"base_vlm": "clip-224px+7b"}}, "vision_backbone_id 'clip-224px.7b'"),
        ({"model": {"model_id": "x"}}, "vision_backbone_id"),
        ({"other": 1}, "model"),
    ],
)
def test_other_models_are_refused_by_name(record, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        prismatic.read_config(write(tmp_path / "run", {}, record))


def test_damage_is_told(model, tmp_path):
    parts = prismatic.to_prismatic(model.state_dict())
    lacking = write(tmp_path / "lacking", parts | {"projector": {"projector.0.bias": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match=r"is of another architecture: missing projector\.fc1\.weight"):
        prismatic.load_prismatic(lacking, action_dim=7)
    strange = write(tmp_path / "strange", parts | {"projector": {"proj.weight": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match=r"expected names that begin with projector\.0\."):
        prismatic.load_prismatic(strange, action_dim=7)
    (lacking / prismatic.CHECKPOINT_FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointError, match="cannot be read"):
        prismatic.load_prismatic(lacking, action_dim=7)
    (lacking / prismatic.CHECKPOINT_FILE).unlink()
    with pytest.raises(CheckpointError, match="is no Prismatic checkpoint"):
        prismatic.load_prismatic(lacking, action_dim=7)
    torch.save([1], lacking / prismatic.CHECKPOINT_FILE)
    with pytest.raises(CheckpointError, match="Prismatic's layout"):
        prismatic.load_prismatic(lacking, action_dim=7)
    weights = dict(model.state_dict())
    weights["projector.fc1.bias"] = torch.full_like(weights["projector.fc1.bias"], torch.nan)
    broken = write(tmp_path / "broken", prismatic.to_prismatic(weights))
    with pytest.raises(CheckpointError, match=r"NaN or infinite: projector\.fc1\.bias"):
        prismatic.load_prismatic(broken, action_dim=7)
