"""OpenVLA-shaped models with random weights: for measuring time and memory, and for trying commands without a download.

Nothing about their actions means anything. Scales keep the numbers of every layer near 1, in bfloat16 too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, processors
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rsd.errors import SettingError
from rsd.models.openvla.model import Architecture, OpenVLAOFT, outline
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.published import DINO, SIGLIP, TIMM_SHAPES
from rsd.models.openvla.published_writer import (
    DEFAULT_SHARD_BYTES,
    config_record,
    processor_record,
    shrunk,
    write_published,
)
from rsd.models.openvla.streaming import put
from rsd.models.openvla.vit import ViTShape
from rsd.space import Statistics

LLAMA_VOCAB = {"vocab_size": 32064, "pad_token_id": 32000}
# The rows that the published preprocessor_config.json holds: bfloat16's roundings for DINOv2 (SPEC §6)
PUBLISHED_MEANS = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
PUBLISHED_STDS = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))
SUITES = ("libero_spatial_no_noops", "libero_object_no_noops", "libero_goal_no_noops", "libero_10_no_noops")


def openvla_architecture(
    *, action_head: str = "l1", proprio_dim: int | None = 8, action_dim: int = 7, size: str = "7b"
) -> Architecture:
    """Shapes of OpenVLA-7B ("7b"), or of the same thing with a handful of narrow layers ("tiny")."""
    if size not in ("7b", "tiny"):
        raise SettingError(f"size {size!r} is unknown; expected '7b' or 'tiny'")
    dino, siglip = (dict(TIMM_SHAPES[name.split(".")[0]]) for name in (DINO, SIGLIP))
    llm: dict[str, Any] = dict(LLAMA_VOCAB)
    image_size = 224
    if size == "tiny":
        image_size = 56
        dino |= {"embed_dim": 48, "depth": 4, "num_heads": 4}
        siglip |= {"embed_dim": 36, "depth": 5, "num_heads": 3}
        llm |= {"hidden_size": 48, "intermediate_size": 136, "num_hidden_layers": 2}
        llm |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    return Architecture(
        dino=ViTShape(image_size=image_size, **dino),
        siglip=ViTShape(image_size=image_size, **siglip),
        llm=llm,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
        action_head=action_head,
    )


def random_tensor(name: str, shape: torch.Size, *, seed: int, device: str | torch.device) -> Tensor:
    """Weights of one name, bfloat16; a function of seed, name and shape (and of the device's generator)."""
    if len(shape) == 1:
        is_scale = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ffn.0.weight", "scale_factor"))
        value = float(is_scale or name.endswith("layernorm.weight"))
        return torch.full(shape, value, dtype=torch.bfloat16, device=device)
    digest = sum((index + 1) * ord(character) for index, character in enumerate(name))
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + digest)
    fan_in = math.prod(shape[1:])
    std = 0.02 if "embed" in name or "token" in name or "latent" in name else fan_in**-0.5
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * std


def random_model(
    architecture: Architecture, *, seed: int, device: str | torch.device, dtype: torch.dtype = torch.bfloat16
) -> OpenVLAOFT:
    """The network with random weights, made where they will live: nothing passes through the host."""
    model = outline(architecture)
    for name, value in list(model.state_dict().items()):
        put(model, name, random_tensor(name, value.shape, seed=seed, device=device).to(dtype))
    model.language_model.model.rotary_emb = LlamaRotaryEmbedding(config=model.llm_config).to(device)
    return model.eval()


def statistics(action_dim: int, proprio_dim: int) -> dict[str, Any]:
    """Made-up statistics of one data set in the published layout."""
    result: dict[str, Any] = {"num_transitions": 1000, "num_trajectories": 10}
    for part, dims in (("action", action_dim), ("proprio", proprio_dim)):
        result[part] = {
            name: [value] * dims
            for name, value in (("mean", 0.0), ("std", 0.3), ("min", -1.0), ("max", 1.0), ("q01", -0.9), ("q99", 0.9))
        }
    result["action"]["mask"] = [True] * (action_dim - 1) + [False]
    return result


def stand_in_tokenizer() -> bytes:
    """tokenizer.json with Llama's special ids and the pieces of OpenVLA's prompt; everything else goes by bytes."""
    pieces = {
        0: "<unk>", 1: "<s>", 2: "</s>", 512: "▁In", 29901: ":", 1724: "▁What", 3158: "▁action", 881: "▁should",
        278: "▁the", 19964: "▁robot", 2125: "▁take", 304: "▁to", 29973: "?", 3744: "Out", 29871: "▁",
    }  # fmt: skip
    pieces |= {3 + byte: f"<0x{byte:02X}>" for byte in range(256)}
    vocabulary = [(pieces.get(index, f"<unused{index}>"), 0.0 if index in pieces else -100.0) for index in range(32000)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return json.dumps(json.loads(tokenizer.to_str())).encode()


def write_random_checkpoint(
    directory: Path,
    *,
    architecture: Architecture,
    seed: int = 0,
    device: str = "cpu",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    step: int = 150_000,
    entry: Statistics | None = None,
) -> None:
    """A folder with the published names, shapes, dtypes and files, and random numbers in them.

    Args:
        entry: Statistics of a data set, under the name of every suite; made up when None, and then a tokenizer that was
            fitted to data does not fit.
    """
    shapes = {name: value.shape for name, value in outline(architecture).state_dict().items()}
    towers = list(zip((DINO, SIGLIP), architecture.transformers, strict=True))
    kwargs = [shrunk(shape, TIMM_SHAPES[name.split(".")[0]]) for name, shape in towers]
    sizes = [shape.image_size for shape in architecture.transformers]
    processor = PrismaticImageProcessor(sizes=sizes, means=PUBLISHED_MEANS, stds=PUBLISHED_STDS)
    entry = entry or statistics(architecture.action_dim, architecture.proprio_dim or 8)
    write_published(
        directory,
        config=config_record(architecture, [DINO, SIGLIP], kwargs) | {"random_weights_seed": seed},
        processor=processor_record(processor),
        statistics={suite: dict(entry) for suite in SUITES},
        shapes=shapes,
        tensor_of=lambda name: random_tensor(name, shapes[name], seed=seed, device=device),
        step=step,
        others={"tokenizer.json": stand_in_tokenizer()},
        shard_bytes=shard_bytes,
    )
