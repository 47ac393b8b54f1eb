"""Learned RFSQ autoencoder: a per-step MLP around residual scalar quantisation, trained end to end.

The classic of the field (RFSQ, arXiv 2508.15860). Each of the T steps is encoded alone, so a token speaks of one step.
Latents are bounded by tanh (FSQ, arXiv 2309.15505) and stage 1 spans exactly that range: no latent is ever outside the
grid. Without the bound the straight-through gradient pushes latents away by the hundreds, and training collapses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rsd.errors import SettingError
from rsd.record import shown
from rsd.settings import ChunkLength, Depth, Levels, Width, checked
from rsd.tokenizer.base import ActionTokenizer, gripper_config
from rsd.tokenizer.quantizer import ResidualQuantizer
from rsd.types import CodeShape

GELU_LIPSCHITZ = 1.13  # max |d GELU/dx| = 1.1289 at x = sqrt(2)


class RFSQTokenizer(ActionTokenizer):
    """Encoder A → hidden → D, Q residual stages of L levels, decoder D → hidden → A.

    Args:
        chunk_length: T.
        action_dim: A.
        latent_dim: D, scalars per step.
        hidden_dim: Width of the two MLPs.
        num_stages: Q.
        num_levels: L of every entry.
        scale: "nested" keeps the step of a stage at 1/L of the one before, so every latent is within half the last step
            of its code; "learned" starts there and trains one step per stage.
        grippers, between: See `ActionTokenizer`.
    """

    @checked
    def __init__(
        self,
        *,
        chunk_length: ChunkLength,
        action_dim: Width,
        latent_dim: Width,
        hidden_dim: Width,
        num_stages: Depth,
        num_levels: Levels,
        scale: str = "nested",
        grippers: Sequence[int] | None = None,
        between: bool = False,
    ):
        super().__init__()
        if scale not in ("learned", "nested"):
            raise SettingError(f"quantizer scale {shown(scale)}, expected 'learned' or 'nested'")
        self.config = {
            "chunk_length": chunk_length,
            "action_dim": action_dim,
            "latent_dim": latent_dim,
            "hidden_dim": hidden_dim,
            "num_stages": num_stages,
            "num_levels": num_levels,
            "scale": scale,
            **gripper_config(action_dim, grippers, between),
        }
        self.code_shape = CodeShape.full(chunk_length, action_dim, latent_dim, num_stages, num_levels)
        self.encoder = nn.Sequential(nn.Linear(action_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, latent_dim))
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, action_dim))
        steps = 2.0 / num_levels * float(num_levels) ** -torch.arange(num_stages)  # stage 1 spans tanh's range
        self.quantizer = ResidualQuantizer(torch.tensor(self.code_shape.levels), steps, learned=scale == "learned")

    def to_latents(self, actions: Tensor) -> Tensor:
        encoded = self.encoder(actions)
        return torch.tanh(encoded) + 0 * encoded  # which keeps what is infinite from becoming a number

    def to_actions(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def spread(self, moved: Tensor) -> Tensor:
        """Lipschitz bound through the decoder, entry by entry; valid but loose (6-16 times what is observed)."""
        widen, narrow = (layer.weight.abs().T for layer in self.decoder if isinstance(layer, nn.Linear))
        hidden = moved @ widen * GELU_LIPSCHITZ  # [T, hidden]
        return hidden @ narrow  # [T, A]
