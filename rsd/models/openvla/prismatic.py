"""Prismatic's own layout of vision-language models and of OpenVLA, to and from the published one (SPEC §14).

A folder with config.json ({"model": …} of a VLM, {"vla": …} of an OpenVLA) and checkpoints/latest-checkpoint.pt, which
holds {"model": {"vision_backbone", "projector", "llm_backbone"}}, each a state dict. Names from openvla @ c8f03f4,
vla-scripts/extern/convert_openvla_weights_to_hf.py and prismatic/models/vlms/prismatic.py.

What surprises first: a VLM was trained with its vision towers frozen, and its checkpoint leaves them out. They are
timm's own weights then, whose DINOv2 is one for 518 pixels: its positions are interpolated to the model's 224.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from rsd.checkpoint import CheckpointError, check_finite, check_names, shapes_of
from rsd.errors import SettingError
from rsd.files import stranger
from rsd.models.openvla.model import Architecture, OpenVLAOFT, outline
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.published import DINO, SIGLIP, VISION_BACKBONES, architecture_of, read_json
from rsd.models.openvla.streaming import put
from rsd.record import EntryError, conform, shown
from rsd.settings import Count

CHECKPOINT_FILE = "checkpoints/latest-checkpoint.pt"
STEP_FILE = re.compile(r"step-(\d+)-epoch-(\d+)-loss=.*\.pt")  # of a training run: several lie beside each other
PARTS = ("vision_backbone", "projector", "llm_backbone")
TOWERS = {  # theirs → ours; a single one is called like our first
    "dino_featurizer.": "vision_backbone.featurizer.",
    "siglip_featurizer.": "vision_backbone.fused_featurizer.",
    "featurizer.": "vision_backbone.featurizer.",
}
PROJECTOR = {"projector.0.": "projector.fc1.", "projector.2.": "projector.fc2.", "projector.4.": "projector.fc3."}
LLM = {"llm.": "language_model."}
GAMMA, SCALE = ".gamma", ".scale_factor"  # timm's name of LayerScale's factors, and the published one
FREQUENCIES = "rotary_emb.inv_freq"  # older libraries stored them
VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
LLAMA_TOKENS, PAD, PADDED = 32000, 32000, 32064  # Llama-2's vocabulary, <PAD>, and both padded to a multiple of 64
LLAMA_EPS = 1e-5  # Llama-2's own; the published OpenVLA's config.json leaves it out, which says 1e-6
BASE_VLMS: dict[str, dict[str, Any]] = {  # prismatic/conf/models.py, of what an OpenVLA's config.json names alone
    "prism-dinosiglip-224px+7b": {"vision_backbone_id": "dinosiglip-vit-so-224px"},
    "prism-dinosiglip-224px-controlled+7b": {"vision_backbone_id": "dinosiglip-vit-so-224px"},
    "siglip-224px+7b": {
        "vision_backbone_id": "siglip-vit-so400m",
        "llm_backbone_id": "vicuna-v15-7b",
        "image_resize_strategy": "letterbox",
        "arch_specifier": "no-align+gelu-mlp",
    },
}
LLMS = ("llama2-7b-pure", "llama2-7b-chat", "vicuna-v15-7b")  # of one architecture
MEANS = {DINO: (0.485, 0.456, 0.406), SIGLIP: (0.5, 0.5, 0.5)}
STDS = {DINO: (0.229, 0.224, 0.225), SIGLIP: (0.5, 0.5, 0.5)}
TIMM_URL = "https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError)

Weights = dict[str, Tensor]


def to_published(parts: Mapping[str, Mapping[str, Tensor]]) -> Weights:
    """Prismatic's parts → the published names; the numbers are not touched.

    Raises:
        CheckpointError: a name is none of Prismatic's.
    """
    named = {"vision_backbone": TOWERS, "projector": PROJECTOR, "llm_backbone": LLM}
    result: Weights = {}
    for part, prefixes in named.items():
        for name, value in parts.get(part, {}).items():
            if name.endswith(FREQUENCIES):
                continue
            theirs = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
            if theirs is None:
                raise CheckpointError(
                    f"{part} of a Prismatic checkpoint has {shown(name)}, expected names that begin with "
                    f"{' or '.join(prefixes)}"
                )
            own = prefixes[theirs] + name.removeprefix(theirs)
            result[own.removesuffix(GAMMA) + SCALE if own.endswith(GAMMA) else own] = value
    return result


def to_prismatic(weights: Mapping[str, Tensor]) -> dict[str, Weights]:
    """The published names → Prismatic's parts, the inverse of `to_published`; heads that it does not know are left out.

    A model with a single vision tower is told by its projector, which has two layers instead of three.
    """
    fused = any(name.startswith("projector.fc3.") for name in weights)
    towers = {own: theirs for theirs, own in TOWERS.items() if (theirs == "featurizer.") != fused}
    named = {
        "vision_backbone": towers,
        "projector": {own: theirs for theirs, own in PROJECTOR.items()},
        "llm_backbone": {own: theirs for theirs, own in LLM.items()},
    }
    result: dict[str, Weights] = {part: {} for part in PARTS}
    for name, value in weights.items():
        for part, prefixes in named.items():
            for own, theirs in prefixes.items():
                if name.startswith(own):
                    name_there = theirs + name.removeprefix(own)
                    if name_there.endswith(SCALE):
                        name_there = name_there.removesuffix(SCALE) + GAMMA
                    result[part][name_there] = value
    return result


def with_vocabulary(weights: Mapping[str, Tensor], rows: int = PADDED) -> Weights:
    """The same with a vocabulary of `rows` tokens: cut at its end, or filled up.

    Rows that are added are the mean of the others, so that no logit of theirs is ever above all others.

    Raises:
        CheckpointError: it would lose tokens of Llama's own, or is filled up without having those.
    """
    result = dict(weights)
    for name in VOCABULARY:
        have = result[name]
        if rows != len(have) and min(rows, len(have)) < LLAMA_TOKENS:
            raise CheckpointError(
                f"{name} has {len(have)} tokens, which cannot become {rows}; Llama has {LLAMA_TOKENS}"
            )
        if rows > len(have):
            mean = have[:LLAMA_TOKENS].float().mean(dim=0).to(have.dtype)  # [H]
            have = torch.cat([have, mean.expand(rows - len(have), -1)])
        result[name] = have[:rows]
    return result


def read_config(directory: Path) -> dict[str, Any]:
    """The published layout's config.json of a Prismatic folder, without statistics.

    Beside the published ids "model" may have three entries of ours that change sizes, as small models for tests do:
    `text_config`, `timm_model_kwargs`, `image_sizes`.

    Raises:
        CheckpointError: it is missing, damaged, or of a model that is not supported.
    """
    record = read_json(directory, "config.json")
    where = f"{directory / 'config.json'}"
    try:
        if "model" not in record and "vla" in record:
            base = Path(conform(record["vla"], {"base_vlm": str}, where, "vla")["base_vlm"]).name
            model = BASE_VLMS.get(base, {"vision_backbone_id": base})
        else:
            kinds = {"model": dict[str, Any]}
            model = conform(record, kinds, where)["model"]
            conform(model, {"vision_backbone_id": str}, where, "model")
            optional: dict[str, Any] = {"llm_backbone_id": str, "arch_specifier": str, "image_resize_strategy": str}
            optional |= {"text_config": dict[str, Any], "timm_model_kwargs": list[dict[str, Any]]}
            optional |= {"image_sizes": list[Count]}
            conform(model, {name: kind for name, kind in optional.items() if name in model}, where, "model")
    except EntryError as error:
        raise CheckpointError(f"{error}; copy it again") from error
    vision, llm = model["vision_backbone_id"], model.get("llm_backbone_id", LLMS[0])
    strategy = model.get("image_resize_strategy", "resize-naive")
    if vision not in VISION_BACKBONES or llm not in LLMS:
        raise CheckpointError(
            f"{where} describes vision_backbone_id {shown(vision)} with llm_backbone_id {shown(llm)}; supported: "
            f"{sorted(VISION_BACKBONES)} with {list(LLMS)}"
        )
    names, sizes = VISION_BACKBONES[vision]
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": model.get("arch_specifier", "no-align+fused-gelu-mlp"),
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": strategy,
        "image_sizes": model.get("image_sizes", sizes),
        "llm_backbone_id": llm,
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": {},
        "output_projector_states": False,
        "pad_to_multiple_of": PADDED - LLAMA_TOKENS,
        "pad_token_id": PAD,
        "text_config": {
            "model_type": "llama",
            "pad_token_id": PAD,
            "rms_norm_eps": LLAMA_EPS,
            "torch_dtype": "bfloat16",
            "vocab_size": PADDED,
            **model.get("text_config", {}),
        },
        "timm_model_ids": names,
        "timm_override_act_layers": [None] * len(names),
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": len(names) > 1,
        "vision_backbone_id": vision,
        **({"timm_model_kwargs": model["timm_model_kwargs"]} if "timm_model_kwargs" in model else {}),
    }


def processor_of(config: Mapping[str, Any]) -> PrismaticImageProcessor:
    """The image processor that a Prismatic model is trained with: float32 means, unlike the published file's."""
    names = config["timm_model_ids"]
    return PrismaticImageProcessor(
        sizes=config["image_sizes"],
        means=[MEANS[name] for name in names],
        stds=[STDS[name] for name in names],
        strategy=config["image_resize_strategy"],
    )


def checkpoint_file(directory: Path) -> Path:
    """The file with the weights: checkpoints/latest-checkpoint.pt, or else the one of the highest step.

    Raises:
        CheckpointError: there is none.
    """
    latest = directory / CHECKPOINT_FILE
    if latest.is_file():
        return latest
    steps = {int(found[1]): path for path in latest.parent.glob("step-*.pt") if (found := STEP_FILE.match(path.name))}
    if not steps:
        raise CheckpointError(
            f"{latest} does not exist, nor any checkpoints/step-*.pt beside it; {directory} is no Prismatic checkpoint"
        )
    return steps[max(steps)]


def is_prismatic(directory: Path) -> bool:
    """Whether a folder has Prismatic's layout."""
    return (directory / "checkpoints").is_dir()


def read_parts(path: Path) -> dict[str, Weights]:
    """The parts of a checkpoint file, mapped and not read until they are used; nothing is unpickled but tensors.

    Raises:
        CheckpointError: it is damaged, or something else.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        line = str(error).partition("\n")[0]
        message = f"{path} cannot be read ({type(error).__name__}: {line}); copy it again"
        raise CheckpointError(stranger(path) or message) from error
    parts = record.get("model") if isinstance(record, dict) else None
    if not isinstance(parts, dict) or not {"projector", "llm_backbone"} <= parts.keys():
        raise CheckpointError(f"{path} holds no {{'model': {{'projector', 'llm_backbone', …}}}}, Prismatic's layout")
    return {part: dict(parts[part]) for part in PARTS if part in parts}


def timm_towers(directory: Path, config: Mapping[str, Any]) -> Weights:
    """The vision towers that a VLM's checkpoint leaves out, from timm's own files in its folder, published names.

    Raises:
        CheckpointError: a file is missing or damaged; the message says where it is to be had.
    """
    result: Weights = {}
    for name, own in zip(config["timm_model_ids"], ("featurizer", "fused_featurizer"), strict=False):
        path = directory / f"{name}.safetensors"
        if not path.is_file():
            raise CheckpointError(
                f"the checkpoint in {directory} leaves out its frozen vision towers, and {path} does not exist; "
                f"download {TIMM_URL.format(name=name)} and put it there under that name"
            )
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(stranger(path) or f"{path} is damaged ({error}); copy it again") from error
        for key, value in weights.items():
            key = key.removesuffix(GAMMA) + SCALE if key.endswith(GAMMA) else key
            result[f"vision_backbone.{own}.{key}"] = value
    return result


def resize_positions(positions: Tensor, num_patches: int) -> Tensor:
    """Learned positions of a square of patches, [1, n, C], for another square; bicubic with antialiasing, as timm."""
    old, new = (round(number**0.5) for number in (positions.shape[1], num_patches))
    if old == new:
        return positions
    grid = positions.float().view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(positions.dtype)


def read_weights(directory: Path, architecture: Architecture, config: Mapping[str, Any]) -> Weights:
    """All weights of a folder under the published names, of the architecture's names and shapes.

    Raises:
        CheckpointError: they are others, missing, damaged or not finite.
    """
    parts = read_parts(checkpoint_file(directory))
    weights = to_published(parts)
    if not parts.get("vision_backbone"):
        weights |= timm_towers(directory, config)
        for tower, shape in zip(("featurizer", "fused_featurizer"), architecture.transformers, strict=False):
            name = f"vision_backbone.{tower}.pos_embed"
            if name in weights:
                weights[name] = resize_positions(weights[name], shape.num_patches)
    if all(name in weights for name in VOCABULARY):
        weights = with_vocabulary(weights, architecture.llm["vocab_size"])
    check_names(directory, shapes_of(outline(architecture).state_dict()), shapes_of(weights))
    return weights


def load_prismatic(
    directory: Path, *, action_dim: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> OpenVLAOFT:
    """The network of a Prismatic folder, a VLM's or an OpenVLA's, decoded autoregressively.

    Args:
        action_dim: A.
        device: "meta" reads and compares names and shapes alone.

    Raises:
        CheckpointError: see `read_config` and `read_weights`.
    """
    config = read_config(directory)
    try:
        architecture = architecture_of(
            config,
            str(directory / "config.json"),
            action_head="autoregressive",
            action_dim=action_dim,
            proprio_dim=None,
        )
    except SettingError as error:
        raise CheckpointError(f"{error}; copy {directory / 'config.json'} again") from error
    weights = read_weights(directory, architecture, config)
    model = outline(architecture)
    if torch.device(device).type == "meta":
        return model
    for name, value in weights.items():
        copied = torch.empty_like(value, dtype=dtype, device=device).copy_(value)  # nothing stays bound to the file
        check_finite({name: copied}, f"{directory}, read as {dtype},")
        put(model, name, copied)
    model.renew_frequencies(device)
    return model
