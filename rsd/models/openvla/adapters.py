"""Low-rank adapters as peft writes them, merged into stored weights without peft and without a model (SPEC §14).

    LoRA    W + s·B·A       s = alpha / rank, or alpha / √rank with rsLoRA (arXiv 2312.03732)
    DoRA    m ∘ V / ‖V‖     V = W + s·B·A, ‖V‖ the length of each output's row (arXiv 2402.09353)

Ranks and alphas may differ from layer to layer. Whatever else peft can do is refused by name before anything is read of
the weights. Products and sums are taken in float32; only the result is rounded to the weights' own dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rsd.checkpoint import LISTED_NAMES, CheckpointError, Shape, check_finite
from rsd.files import stranger
from rsd.models.openvla.lora import MAX_ALPHA
from rsd.models.openvla.stored import ADAPTER_FOLDER, FILM, Weights
from rsd.record import read, shown
from rsd.settings import Count

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."  # what peft puts in front of a layer's name
PARTS = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector": "magnitude"}
FILM_NAMES = f"{FILM}.{FILM}."  # the reference wraps the towers once more for FiLM
# What an adapter may ask for beside rank, alpha, DoRA and rsLoRA, with the value at which it asks for nothing
NOTHING: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "use_bdlora": (None, False),
    "layer_replication": (None, []),
    "init_lora_weights": (True, False, "gaussian", None),  # the others change the weights that they start from
}


class _Config(TypedDict):
    """adapter_config.json."""

    peft_type: str
    r: Count
    lora_alpha: float
    rank_pattern: NotRequired[dict[str, Count] | None]
    alpha_pattern: NotRequired[dict[str, float] | None]
    use_dora: NotRequired[bool]
    use_rslora: NotRequired[bool]


@dataclass(frozen=True)
class Adapter:
    """Of one linear layer.

    Attributes:
        down, up: A [r, in] and B [out, r], float32.
        scale: Of their product.
        magnitude: Of each output, [out], with DoRA; None without.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None

    @property
    def shape(self) -> Shape:
        """Of the weights that it belongs to, [out, in]."""
        return len(self.up), self.down.shape[1]

    def merged(self, weight: Tensor) -> Tensor:
        """The layer's weights with it, float32."""
        value = weight.float() + self.scale * (self.up @ self.down)
        if self.magnitude is None:
            return value
        return value * (self.magnitude / torch.linalg.vector_norm(value, dim=1))[:, None]

    def beside(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """What the layer says with it, computed as in training, beside the frozen weights and not merged into them."""
        down, up = self.down.to(x), self.up.to(x)
        linear = nn.functional.linear(x, layer.weight) + self.scale * (x @ down.T @ up.T)
        if self.magnitude is not None:
            rows = torch.linalg.vector_norm(layer.weight.float() + self.scale * (up @ down).float(), dim=1)
            linear = linear * (self.magnitude.to(rows) / rows).to(x)
        return linear if layer.bias is None else linear + layer.bias


@dataclass(frozen=True)
class Adapters:
    """What an adapter folder holds: layer's name → its adapter, FiLM's towers apart.

    Attributes:
        directory: Where they lie.
        layers: Of the network, under its names.
        film: Of FiLM's towers, as their side file names them (`featurizer.blocks.0.block.…`).
    """

    directory: Path
    layers: dict[str, Adapter]
    film: dict[str, Adapter]

    def check(self, shapes: dict[str, Shape], where: Path) -> None:
        """See that every adapter finds its layer.

        Raises:
            CheckpointError: a layer is not there, or of another shape.
        """
        wrong = [
            f"{name}.weight is {'not there' if have is None else f'of shape {have}'}, expected {one.shape}"
            for name, one in self.layers.items()
            if (have := shapes.get(f"{name}.weight")) != one.shape
        ]
        if wrong:
            more = f"; and {len(wrong) - LISTED_NAMES} more" if len(wrong) > LISTED_NAMES else ""
            raise CheckpointError(
                f"{self.directory} was not made for {where}: {'; '.join(wrong[:LISTED_NAMES])}{more}; give the "
                "checkpoint that it was trained on"
            )


def adapter_folder(directory: Path) -> Path:
    """The folder with adapter_config.json: this one, or lora_adapter/ in it.

    Raises:
        CheckpointError: neither is one.
    """
    for folder in (directory, directory / ADAPTER_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise CheckpointError(f"{directory} holds no adapter: neither {CONFIG_FILE} nor {ADAPTER_FOLDER}/{CONFIG_FILE}")


def read_adapters(directory: Path) -> Adapters:
    """Read an adapter folder.

    Raises:
        CheckpointError: it is missing or damaged, or asks for what cannot be merged here; the message names what.
    """
    folder = adapter_folder(directory)
    path = folder / CONFIG_FILE
    config = read(path, _Config, error=CheckpointError, remedy="copy it again")
    if config["peft_type"] != "LORA":
        raise CheckpointError(f"{path}: peft_type is {shown(config['peft_type'])}, expected 'LORA'; merge it with peft")
    for name, nothing in NOTHING.items():
        if name in config and config[name] not in nothing:  # type: ignore[literal-required]
            value = config[name]  # type: ignore[literal-required]
            raise CheckpointError(f"{path}: {name} is {shown(value)}, which is not merged here; merge it with peft")
    parts = _parts(folder / WEIGHTS_FILE)
    layers = {name: _adapter(name, found, config, folder) for name, found in sorted(parts.items())}
    film = {name: own for name in layers if (own := _film_name(name)) is not None}
    return Adapters(
        directory=folder,
        layers={name: one for name, one in layers.items() if name not in film},
        film={own: layers[name] for name, own in film.items()},
    )


def _film_name(name: str) -> str | None:
    """A layer of FiLM's towers as its side file names it, without the prefix; None of other layers."""
    if name.startswith(FILM_NAMES):
        return name.removeprefix(FILM_NAMES)
    return name.removeprefix(f"{FILM}.") if name.startswith(f"{FILM}.") and ".block." in name else None


def _parts(path: Path) -> dict[str, Weights]:
    """Layer → down, up and magnitude."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; copy the whole folder")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(stranger(path) or f"{path} is damaged ({error}); copy it again") from error
    check_finite(weights, str(path))
    found: dict[str, Weights] = {}
    strange = []
    for name, value in weights.items():
        layer, marker, part = name.removeprefix(BEFORE).rpartition(".lora_")
        part = PARTS.get(f"lora_{part}".replace(".default", "").replace("_vector.weight", "_vector"), "")
        if not (marker and part and name.startswith(BEFORE) and value.dim() == (1 if part == "magnitude" else 2)):
            strange.append(f"{name} {tuple(value.shape)}")
        found.setdefault(layer, {})[part] = value.float()
    if strange:
        raise CheckpointError(
            f"{path} holds {', '.join(sorted(strange)[:LISTED_NAMES])}, which is no adapter of a linear layer and is "
            "not merged here; merge it with peft"
        )
    if not found:
        raise CheckpointError(f"{path} holds no adapters; copy it again")
    return found


def _adapter(name: str, found: Weights, config: _Config, folder: Path) -> Adapter:
    uses_dora = config.get("use_dora", False)
    needed = {"down", "up"} | ({"magnitude"} if uses_dora else set())
    if found.keys() != needed:
        wrong = ", ".join(sorted(found.keys() ^ needed))
        raise CheckpointError(f"{folder}: layer {name} and use_dora {uses_dora} disagree about its {wrong}; copy both")
    rank, up = len(found["down"]), found["up"]
    said = _of_layer(config.get("rank_pattern"), name, config["r"])
    if not rank == up.shape[1] == said:
        raise CheckpointError(
            f"{folder}: layer {name} has A {tuple(found['down'].shape)} and B {tuple(up.shape)}, expected rank {said} "
            f"as {CONFIG_FILE} says; the two files are not of one training"
        )
    alpha = _of_layer(config.get("alpha_pattern"), name, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora", False) else rank)
    return Adapter(found["down"], up, scale, found.get("magnitude"))


def _of_layer(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """What holds for a layer: the first pattern that is the end of its name, as peft looks for it."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{CONFIG_FILE}: pattern {shown(pattern)} is none ({error}); copy it again"
            ) from error
    return default


def merged(value: Tensor, adapter: Adapter | None) -> Tensor:
    """Weights with their adapter, if there is one, in their own dtype."""
    return value if adapter is None else adapter.merged(value).to(value.dtype)


def film_for_readers(weights: Weights, film: Mapping[str, Adapter], where: Path) -> tuple[Weights, int]:
    """A FiLM side file whose adapters mean to readers, who assume alpha = min(rank, 16), what they meant in training.

    Readers of that file (the reference, and rsd) know no alpha: it is in none of its entries. Where it was another one,
    B is multiplied by what is missing.

    Args:
        weights: Of vision_backbone--*_checkpoint.pt, without `module.`.
        film: The adapters of the same towers; empty where the folder has none of them.

    Returns:
        The weights, and how many layers were changed.

    Raises:
        CheckpointError: the two disagree about an adapter, or it is one that the side file cannot hold.
    """
    result, changed = dict(weights), 0
    for name, one in film.items():
        stem = f"{FILM}.{name}"
        down, up = f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"
        if one.magnitude is not None:
            raise CheckpointError(f"{where} cannot hold the DoRA of its layer {name}; train FiLM's towers without it")
        if down not in weights or up not in weights:
            raise CheckpointError(
                f"{where} has no adapter of its layer {name}, and {CONFIG_FILE} says that it was trained"
            )
        same = weights[down].shape == one.down.shape and weights[up].shape == one.up.shape
        near = same and all(
            torch.allclose(weights[key].float(), value, rtol=1e-2, atol=1e-3 * float(value.abs().max()))
            for key, value in ((down, one.down), (up, one.up))
        )
        if not near:
            raise CheckpointError(f"{where} and its adapter folder disagree about layer {name}; copy both of one step")
        rank = len(one.down)
        missing = one.scale / (min(rank, MAX_ALPHA) / rank)
        if not math.isclose(missing, 1.0):
            result[up] = (weights[up].float() * missing).to(weights[up].dtype)
            changed += 1
    return result, changed
