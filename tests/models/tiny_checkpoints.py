"""Random checkpoints in the published layout, with FiLM too, and adapters for them, made without peft."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from rsd.models.openvla.model import outline
from rsd.models.openvla.random_weights import openvla_architecture, random_tensor, write_random_checkpoint

LLM = "language_model.model.layers.0."
LAYERS = {  # name → [out, in] at the tiny size
    f"{LLM}self_attn.q_proj": (48, 48),
    f"{LLM}mlp.up_proj": (136, 48),
    "projector.fc1": (336, 84),
    "vision_backbone.featurizer.blocks.0.attn.qkv": (144, 48),
}
FILM_LAYERS = {"featurizer.blocks.1.block.attn.qkv": (144, 48), "fused_featurizer.blocks.0.block.mlp.fc1": (134, 36)}


def random(folder: Path, kind: str = "l1", *, film: bool = False, seed: int = 0, dtype=None) -> Path:
    """A tiny checkpoint, with a plain FiLM file where `film`, and with weights of `dtype` where one is given."""
    head = {"l1": "l1", "diffusion": "diffusion", "openvla": "autoregressive"}[kind]
    architecture = openvla_architecture(action_head=head, proprio_dim=None if kind == "openvla" else 8, size="tiny")
    write_random_checkpoint(folder, architecture=architecture, seed=seed)
    if film:
        torch.save(film_weights(architecture, seed), folder / "vision_backbone--150000_checkpoint.pt")
    if dtype is not None:
        from safetensors.torch import load_file

        path = folder / "model.safetensors"
        save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path, {"format": "pt"})
    return folder


def film_weights(architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    shapes = {
        name: one.shape for name, one in outline(dataclasses.replace(architecture, film=True)).state_dict().items()
    }
    names = [name for name in shapes if name.startswith("vision_backbone.")]
    return {f"module.{name}": random_tensor(name, shapes[name], seed=seed, device="cpu") for name in names}


def adapter(folder: Path, layers: dict[str, tuple[int, int]], *, ranks=4, seed=0, prefix="", **changes) -> Path:
    """An adapter folder with random A and B (and magnitudes with use_dora)."""
    generator = torch.Generator().manual_seed(seed)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "bias": "none", "use_dora": False, "use_rslora": False}
    config |= changes
    weights = {}
    for name, (outputs, inputs) in layers.items():
        rank = ranks if isinstance(ranks, int) else ranks.get(name, 4)
        stem = f"base_model.model.{prefix}{name}"
        weights[f"{stem}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        weights[f"{stem}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) / rank**0.5
        if config["use_dora"]:
            weights[f"{stem}.lora_magnitude_vector"] = torch.rand(outputs, generator=generator) + 0.5
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder
