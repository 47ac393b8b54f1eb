"""Reading checkpoints in the layout of the published OpenVLA and OpenVLA-OFT ones (SPEC §1, §2, §10).

A folder with config.json, model*.safetensors (one file, or shards with an index), preprocessor_config.json,
dataset_statistics.json and the tokenizer's files; for OFT also action_head--*.pt and, as the model has them,
proprio_projector--*.pt, noisy_action_projector--*.pt and vision_backbone--*.pt (FiLM). What `scripts/convert.py join`
has made has those weights among the safetensors, under the network's names, and no side files.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HTTPError
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rsd.checkpoint import CheckpointError, check_finite, check_names, shapes_of
from rsd.errors import SettingError
from rsd.files import stranger, write_atomically
from rsd.models.openvla.action_heads import ACTION_HEADS
from rsd.models.openvla.model import Architecture, OpenVLAOFT, cast_weights, check_llm, outline
from rsd.models.openvla.streaming import put, read_headers, stream, tensors, weight_files
from rsd.models.openvla.vit import ViTShape
from rsd.record import EntryError, conform, read, shown
from rsd.settings import Count

HUB_TIMEOUT_S = 5.0
FETCHED = ".fetched"  # in a folder into which a checkpoint is downloaded: its name on the hub
# No network, a network that breaks off, and answers that are no hub's: a proxy's page, an address that is none
NO_HUB = (OSError, HTTPException, HTTPError, ValueError, KeyError)
MAX_VISION_LORA_ALPHA = 16  # the reference trains with alpha = min(rank, 16) and does not store it
CONFIG_ENTRIES: dict[str, Any] = {  # types of what config.json may hold
    "vision_backbone_id": str,
    "timm_model_ids": list[str],
    "image_sizes": list[Count],
    "timm_model_kwargs": list[dict[str, Any]],
    "use_fused_vision_backbone": bool,
    "llm_backbone_id": str,
}
TRAINING_FILE = "training.json"  # of our own fine-tuned models: what no other file of this layout says
TRAINED_WITH = ("action_head", "views", "use_proprio", "chunk_length", "phase")
WITHOUT_HEAD = (
    "without a head file it can be decoded as 'autoregressive' (an original OpenVLA: a model=openvla_…, chunk=1) or as "
    "'discrete' (OFT's tokens side by side): set model.backbone.action_head, or put the file there"
)
HEAD_NAMES = {"l1": "model.fc2.weight", "diffusion": "noise_predictor.mlp_resnet.fc2.weight"}

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
DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
# For a config.json without the derived fields: timm ids and pictures' sizes
VISION_BACKBONES: dict[str, tuple[list[str], list[int]]] = {
    "dinosiglip-vit-so-224px": ([DINO, SIGLIP], [224, 224]),
    "siglip-vit-so400m": ([SIGLIP], [224]),
}
TEXT_CONFIG_IGNORED = ("model_type", "torch_dtype", "dtype")  # the caller decides the dtype


def fetch(directory: Path, hub_id: str) -> None:
    """Download a checkpoint into `directory`, after one quick question whether the hub can be reached at all.

    The files arrive in `<directory>.part`, where an interrupted download goes on, and get their name when complete. A
    file there says of what it is the download; a folder without is somebody else's.

    Raises:
        CheckpointError: the hub cannot be reached; names what to download and where to put it. Or `<directory>.part` is
            there and is not this download.
    """
    partial = directory.with_name(directory.name + ".part")
    mark = partial / FETCHED
    if os.path.lexists(partial) and not (mark.is_file() and mark.read_bytes() == hub_id.encode()):
        raise CheckpointError(
            f"{partial} is there, and is no download of {hub_id} that was interrupted; move it away, or call it "
            f"{directory.name} if it is the whole checkpoint"
        )
    with _hub(directory, hub_id):
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        with urlopen(f"{constants.ENDPOINT}/api/models/{hub_id}", timeout=HUB_TIMEOUT_S):  # raises OSError
            pass
    partial.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, hub_id)
    with _hub(directory, hub_id):
        snapshot_download(hub_id, local_dir=partial, ignore_patterns=["*.py"])
    partial.rename(directory)
    (directory / FETCHED).unlink()


@contextmanager
def _hub(directory: Path, hub_id: str) -> Iterator[None]:
    try:
        yield
    except NO_HUB as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"no checkpoint in {directory}, and the hub could not be reached for {hub_id} ({said}); "
            f"download all files of {constants.ENDPOINT}/{hub_id} and put them into {directory}, "
            f"or set model.backbone.checkpoint to where they are"
        ) from error


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON file that every checkpoint has."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {directory} is not a complete OpenVLA-OFT checkpoint")
    return read(path, dict[str, Any], error=CheckpointError, remedy="copy it again")


def read_norm_stats(directory: Path) -> dict[str, Any]:
    """Statistics of every data set of the model: dataset_statistics.json replaces config.json's norm_stats entirely."""
    if (directory / "dataset_statistics.json").is_file():
        return read_json(directory, "dataset_statistics.json")
    return read_entries(directory, {"norm_stats": dict[str, Any]})["norm_stats"]


def read_entries(directory: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """config.json, which must have these entries; others that are read where they are there are checked, too."""
    config = read_json(directory, "config.json")
    kinds = kinds | {name: own for name, own in CONFIG_ENTRIES.items() if name in config}
    try:
        return conform(config, kinds, str(directory / "config.json"))
    except EntryError as error:
        raise CheckpointError(f"{error}; copy it again") from error


def read_architecture(
    directory: Path,
    *,
    action_head: str,
    action_dim: int,
    proprio_dim: int | None,
    film: bool = False,
) -> Architecture:
    """Architecture from config.json; what it does not say comes from side files and statistics, through the caller."""
    config, where = read_json(directory, "config.json"), str(directory / "config.json")
    if config.get("model_type") != "openvla":
        raise CheckpointError(f"{where} describes model_type {shown(config.get('model_type'))}, expected 'openvla'")
    config = read_entries(directory, {"text_config": dict[str, Any]})
    return architecture_of(
        config, where, action_head=action_head, action_dim=action_dim, proprio_dim=proprio_dim, film=film
    )


def architecture_of(
    config: dict[str, Any],
    where: str,
    *,
    action_head: str,
    action_dim: int,
    proprio_dim: int | None,
    film: bool = False,
) -> Architecture:
    """See `read_architecture`.

    Args:
        config: Contents of config.json, its entries' types checked.
        where: The file, for messages.
    """
    known_names, known_sizes = VISION_BACKBONES.get(config.get("vision_backbone_id", ""), (None, None))
    names, sizes = config.get("timm_model_ids", known_names), config.get("image_sizes", known_sizes)
    if names is None or sizes is None:
        raise CheckpointError(
            f"{where} has vision_backbone_id {config.get('vision_backbone_id')!r} and no "
            f"timm_model_ids; supported: {sorted(VISION_BACKBONES)}"
        )
    # timm_model_kwargs is the golden sets' extension that shrinks the two backbones; published files do not have it
    extra = config.get("timm_model_kwargs", [{}] * len(names))
    if not 0 < len(names) == len(sizes) == len(extra):
        raise CheckpointError(f"{where}: {len(names)} timm_model_ids with {len(sizes)} image_sizes; copy it again")
    try:
        llm = {name: value for name, value in config["text_config"].items() if name not in TEXT_CONFIG_IGNORED}
        check_llm(llm, where, "text_config")
    except EntryError as error:
        raise CheckpointError(f"{error}; copy it again") from error
    shapes = [_vit_shape(*arguments) for arguments in zip(names, sizes, extra, strict=True)]
    fused = config.get("use_fused_vision_backbone", len(shapes) > 1)
    if len(shapes) != 1 + fused:
        raise CheckpointError(
            f"{where} contradicts itself: use_fused_vision_backbone is {fused} with timm_model_ids "
            f"{names}; copy it again"
        )
    return Architecture(
        dino=shapes[0] if fused else None,
        siglip=shapes[-1],
        llm=llm,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
        action_head=action_head,
        film=film,
    )


def _vit_shape(timm_id: str, image_size: int, extra: dict[str, Any]) -> ViTShape:
    name = timm_id.split(".")[0]
    if name not in TIMM_SHAPES:
        raise CheckpointError(f"vision backbone {timm_id!r} is not supported; expected one of {sorted(TIMM_SHAPES)}")
    unknown = sorted(set(extra) - set(TIMM_SHAPES[name]))
    if unknown:
        raise CheckpointError(f"timm_model_kwargs {unknown} are not supported; known: {sorted(TIMM_SHAPES[name])}")
    try:
        made: ViTShape = conform({"image_size": image_size, **TIMM_SHAPES[name], **extra}, ViTShape, timm_id)
    except (EntryError, SettingError) as error:
        raise CheckpointError(f"timm_model_kwargs of config.json: {error}; copy it again") from error
    return made


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
        line = str(error).partition("\n")[0]
        message = f"{path} cannot be read ({type(error).__name__}: {line}); copy it again"
        raise CheckpointError(stranger(path) or message) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds a {type(weights).__name__}, expected weights by name; copy it again")
    check_finite(weights, str(path))
    return {name.removeprefix("module."): value for name, value in weights.items()}


def read_training(directory: Path) -> dict[str, Any] | None:
    """What a model that was fine-tuned here was trained with, see `TRAINING_FILE`; None for everybody else's.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (directory / TRAINING_FILE).is_file():
        return None
    record = read_json(directory, TRAINING_FILE)
    missing = [name for name in TRAINED_WITH if name not in record]
    if missing:
        raise CheckpointError(f"{directory / TRAINING_FILE} lacks {missing}; copy it again")
    return record


def joined_components(directory: Path) -> set[str]:
    """Components whose weights lie among the safetensors.

    Raises:
        CheckpointError: the safetensors are missing or damaged.
    """
    parts = {name.partition(".")[0] for name in read_headers(weight_files(directory))}
    return parts - {"vision_backbone", "projector", "language_model"}


def side_files(directory: Path, *, action_head: str, use_proprio: bool) -> dict[str, Path]:
    """Component → the side file that a model with this action_head has, but for those among the safetensors.

    Raises:
        CheckpointError: one is missing, is there and will not be used, or is there twice.
    """
    if action_head not in ACTION_HEADS:
        raise SettingError(f"action_head {action_head!r} is unknown; expected one of {sorted(ACTION_HEADS)}")
    wanted = {
        "action_head": action_head in HEAD_NAMES,
        "noisy_action_projector": action_head == "diffusion",
        "proprio_projector": use_proprio,
    }
    remedy = {
        "action_head": "the action_head of a model with a head is l1 or diffusion: set model.backbone.action_head, or "
        "choose a model=oft_…",
        "noisy_action_projector": "set model.backbone.action_head=diffusion if it was trained with one",
        "proprio_projector": "put the file there or set model.backbone.use_proprio=false",
    }
    result = {}
    for component, needed in wanted.items():
        path = side_file(directory, component)
        if needed and path is None and component not in joined_components(directory):
            advice = WITHOUT_HEAD if component == "action_head" else remedy[component]
            raise CheckpointError(
                f"{directory} has no {component}--*_checkpoint.pt, which action_head {action_head!r} with use_proprio "
                f"{use_proprio} needs; {advice}"
            )
        if not needed and path is not None:
            advice = remedy[component].replace("put the file there or set", "set").replace("=false", "=true")
            raise CheckpointError(
                f"{directory} holds {path.name}, but action_head {action_head!r} with use_proprio {use_proprio} would "
                f"leave it out, and the model was trained with it; {advice}"
            )
        if path is not None:
            result[component] = path
    return result


def side_weights(directory: Path, *, action_head: str, use_proprio: bool) -> dict[str, dict[str, Tensor]]:
    """Component → weights of the side files that a model with this action_head has.

    Raises:
        CheckpointError: see `side_files`; or one is of another kind.
    """
    files = side_files(directory, action_head=action_head, use_proprio=use_proprio)
    result = {component: read_side_file(path) for component, path in files.items()}
    if "action_head" in result and HEAD_NAMES[action_head] not in result["action_head"]:
        names = sorted(result["action_head"])[:2]
        raise CheckpointError(
            f"the action head in {directory} is not of action_head {action_head!r}: it holds {names}, …"
        )
    film = side_file(directory, "vision_backbone")
    if film is not None:
        weights = merge_lora(read_side_file(film))
        result["vision_backbone"] = {name.removeprefix("vision_backbone."): value for name, value in weights.items()}
    return result


def merge_lora(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with un-merged LoRA inside (`base_layer`, `lora_A.default`, `lora_B.default`) → plain weights.

    The scale is alpha / rank with the reference's alpha = min(rank, 16); weights without LoRA come back as they are.
    """
    merged = {}
    for name, value in weights.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            down, up = (weights[f"{stem}.{part}.default.weight"].float() for part in ("lora_A", "lora_B"))
            scale = min(len(down), MAX_VISION_LORA_ALPHA) / len(down)
            value = (value.float() + scale * up @ down).to(value.dtype)
        merged[name.replace(".base_layer.", ".")] = value
    return merged


def build_model(
    directory: Path,
    *,
    use_proprio: bool,
    device: str | torch.device,
    dtype: torch.dtype,
    action_head: str = "l1",
    action_dim: int | None = None,
) -> OpenVLAOFT:
    """Build the network of a checkpoint folder and load its weights, strictly, one tensor at a time.

    Args:
        device: "meta" compares all names and shapes and reads no weights.
        action_dim: Of a model without action head, from its statistics.

    Raises:
        CheckpointError: a file is missing or damaged, or names and shapes are not those of the architecture.
    """
    side = side_weights(directory, action_head=action_head, use_proprio=use_proprio)
    beside = {f"{component}.{name}": value for component, part in side.items() for name, value in part.items()}
    found = read_headers(weight_files(directory))
    if "vision_backbone" in side:  # the towers come from the side file, never from the shards
        found = {name: where for name, where in found.items() if not name.startswith("vision_backbone.")}
    if twice := sorted(beside.keys() & found.keys()):
        raise CheckpointError(f"{directory} has {twice[0]} in a side file and among the safetensors; leave only one")
    got = shapes_of(beside) | {name: shape for name, (_, shape) in found.items()}
    if action_head in HEAD_NAMES:
        action_dim = got.get(f"action_head.{HEAD_NAMES[action_head]}", (None,))[0]
    if action_dim is None:
        raise CheckpointError(
            f"{directory} has no head of action_head {action_head!r}, and nobody says how many dims an action has"
        )
    proprio = got.get("proprio_projector.fc1.weight")
    architecture = read_architecture(
        directory,
        action_head=action_head,
        action_dim=action_dim,
        proprio_dim=None if proprio is None else proprio[1],
        film="vision_backbone" in side or "vision_backbone.featurizer.blocks.0.scale.weight" in got,
    )
    model = outline(architecture)
    check_names(directory, shapes_of(model.state_dict()), got)
    if torch.device(device).type == "meta":
        cast_weights(model, dtype)
    else:
        for name, value in beside.items():
            put(model, name, value.to(device, dtype))
        stream(model, found, device=device, dtype=dtype)
        # The rotary frequencies are no part of a checkpoint and were built without values
        model.language_model.model.rotary_emb = LlamaRotaryEmbedding(config=model.llm_config).to(device)
    return model.eval()


def read_tensors(
    directory: Path, *, action_head: str, use_proprio: bool, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight of a model that `build_model` has built on "meta", one after the other.

    Raises:
        CheckpointError: one is damaged or not finite.
    """
    side = side_weights(directory, action_head=action_head, use_proprio=use_proprio)
    for component, part in side.items():
        yield from ((f"{component}.{name}", value.to(dtype)) for name, value in part.items())
    found = read_headers(weight_files(directory))
    if "vision_backbone" in side:  # FiLM: its towers come from the side file
        found = {name: where for name, where in found.items() if not name.startswith("vision_backbone.")}
    yield from tensors(found, device="cpu", dtype=dtype)
