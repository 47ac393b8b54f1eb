"""A published checkpoint as the start of fine-tuning: its network with the heads that the new task needs.

Statistics are not read: those of the data set that it will be trained on take their place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsd.checkpoint import CheckpointError
from rsd.models.openvla import published
from rsd.models.openvla.heads import L1ActionHead, ProprioProjector
from rsd.models.openvla.loading import require_checkpoint
from rsd.models.openvla.lora import require_peft
from rsd.models.openvla.model import OpenVLAOFT, outline
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.published_writer import DEFAULT_SHARD_BYTES, write_published
from rsd.models.openvla.text import LlamaText
from rsd.record import line_of
from rsd.settings import checked

KEPT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)


@dataclass
class Pretrained:
    """What fine-tuning starts from: the network, the image processor, the text encoder and the folder they are of."""

    model: OpenVLAOFT
    processor: PrismaticImageProcessor
    text: LlamaText
    directory: Path


@checked
def require_pretrained(checkpoint: str | Path, hub_id: str | None = None) -> None:
    """See that fine-tuning has what it needs, fetching the checkpoint if need be, before anything is loaded.

    Raises:
        CheckpointError: no checkpoint, or one without its tokenizer.
        LoRAError: peft is not installed.
    """
    require_checkpoint(checkpoint, hub_id, published_layout=True)
    LlamaText(Path(checkpoint))
    require_peft()


def load_pretrained(
    *,
    checkpoint: str | Path,
    action_head: str,
    action_dim: int,
    proprio_dim: int | None,
    device: str | torch.device,
    dtype: torch.dtype,
    hub_id: str | None = None,
) -> Pretrained:
    """Load a checkpoint for training.

    Args:
        checkpoint, hub_id: As in load_base.
        action_head: What the trained model will be. From an original OpenVLA, "l1" adds a new head, and a new proprio
            projector unless proprio_dim is None; from an OFT checkpoint its own are trained further.
        action_dim, proprio_dim: Of the data set.

    Raises:
        CheckpointError: as load_base, or an OFT checkpoint of other widths.
    """
    directory = Path(checkpoint)
    require_checkpoint(directory, hub_id, published_layout=True)
    text = LlamaText(directory)  # before the weights, which take minutes
    has_head = published.side_file(directory, "action_head") or "action_head" in published.joined_components(directory)
    stored = action_head if has_head or action_head != "l1" else "autoregressive"
    model = published.build_model(
        directory,
        use_proprio=has_head and proprio_dim is not None,
        device=device,
        dtype=dtype,
        action_head=stored,
        action_dim=action_dim,
    )
    have = (model.architecture.action_dim, model.architecture.proprio_dim if has_head else proprio_dim)
    if have != (action_dim, proprio_dim):
        raise CheckpointError(
            f"{directory} has heads for {have} dims of action and proprio, the data set has "
            f"{(action_dim, proprio_dim)}; start from an original OpenVLA"
        )
    if stored != action_head:
        model = _with_new_heads(model, action_head, proprio_dim, device)
    processor = PrismaticImageProcessor.from_file(directory / "preprocessor_config.json")
    return Pretrained(model, processor, text, directory)


def _with_new_heads(
    model: OpenVLAOFT, action_head: str, proprio_dim: int | None, device: str | torch.device
) -> OpenVLAOFT:
    """The same network with an untrained L1 head, in float32; its other weights are shared, not copied."""
    architecture = dataclasses.replace(model.architecture, action_head=action_head, proprio_dim=proprio_dim)
    result = outline(architecture)
    for name, part in model.named_children():
        setattr(result, name, part)
    width = model.llm_config.hidden_size
    result.action_head = L1ActionHead(width, architecture.action_dim).to(device)
    if proprio_dim is not None:
        result.proprio_projector = ProprioProjector(proprio_dim, width).to(device)
    return result


def save_pretrained(
    directory: Path,
    pretrained: Pretrained,
    *,
    statistics: dict[str, Any],
    step: int,
    training: Mapping[str, Any],
    others: Mapping[str, bytes],
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the trained (merged) network in the published layout, with the files that it started from.

    Args:
        statistics: {data set name: statistics}, the new dataset_statistics.json.
        step: Optimizer steps, in the names of the side files.
        training: What the network was trained with, see `published.TRAINED_WITH`.
        others: Further files: name → contents.
    """
    source = pretrained.directory
    state = pretrained.model.state_dict()
    write_published(
        directory,
        config=json.loads((source / "config.json").read_text()),
        processor=json.loads((source / "preprocessor_config.json").read_text()),
        statistics=statistics,
        shapes={name: value.shape for name, value in state.items()},
        tensor_of=lambda name: state[name],
        step=step,
        others={name: (source / name).read_bytes() for name in KEPT_FILES if (source / name).is_file()}
        | {published.TRAINING_FILE: line_of(training)}
        | {**others},
        shard_bytes=shard_bytes,
    )
