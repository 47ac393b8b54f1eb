"""Reading checkpoints in the layout of the published OpenVLA-OFT ones (SPEC §1, §2).

A folder with config.json, model*.safetensors (one file, or shards with an index), action_head--*.pt,
proprio_projector--*.pt, dataset_statistics.json, preprocessor_config.json and the tokenizer's files.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rsd.checkpoint import CheckpointError
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.vit import ViTShape

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
HUB_TIMEOUT_S = 5.0
LISTED_KEYS = 8  # at most this many names in an error message

# Arguments of timm 0.9.10's models, by the part of the id before the weights' tag
TIMM_SHAPES: dict[str, dict[str, Any]] = {
    "vit_large_patch14_reg4_dinov2": {
        "patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0,
        "reg_tokens": 4, "layer_scale": True, "attention_pool": False,
    },
    "vit_so400m_patch14_siglip_224": {
        "patch_size": 14, "embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362,
        "reg_tokens": 0, "layer_scale": False, "attention_pool": True,
    },
}  # fmt: skip
TEXT_CONFIG_IGNORED = ("model_type", "torch_dtype", "dtype")  # the caller decides the dtype


def fetch(directory: Path, hub_id: str) -> None:
    """Download a checkpoint into `directory`, after one quick question whether the hub can be reached at all.

    The files arrive in `<directory>.part`, where an interrupted download goes on, and get their name when complete.

    Raises:
        CheckpointError: the hub cannot be reached; names what to download and where to put it.
    """
    partial = directory.with_name(directory.name + ".part")
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        with urlopen(f"{constants.ENDPOINT}/api/models/{hub_id}", timeout=HUB_TIMEOUT_S):  # raises OSError
            pass
        snapshot_download(hub_id, local_dir=partial, ignore_patterns=["*.py"])
    except (OSError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"no checkpoint in {directory}, and the hub could not be reached for {hub_id} ({error}); "
            f"download all files of {constants.ENDPOINT}/{hub_id} and put them into {directory}, "
            f"or set model.backbone.checkpoint to where they are"
        ) from error
    partial.rename(directory)


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON file that every checkpoint has."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {directory} is not a complete OpenVLA-OFT checkpoint")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy it again") from error


def read_norm_stats(directory: Path) -> dict[str, Any]:
    """Statistics of every data set of the model: dataset_statistics.json replaces config.json's norm_stats entirely."""
    if (directory / "dataset_statistics.json").is_file():
        return read_json(directory, "dataset_statistics.json")
    return read_json(directory, "config.json")["norm_stats"]


def read_architecture(
    directory: Path, action_head: dict[str, Tensor], proprio: dict[str, Tensor] | None
) -> Architecture:
    """Architecture from config.json, and the action and proprio widths from the side files."""
    config = read_json(directory, "config.json")
    if config.get("model_type") != "openvla" or not config.get("use_fused_vision_backbone"):
        raise CheckpointError(
            f"{directory / 'config.json'} describes model_type {config.get('model_type')!r} with "
            f"use_fused_vision_backbone {config.get('use_fused_vision_backbone')!r}; expected 'openvla' with True"
        )
    # timm_model_kwargs is the golden sets' extension that shrinks the two backbones; published files do not have it
    extra = config.get("timm_model_kwargs", [{}, {}])
    dino, siglip = (
        _vit_shape(name, size, kwargs)
        for name, size, kwargs in zip(config["timm_model_ids"], config["image_sizes"], extra, strict=True)
    )
    llm = {name: value for name, value in config["text_config"].items() if name not in TEXT_CONFIG_IGNORED}
    return Architecture(
        dino=dino,
        siglip=siglip,
        llm=llm,
        action_dim=action_head["model.fc2.weight"].shape[0],
        proprio_dim=None if proprio is None else proprio["fc1.weight"].shape[1],
    )


def _vit_shape(timm_id: str, image_size: int, extra: dict[str, Any]) -> ViTShape:
    name = timm_id.split(".")[0]
    if name not in TIMM_SHAPES:
        raise CheckpointError(f"vision backbone {timm_id!r} is not supported; expected one of {sorted(TIMM_SHAPES)}")
    unknown = sorted(set(extra) - set(TIMM_SHAPES[name]))
    if unknown:
        raise CheckpointError(f"timm_model_kwargs {unknown} are not supported; known: {sorted(TIMM_SHAPES[name])}")
    return ViTShape(image_size=image_size, **{**TIMM_SHAPES[name], **extra})


def side_file(directory: Path, component: str) -> Path | None:
    """The one file of a component, such as action_head--150000_checkpoint.pt; None when there is none."""
    found = sorted(directory.glob(f"{component}--*checkpoint.pt"))
    if len(found) > 1:
        raise CheckpointError(f"{directory} holds several {component} files: {[p.name for p in found]}; leave only one")
    return found[0] if found else None


def read_side_file(path: Path) -> dict[str, Tensor]:
    """State dict of a side file, without the `module.` that its training wrapper left in front of every name."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}); copy it again") from error
    return {name.removeprefix("module."): value for name, value in weights.items()}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the checkpoint; every shard that the index names must exist."""
    if (directory / INDEX_FILE).is_file():
        names = sorted(set(read_json(directory, INDEX_FILE)["weight_map"].values()))
    else:
        names = [SINGLE_FILE]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory} has no {', '.join(missing)}; copy the missing files there")
    return [directory / name for name in names]


def build_model(directory: Path, *, use_proprio: bool, device: str | torch.device, dtype: torch.dtype) -> OpenVLAOFT:
    """Build the network of a checkpoint folder and load its weights, strictly, one tensor at a time.

    Raises:
        CheckpointError: a file is missing or damaged, or names and shapes are not those of the architecture.
    """
    head_path = side_file(directory, "action_head")
    if head_path is None:
        raise CheckpointError(f"{directory} has no action_head--*_checkpoint.pt; the L1 head of OpenVLA-OFT is needed")
    side = {"action_head": read_side_file(head_path)}
    if use_proprio:
        proprio_path = side_file(directory, "proprio_projector")
        if proprio_path is None:
            raise CheckpointError(
                f"use_proprio is set but {directory} has no proprio_projector--*_checkpoint.pt; "
                "put the file there or set model.backbone.use_proprio=false"
            )
        side["proprio_projector"] = read_side_file(proprio_path)
    architecture = read_architecture(directory, side["action_head"], side.get("proprio_projector"))
    with torch.device("meta"):
        model = OpenVLAOFT(architecture)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for component, tensors in side.items():
        weights |= {f"{component}.{name}": value.to(device, dtype) for name, value in tensors.items()}
    for path in weight_files(directory):
        weights |= _read_shard(path, device, dtype)
    _check_names(directory, expected, {name: tuple(value.shape) for name, value in weights.items()})
    model.load_state_dict(weights, assign=True)
    # The rotary frequencies are no part of a checkpoint and were built without values
    model.language_model.model.rotary_emb = LlamaRotaryEmbedding(config=model.llm_config).to(device)
    return model.eval()


def _read_shard(path: Path, device: str | torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name).to(dtype) for name in file.keys()}
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is damaged ({error}); it has {size} bytes, copy it again") from error


def _check_names(directory: Path, expected: dict[str, Any], got: dict[str, Any]) -> None:
    """All differences in names and shapes in one error; block numbers are kept, so a missing layer is visible."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - got.keys())]
    problems += [f"unexpected {name}" for name in sorted(got.keys() - expected.keys())]
    problems += [
        f"{name} has shape {got[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & got.keys())
        if expected[name] != got[name]
    ]
    if problems:
        more = f"; and {len(problems) - LISTED_KEYS} more" if len(problems) > LISTED_KEYS else ""
        raise CheckpointError(f"{directory} is of another architecture: {'; '.join(problems[:LISTED_KEYS])}{more}")
