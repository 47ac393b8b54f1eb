"""Writing checkpoints in the published layout: sharded safetensors with an index, side files, statistics (SPEC §1, §2).

A folder appears whole or not at all. Side files keep the `module.` that the reference's training wrapper left in front
of every name, the action head is bfloat16 on disk and the proprio projector float32, as in the published ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsd.checkpoint import CheckpointError, check_finite, write_pickled, write_weights
from rsd.models.openvla.model import Architecture
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.streaming import INDEX_FILE, SINGLE_FILE
from rsd.models.openvla.vit import ViTShape

SIDE_DTYPES = {
    "action_head": torch.bfloat16,
    "proprio_projector": torch.float32,
    "noisy_action_projector": torch.float32,
}
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000}  # generation_config.json
DEFAULT_SHARD_BYTES = 5 * 10**9
BICUBIC = 3  # in torchvision's and PIL's numbering
BFLOAT16_BYTES = 2


def split_names(names: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Names of a model's weights → those of the shards, and those of each side file, component included."""
    side = {part: [name for name in names if name.startswith(f"{part}.")] for part in SIDE_DTYPES}
    beside = {name for part in side.values() for name in part}
    return [name for name in names if name not in beside], {part: found for part, found in side.items() if found}


def plan_shards(shapes: Mapping[str, torch.Size], shard_bytes: int) -> list[list[str]]:
    """Names in order, cut so that no shard holds more than shard_bytes of bfloat16 unless a single tensor does."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = BFLOAT16_BYTES * shape.numel()
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def write_published(
    directory: Path,
    *,
    config: dict[str, Any],
    processor: dict[str, Any],
    statistics: dict[str, Any],
    shapes: Mapping[str, torch.Size],
    tensor_of: Callable[[str], Tensor],
    step: int,
    others: Mapping[str, bytes] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a checkpoint folder.

    Args:
        config, processor: Contents of config.json and preprocessor_config.json.
        statistics: Contents of dataset_statistics.json.
        shapes: Names and shapes of all weights of the model, side components included.
        tensor_of: Gives the tensor of a name, when its shard's turn has come.
        step: In the names of the side files.
        others: Further files, such as the tokenizer's; a name may begin with one folder.
        shard_bytes: Largest shard.

    Raises:
        CheckpointError: the folder exists already, or weights are NaN or infinite; there is no folder then.
    """
    if directory.exists():
        raise CheckpointError(f"{directory} exists already; move it away or choose another folder")
    partial = directory.with_name(directory.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, record in (
        ("config.json", config),
        ("preprocessor_config.json", processor),
        ("dataset_statistics.json", statistics),
        ("generation_config.json", GENERATION),
    ):
        (partial / name).write_text(json.dumps(record, indent=2) + "\n")
    for name, content in (others or {}).items():
        (partial / name).parent.mkdir(exist_ok=True)
        (partial / name).write_bytes(content)
    main, side = split_names(list(shapes))
    for part, names in side.items():
        weights = {f"module.{name.removeprefix(f'{part}.')}": tensor_of(name) for name in names}
        weights = {name: value.detach().to("cpu", SIDE_DTYPES[part]) for name, value in weights.items()}
        check_finite(weights, f"the {part} that was to be written to {directory}")
        write_pickled(weights, partial / f"{part}--{step}_checkpoint.pt")
    shards = plan_shards({name: shapes[name] for name in main}, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = shard_name(number, len(shards)) if len(shards) > 1 else SINGLE_FILE
        weights = {name: tensor_of(name).detach().to("cpu", torch.bfloat16) for name in names}
        check_finite(weights, f"the model that was to be written to {directory}")
        write_weights(weights, partial / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(BFLOAT16_BYTES * shapes[name].numel() for name in main)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (partial / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    os.rename(partial, directory)


def shard_name(number: int, count: int) -> str:
    """Name of the shard with this number, counted from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def config_record(architecture: Architecture, timm_ids: list[str], timm_kwargs: list[dict[str, Any]]) -> dict[str, Any]:
    """config.json of a model with two vision transformers; timm_kwargs shrinks them and is left out when empty."""
    extension = {"timm_model_kwargs": timm_kwargs} if any(timm_kwargs) else {}
    return extension | {
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [shape.image_size for shape in architecture.transformers],
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": {},
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {"model_type": "llama", "torch_dtype": "bfloat16", **architecture.llm},
        "timm_model_ids": timm_ids,
        "timm_override_act_layers": [None] * len(timm_ids),
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }


def processor_record(processor: PrismaticImageProcessor) -> dict[str, Any]:
    """preprocessor_config.json of an image processor."""
    sizes = [[size, size] for size in processor.sizes]
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": processor.strategy,
        "input_sizes": [[3, *size] for size in sizes],
        "interpolations": ["bicubic"] * len(sizes),
        "means": [list(mean) for mean in processor.means],
        "stds": [list(std) for std in processor.stds],
        "tvf_crop_params": [{"output_size": size} for size in sizes],
        "tvf_do_letterbox": processor.strategy == "letterbox",
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(mean), "std": list(std)}
            for mean, std in zip(processor.means, processor.stds, strict=True)
        ],
        "tvf_resize_params": [
            {"antialias": True, "interpolation": BICUBIC, "max_size": None, "size": size} for size in sizes
        ],
        "use_fused_vision_backbone": len(sizes) > 1,
    }


def shrunk(shape: ViTShape, published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in which a tower differs from the published one of its timm id."""
    return {name: getattr(shape, name) for name, value in published.items() if getattr(shape, name) != value}
