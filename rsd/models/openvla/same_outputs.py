"""Do two forms of a checkpoint compute the same? Logits of the language model on made-up inputs, and their distance.

The inputs need no tokenizer and no image processor: random pixels and random words, the same for all that have the same
widths. Logits are taken at every position, before any head, and beside them the chunk of an L1 head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rsd.checkpoint import CheckpointError
from rsd.models.openvla.adapters import Adapter
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.published import HEAD_NAMES, build_model, read_norm_stats
from rsd.models.openvla.stored import Stored

SEED = 0
NUM_WORDS = 12
CHUNK_LENGTH = 8
# Of the largest number; weights in bfloat16 have eight bits, and merged ones are rounded once more
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


class Outputs(NamedTuple):
    """Logits [S, vocabulary], and the chunk [T, A] of a model with an L1 head; float32."""

    logits: Tensor
    chunk: Tensor | None


def head_of(stored: Stored) -> str:
    """The action_head of a folder, by its weights: l1, diffusion, or autoregressive where there is none."""
    if "action_head" in stored.side_paths:
        names = set(stored.side("action_head"))
    else:
        names = {name.removeprefix("action_head.") for name in stored.joined.get("action_head", [])}
    for kind, name in HEAD_NAMES.items():
        if name in names:
            return kind
    if names:
        raise CheckpointError(f"{stored.directory} has an action head of no kind known here: {sorted(names)[:2]}, …")
    return "autoregressive"


def load_network(directory: Path, *, device: str, dtype: torch.dtype = torch.float32) -> OpenVLAOFT:
    """The network of a folder, with whatever heads it has; device "meta" compares names and shapes alone.

    Raises:
        CheckpointError: see `build_model`.
    """
    stored = Stored(directory)
    components = {*stored.side_paths, *stored.joined}
    statistics = read_norm_stats(directory) if "action_head" not in components else {}
    first = next(iter(statistics.values()), {"action": {"q01": [0.0] * 7}})
    return build_model(
        directory,
        use_proprio="proprio_projector" in components,
        device=device,
        dtype=dtype,
        action_head=head_of(stored),
        action_dim=len(first["action"]["q01"]),
    )


@torch.no_grad()
def outputs(model: OpenVLAOFT, adapters: Mapping[str, Adapter] | None = None) -> Outputs:
    """What a model says to the made-up inputs.

    Args:
        adapters: Layer → adapter that is computed beside its frozen weights.
    """
    architecture = model.architecture
    reference = model.language_model.model.embed_tokens.weight
    generator = torch.Generator().manual_seed(SEED)
    size = architecture.transformers[0].image_size
    pixels = torch.randn(1, 3 * len(architecture.transformers), size, size, generator=generator).to(reference)
    count = CHUNK_LENGTH * architecture.action_dim
    words = torch.randint(3, min(1000, len(reference)), (1, NUM_WORDS + count + 1), generator=generator)
    words, start = words.to(reference.device), torch.tensor([NUM_WORDS], device=reference.device)
    proprio = None
    if architecture.proprio_dim is not None:
        proprio = torch.randn(1, architecture.proprio_dim, generator=generator).to(reference)
    with ExitStack() as hooks:
        for name, one in (adapters or {}).items():
            layer = cast("nn.Linear", model.get_submodule(name))
            hooks.callback(layer.register_forward_hook(_said(one)).remove)
        patches = model.projector(model.vision_features(pixels, words, None, start, CHUNK_LENGTH))
        sequence = model.assemble(patches, words, None, start, CHUNK_LENGTH, proprio)
        last = model.layer_states(sequence.embeds, None, [model.num_layers])[model.num_layers]
        logits = model.language_model.lm_head(last)[0].float()
        chunk = None
        if architecture.action_head == "l1":
            chunk = model.action_head(last[:, sequence.slots[0]])[0].float()
    return Outputs(logits, chunk)


def _said(adapter: Adapter) -> Callable[[nn.Linear, tuple[Tensor], Tensor], Tensor]:
    """A forward hook that replaces what a layer says."""

    def hook(layer: nn.Linear, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        return adapter.beside(layer, inputs[0])

    return hook


def distance(one: Outputs, other: Outputs) -> float:
    """Largest difference of logits and chunk, in parts of the largest number of each."""
    pairs = [(one.logits, other.logits)]
    if one.chunk is not None and other.chunk is not None:
        pairs.append((one.chunk, other.chunk))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def require_same(one: Outputs, other: Outputs, *, tolerance: float, what: str) -> float:
    """Their distance.

    Raises:
        CheckpointError: it is larger than the tolerance, or no number.
    """
    found = distance(one, other)
    if not found <= tolerance:
        raise CheckpointError(
            f"{what} changed the logits by {found:.3g} of their largest, expected at most {tolerance:.3g}; nothing was "
            "written"
        )
    return found
