"""Low-rank adapters on a loaded OpenVLA, by peft, and merging them back (SPEC §14; LoRA: arXiv 2106.09685).

What surprises first: "all linear layers" means those of both vision transformers (SigLIP's never-run attention pool
too), the projector and the language model; lm_head, patch convolutions, norms and embeddings stay frozen. Adapters and
heads are float32 whatever the base weights are, and run under autocast.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from rsd.errors import RSDError
from rsd.models.openvla.model import OpenVLAOFT

MAX_ALPHA = 16  # the reference's alpha is min(rank, 16)
WHOLE = ("action_head", "proprio_projector", "noisy_action_projector")  # trained without adapters
ADAPTER = "lora_"
ADAPTER_FOLDER = "lora_adapter"  # beside the merged weights, as in the published fine-tuned checkpoints


class LoRAError(RSDError, RuntimeError):
    """Adapters cannot be made, or do not survive merging."""


def require_peft() -> None:
    """See that peft is there.

    Raises:
        LoRAError: it is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise LoRAError(f"fine-tuning needs peft ({error}); install it with: pip install -e '.[peft]'") from error


def adapted_layers(model: OpenVLAOFT) -> list[str]:
    """Names of the linear layers that get an adapter."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(WHOLE) and not name.endswith("lm_head")
    ]


def add_lora(model: OpenVLAOFT, *, rank: int, dropout: float = 0.0) -> None:
    """Freeze the model, put an adapter on every linear layer, and leave adapters and heads trainable, in place.

    Adapters start as nothing: A is Gaussian, B zero.

    Raises:
        LoRAError: peft is not installed.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=min(rank, MAX_ALPHA),
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=adapted_layers(model),
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        trained = ADAPTER in name or name.startswith(WHOLE)
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()


def adapter_files(model: OpenVLAOFT, base_name: str) -> dict[str, bytes]:
    """The adapters as peft writes them, to be taken before they are merged; PeftModel.from_pretrained reads them.

    Args:
        model: With adapters from `add_lora`.
        base_name: Of the checkpoint that the adapters belong to.

    Returns:
        Path below the checkpoint's folder → contents: adapter_config.json, adapter_model.safetensors (float32).
    """
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

    config: Any = copy.copy(model.peft_config["default"])  # type: ignore[index]  # peft has put it there
    config.base_model_name_or_path, config.inference_mode = base_name, True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        record = (Path(folder) / CONFIG_NAME).read_bytes()
    weights = {
        f"base_model.model.{name.replace('.default.', '.')}": value.detach().cpu().contiguous()
        for name, value in model.named_parameters()
        if ADAPTER in name
    }
    return {
        f"{ADAPTER_FOLDER}/{CONFIG_NAME}": record,
        f"{ADAPTER_FOLDER}/{SAFETENSORS_WEIGHTS_NAME}": save(weights, metadata={"format": "pt"}),
    }


@torch.no_grad()
def merge_lora(model: OpenVLAOFT, probe: Callable[[], Tensor], *, tolerance: float) -> float:
    """Add every adapter to its layer's weights and remove it, in place.

    Args:
        model: With adapters from `add_lora`.
        probe: Runs the model on fixed inputs; called before and after.
        tolerance: Largest accepted difference of the probe's output, in parts of its largest value. Weights in bfloat16
            round what is added to them.

    Returns:
        That difference.

    Raises:
        LoRAError: the merged model's outputs are not the adapted one's.
    """
    from peft.tuners.lora import LoraLayer

    before = probe().float()
    for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]:
        layer.merge(safe_merge=True)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
    difference = float((probe().float() - before).abs().max() / before.abs().max())
    if not difference <= tolerance:
        raise LoRAError(
            f"merging the adapters changed the outputs by {difference:.3g} of their largest value, expected at most "
            f"{tolerance:.3g}; nothing was saved: merge in float32, or look for weights that are not finite"
        )
    return difference
