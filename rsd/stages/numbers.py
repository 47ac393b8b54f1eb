"""A readout in numbers: a draft that says the chunk itself, as OpenVLA-OFT's L1 head does (arXiv 2502.19645, §IV).

It reads the states that a `StageHead` at the same point reads, through the same layers, but ends in A numbers a step
instead of tokens, so there is nothing to round and no tokenizer to have. What surprises first: it does not say how
sure it is. No log-probability, no gate on likelihood, no verification of tokens; what can be asked is whether two of
them, at two points, say the same (`Twofold`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rsd.settings import ChunkLength, Count, Depth, Width, checked
from rsd.stages.head import blocks_over_steps, check_heads, states_of_steps
from rsd.stages.logits import require_finite
from rsd.types import Pass, Request


class NumberHead(nn.Module):
    """Transformer over the T steps of the chunk, ending in the chunk.

    Args:
        chunk_length, action_dim: T and A.
        hidden_dim: H of the base model.
        states_per_step: States that it has for each step of the chunk: A at a layer, 1 inside an L1 head.
        width, num_layers, num_heads: As of the `StageHead`.
    """

    @checked
    def __init__(
        self,
        *,
        chunk_length: ChunkLength,
        action_dim: Count,
        hidden_dim: Count,
        states_per_step: Count,
        width: Width,
        num_layers: Depth,
        num_heads: Depth,
    ) -> None:
        super().__init__()
        check_heads("num_heads", num_heads, width)
        self.config: dict[str, Any] = {
            "chunk_length": chunk_length,
            "action_dim": action_dim,
            "hidden_dim": hidden_dim,
            "states_per_step": states_per_step,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        self.feature_norm = nn.LayerNorm(states_per_step * hidden_dim)
        self.feature_proj = nn.Linear(states_per_step * hidden_dim, width)
        self.step_embedding = nn.Parameter(0.02 * torch.randn(chunk_length, width))
        self.blocks = blocks_over_steps(width, num_layers, num_heads)
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, action_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """The chunk, model space, gripper around 0 … 1, not clipped: [B, K or T, H] → [B, T, A], float32.

        Raises:
            ValueError: another number of states or another hidden width.
        """
        shape = (self.config[name] for name in ("chunk_length", "states_per_step", "hidden_dim"))
        states = states_of_steps(hidden, *shape).to(self.feature_proj.weight.dtype)  # [B, T, A*H or H]
        features = self.feature_proj(self.feature_norm(states)) + self.step_embedding  # [B, T, W]
        return self.output(self.output_norm(self.blocks(features))).float()


@runtime_checkable
class InNumbers(Protocol):
    """A bound draft that says the chunk itself, and no stages."""

    def chunk(self) -> Tensor:
        """Model space, as the base model's own chunk, [B, T, A], float32.

        Raises:
            NotFiniteError: what it reads of the base model, or what it says, is NaN or infinite.
        """


@dataclass(frozen=True)
class NumbersAt:
    """Binder of a NumberHead; the attributes are those of `HeadAt`."""

    head: NumberHead
    point: str
    role: str
    source: str = "the base model"

    def bind(self, looked: Pass, requests: Sequence[Request]) -> BoundNumbers:
        return BoundNumbers(self, looked)


class BoundNumbers:
    """`InNumbers` for the observations of a pass, in the place of a draft's StageLogits."""

    def __init__(self, place: NumbersAt, looked: Pass, said: Tensor | None = None) -> None:
        self._place, self._looked, self._said = place, looked, said

    def chunk(self) -> Tensor:
        place = self._place
        with self._looked.clock.part(place.role):
            if self._said is None:
                states = require_finite(self._looked.at(place.point), f"{place.source}'s state {place.point!r}")
                self._said = require_finite(place.head(states), f"the chunk that the {place.role} says")
            return self._said

    def __call__(self, known: Tensor, start: int, stop: int) -> NoReturn:
        raise LookupError(
            f"the decoding asks for stages of the {self._place.role} at {self._place.point}, which says numbers"
        )

    def of(self, rows: Tensor, looked: Pass | None = None) -> BoundNumbers:
        """See `BoundHead.of`."""
        said = None if self._said is None else self._said[rows]
        return BoundNumbers(self._place, self._looked.of(rows) if looked is None else looked, said)
