"""Correction of a chunk that comes late: what is left of it, moved by what is seen when it comes (async=corrected).

A2C2 (arXiv 2509.23224): beside a base model's chunk of some steps ago, a small network sees the newest picture and
proprio and says what to add to each action. There it is asked at every step, here once a chunk, when the chunk comes.
What surprises first: its last layer begins at zero, so a network that has learned nothing changes nothing, and
async=corrected is then async=naive, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsd.checkpoint import (
    JSON_FILE,
    CheckpointError,
    check_names,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    shapes_of,
    weights_in,
)
from rsd.record import EntryError, conform
from rsd.settings import ChunkLength, Count, Width
from rsd.stages.files import as_stored, check_made_for
from rsd.types import BaseSpec

KIND = "correction"  # of a checkpoint, and the part of a policy's folder
PRODUCE = "python train.py phase=correction"


@dataclass(frozen=True)
class _Config:
    """Entry "config" of checkpoint.json: the head's arguments, and the delays that it was trained for."""

    chunk_length: ChunkLength
    action_dim: Count
    hidden_dim: Count
    width: Width
    delays: tuple[Count, Count]


class CorrectionHead(nn.Module):
    """What to add to the actions that are left of a chunk.

    Args:
        chunk_length, action_dim: T and A.
        hidden_dim: H of what is seen now, one state a step of the chunk.
        width: Inside.
    """

    def __init__(self, *, chunk_length: int, action_dim: int, hidden_dim: int, width: int) -> None:
        super().__init__()
        self.config = {
            "chunk_length": chunk_length,
            "action_dim": action_dim,
            "hidden_dim": hidden_dim,
            "width": width,
        }
        self.norm = nn.LayerNorm(hidden_dim)
        self.seen = nn.Linear(hidden_dim, width)
        self.left = nn.Linear(chunk_length * action_dim, width)  # all that is left, to every step
        self.own = nn.Linear(action_dim, width)
        self.delay = nn.Embedding(chunk_length, width)
        self.place = nn.Parameter(0.02 * torch.randn(chunk_length, width))
        self.inner = nn.Linear(width, width)
        self.out = nn.Linear(width, action_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor, left: Tensor, delay: Tensor) -> Tensor:
        """The correction, [B, T, A], float32; zero where nothing is left.

        Args:
            states: What is seen now, [B, T, H].
            left: See `moved_on`, [B, T, A].
            delay: Steps that are over, [B], int64.
        """
        x = self.seen(self.norm(states)) + self.own(left) + self.place
        x = x + (self.left(left.flatten(1)) + self.delay(delay))[:, None]  # [B, T, width]
        added = self.out(F.gelu(self.inner(F.gelu(x))))
        return added.where(is_left(delay, left.shape[1])[..., None], 0.0)


def is_left(delay: Tensor, chunk_length: int) -> Tensor:
    """Which steps of a chunk that was moved on hold an action, [B, T], bool."""
    return torch.arange(chunk_length, device=delay.device) < chunk_length - delay[:, None]


def moved_on(chunks: Tensor, delay: Tensor) -> Tensor:
    """Chunks without their first `delay` steps, from step 0 on and with zeros behind, [B, T, A]."""
    batch, length, dims = chunks.shape
    index = torch.arange(length, device=chunks.device) + delay[:, None]  # [B, T]
    moved = chunks.gather(1, index.clamp_max(length - 1)[..., None].expand(batch, length, dims))
    return moved.where(is_left(delay, length)[..., None], 0.0)


def save_correction(
    head: CorrectionHead,
    directory: Path,
    *,
    delays: tuple[int, int],
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a correction's checkpoint folder.

    Args:
        delays: Fewest and most steps that it was trained for.
        provenance: Must hold "base" (fingerprint), "unnorm_key" and "space" (digest).
        dtype: Of the stored weights.
    """
    config = {**head.config, "delays": list(delays)}
    save_checkpoint(directory, kind=KIND, config=config, weights=weights_in(head, dtype), provenance=provenance)


def load_correction(directory: Path, *, base: BaseSpec, eyes: BaseSpec, delay: int) -> CorrectionHead:
    """Read a correction and hold it to what it will work with.

    Args:
        base: Of the policy's base model.
        eyes: Of the correction's own.
        delay: Control steps that chunks are late.

    Returns:
        The head in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, or made for another Space, base model, chunk or delay.
    """
    loaded = load_checkpoint(directory, kind=KIND, produce=PRODUCE)
    remedy, where = f"train it again for this combination with {PRODUCE}", str(Path(directory) / JSON_FILE)
    try:
        config = conform(loaded.config, _Config, where, "config")
        conform(loaded.provenance, {"base": Any, "unnorm_key": str, "space": str}, where, "provenance")
    except EntryError as error:
        raise CheckpointError(f"{error}; {remedy}") from error
    low, high = config.delays
    if not low <= delay <= high:
        raise CheckpointError(
            f"correction {directory} was trained for delays of {low} to {high} control steps, and delay={delay} is "
            f"asked for; set one of those, or train for it with {PRODUCE} phase.datamodule.max_delay={delay}"
        )
    for space, who in ((loaded.provenance["space"], "was trained"), (eyes.space.digest, "sees")):
        if space != base.space.digest:
            raise CheckpointError(
                f"correction {directory} {who} in the space {space}, the base model acts in {base.space.name!r}, "
                f"{base.space.digest}; {remedy}"
            )
    made_for = {"unnorm_key": base.space.name, "base": dict(base.fingerprint)}
    check_made_for(f"correction {directory}", loaded.provenance, as_stored(made_for), PRODUCE, remedy)
    size = {"chunk_length": base.chunk_length, "action_dim": base.action_dim}
    if (config.chunk_length, config.action_dim) != tuple(size.values()):
        raise CheckpointError(
            f"correction {directory} is for chunks of {config.chunk_length}x{config.action_dim}, the base model's are "
            f"{base.chunk_length}x{base.action_dim}; {remedy}"
        )
    size |= {"hidden_dim": config.hidden_dim, "width": config.width}
    with torch.device("meta"):  # sizes are held to those of the weights before memory is taken for them
        outline = CorrectionHead(**size)
    check_names(directory, shapes_of(outline.state_dict()), shapes_of(loaded.weights))
    head = CorrectionHead(**size)
    load_weights(head, loaded, directory)
    return head.eval().requires_grad_(False)
