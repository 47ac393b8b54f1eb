"""The original OpenVLA, OpenVLA v0.1, and side files with LoRA inside."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.models.openvla.published import merge_lora
from rsd.models.openvla.text import WordText
from tests.models.openvla_tiny import LONG, SHORT, observation, plain_observation
from tests.models.published_copy import VIEWS, WORDS, llama_tokenizer, load


def original(published: Path) -> Path:
    """The golden base model as the original OpenVLA: no side files, statistics in config.json alone."""
    for path in (*published.glob("*checkpoint.pt"), published / "dataset_statistics.json"):
        path.unlink()
    return published


def load_original(directory: Path, **changes):
    key = next(iter(json.loads((directory / "config.json").read_text())["norm_stats"]))
    arguments = {"unnorm_key": key, "action_head": "autoregressive", "views": ["image"], "use_proprio": False}
    return load(directory, **{**arguments, "chunk_length": 1, **changes})


def test_the_original_openvla_generates_the_same_alone_and_in_a_batch(published):
    text = WordText.from_instructions([SHORT, LONG])
    base = load_original(original(published), text=text)
    observations = [observation(0, SHORT), observation(1, LONG)]
    inputs = base.prepare(observations)
    assert inputs["input_ids"].shape[1] == int(inputs["action_start"].max())  # nothing after the prompt
    together = base.look(inputs)
    assert together.chunk().shape == (2, 1, 7) and together.at("layer.1").shape == (2, 7, 48)
    for row, single in enumerate(observations):
        alone = base.look([single])
        assert torch.equal(alone.chunk()[0], together.chunk()[row])
        for point in ("layer.1", "layer.2"):
            torch.testing.assert_close(together.at(point)[row], alone.at(point)[0], atol=5e-5, rtol=0)


def test_the_original_openvla_sees_its_picture_at_the_first_token(published):
    """An empty cache object at step 0 must not hide the picture (openvla#346)."""
    base = load_original(original(published))
    black, white = (base.prepare([plain_observation(level)]) for level in (0, 255))
    states = [base.look(inputs).at("layer.2")[0, 0] for inputs in (black, white)]
    logits = [base.model.language_model.lm_head(state) for state in states]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_openvla_v01_has_one_tower_two_projector_layers_and_another_prompt(published, tmp_path):
    record = json.loads((original(published) / "config.json").read_text())
    record |= {
        "use_fused_vision_backbone": False,
        "vision_backbone_id": "siglip-vit-so400m",
        "llm_backbone_id": "vicuna-v15-7b",
        "timm_model_ids": record["timm_model_ids"][1:],
        "timm_model_kwargs": record["timm_model_kwargs"][1:],
        "image_sizes": record["image_sizes"][1:],
        "image_resize_strategy": "letterbox",
    }
    (published / "config.json").write_text(json.dumps(record))
    processor = json.loads((published / "preprocessor_config.json").read_text())
    for name in ("input_sizes", "interpolations", "means", "stds", "tvf_normalize_params"):
        processor[name] = processor[name][1:]
    (published / "preprocessor_config.json").write_text(json.dumps(processor | {"image_resize_strategy": "letterbox"}))
    weights = load_file(published / "model.safetensors")
    fused = "vision_backbone.fused_featurizer."
    single = {name.replace(fused, "vision_backbone.featurizer."): weights[name] for name in weights if fused in name}
    single |= {name: weights[name] for name in weights if name.startswith("language_model.")}
    width, vision = 48, weights[f"{fused}pos_embed"].shape[-1]
    for name, shape in (("fc1", (width, vision)), ("fc2", (width, width))):
        single |= {f"projector.{name}.weight": torch.randn(shape), f"projector.{name}.bias": torch.zeros(width)}
    save_file(single, published / "model.safetensors")
    llama_tokenizer(published)
    base = load_original(published, text=None)
    prompt = base.text.to_json()["prompt"]
    assert prompt.startswith("A chat between a curious user")
    assert prompt.endswith("USER: What action should the robot take to {instruction}? ASSISTANT:")
    assert base.processor.strategy == "letterbox"
    inputs = base.prepare([observation()])
    assert inputs["pixel_values"].shape[1] == 3
    assert torch.isfinite(base.look(inputs).at("layer.2")).all()
    with pytest.raises(ValueError, match="a single vision tower takes one picture"):
        load_original(published, text=WORDS, views=VIEWS)


def test_unmerged_lora_in_a_vision_side_file_is_merged():
    """Rank 2, alpha 2 (the reference's alpha is min(rank, 16)): plain + B A; and rank 32: half of it."""
    for rank, scale in ((2, 1.0), (32, 0.5)):
        down, up, base = torch.randn(rank, 4), torch.randn(3, rank), torch.randn(3, 4)
        stem = "vision_backbone.featurizer.blocks.0.block.attn.qkv"
        stored = {
            f"{stem}.base_layer.weight": base,
            f"{stem}.base_layer.bias": torch.ones(3),
            f"{stem}.lora_A.default.weight": down,
            f"{stem}.lora_B.default.weight": up,
            "other": torch.zeros(1),
        }
        merged = merge_lora(stored)
        assert set(merged) == {f"{stem}.weight", f"{stem}.bias", "other"}
        torch.testing.assert_close(merged[f"{stem}.weight"], base + scale * up @ down)
