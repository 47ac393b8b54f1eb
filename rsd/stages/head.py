"""Target head and draft model: action hidden states → logits of each residual stage given the stages before it.

Both are this class. The target covers all stages and reads what the base model's L1 head makes of the last layer, or
the last layer where there is no such head; a draft reads an earlier layer, is smaller, and covers the first few stages.
Stage-causal by construction (the depth transformer of RQ-Transformer, arXiv 2203.01941, with all tokens of a stage in
parallel): the input of stage q is a sum over the stages before q, so nothing about stage q or later can reach it. One
call gives any range of stages.

Known and unknown: a stage that was not given is replaced by a learned "unknown" vector in the sum. This is what makes
`parallel` decoding a question the model has been trained on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rsd.errors import SettingError
from rsd.settings import Count, Depth, Width, checked
from rsd.types import CodeShape


def check_heads(name: str, num_heads: int, width: int) -> None:
    """See that a width divides into attention heads.

    Raises:
        SettingError: it does not; `name` is what the message calls their number.
    """
    if width % num_heads:
        raise SettingError(f"{name} is {num_heads}, expected a divisor of the width {width}")


def states_of_steps(hidden: Tensor, length: int, states_per_step: int, hidden_dim: int) -> Tensor:
    """The states of each step of the chunk side by side: [B, K or T, H] → [B, T, A*H or H].

    Raises:
        ValueError: another number of states or another hidden width.
    """
    expected = (length * states_per_step, hidden_dim)
    if tuple(hidden.shape[1:]) != expected:
        raise ValueError(f"hidden states are {list(hidden.shape)}, expected [B, {expected[0]}, {expected[1]}]")
    return hidden.reshape(hidden.shape[0], length, -1)


def blocks_over_steps(width: int, num_layers: int, num_heads: int) -> nn.TransformerEncoder:
    """Transformer layers over the T steps of a chunk, [B, T, W] → [B, T, W]."""
    layer = nn.TransformerEncoderLayer(
        width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)


class StageHead(nn.Module):
    """Transformer over the T code steps, run once per asked stage on shared features.

    Args:
        code_shape: The tokenizer's code.
        hidden_dim: H of the base model.
        states_per_step: States that it has for each step of the chunk: A at a layer, 1 inside an L1 head.
        num_stages: Stages that this model predicts, 1..Q.
        width: Model width.
        num_layers: Transformer layers over the T steps.
        num_heads: Attention heads.
    """

    levels: Tensor  # [T, D, Q] of the stages that it predicts
    missing: Tensor  # [T, D, Q, L]  levels that an entry does not have

    @checked
    def __init__(
        self,
        *,
        code_shape: CodeShape,
        hidden_dim: Count,
        states_per_step: Count,
        num_stages: int,
        width: Width,
        num_layers: Depth,
        num_heads: Depth,
    ) -> None:
        super().__init__()
        if not 1 <= num_stages <= code_shape.num_stages:
            raise SettingError(
                f"num_stages {num_stages} of the head, but the tokenizer has {code_shape.num_stages} stages; "
                f"choose 1..{code_shape.num_stages}"
            )
        check_heads("num_heads", num_heads, width)
        self.config: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "states_per_step": states_per_step,
            "num_stages": num_stages,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        self.code_shape = code_shape
        self.num_stages = num_stages
        steps, latent_dim, num_levels = len(code_shape.levels), code_shape.latent_dim, code_shape.num_levels
        levels = torch.tensor(code_shape.levels)[..., :num_stages]  # [T, D, Q]
        self.register_buffer("levels", levels, persistent=False)
        missing = torch.arange(num_levels) >= levels[..., None]  # [T, D, Q, L]
        self.register_buffer("missing", missing, persistent=False)

        self.feature_norm = nn.LayerNorm(states_per_step * hidden_dim)
        self.feature_proj = nn.Linear(states_per_step * hidden_dim, width)
        self.step_embedding = nn.Parameter(0.02 * torch.randn(steps, width))
        self.stage_embedding = nn.Parameter(0.02 * torch.randn(num_stages, width))
        self.unknown = nn.Parameter(0.02 * torch.randn(num_stages, width))
        self.digit_embedding = nn.Embedding(num_stages * latent_dim * num_levels, width)
        nn.init.normal_(self.digit_embedding.weight, std=0.02)
        self.blocks = blocks_over_steps(width, num_layers, num_heads)
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Parameter(0.02 * torch.randn(num_stages, width, latent_dim * num_levels))

    def features(self, hidden: Tensor) -> Tensor:
        """What all stages share, computed once a chunk: [B, K or T, H] → [B, T, W].

        Raises:
            ValueError: another number of states or another hidden width.
        """
        states, hidden_dim = self.config["states_per_step"], self.config["hidden_dim"]
        hidden = states_of_steps(hidden, self.code_shape.chunk_length, states, hidden_dim)  # [B, T, A*H or H]
        return self.feature_proj(self.feature_norm(hidden.to(self.feature_proj.weight.dtype))) + self.step_embedding

    def _prefix(self, known: Tensor) -> Tensor:
        """Sum of embeddings of the stages before each stage: [B, T, D, n] → [B, T, Q, W]."""
        batch, steps, latent_dim, count = known.shape
        count = min(count, self.num_stages)
        num_levels = self.code_shape.num_levels
        stage_dim = torch.arange(count, device=known.device) * latent_dim  # [n]
        rows = (torch.arange(latent_dim, device=known.device)[:, None] + stage_dim) * num_levels + known[..., :count]
        given = self.digit_embedding(rows).sum(dim=2)  # [B, T, n, W]
        unknown = self.unknown[count:].expand(batch, steps, -1, -1)
        stages = torch.cat([torch.zeros_like(self.unknown[:1]).expand(batch, steps, -1, -1), given, unknown], dim=2)
        return torch.cumsum(stages[:, :, :-1], dim=2)  # stage q sees the sum over stages < q, and nothing else of them

    def forward(self, features: Tensor, known: Tensor, start: int, stop: int) -> Tensor:
        """Logits of stages start..stop-1; see `rsd.stages.StageLogits` for the meaning of `known`.

        Args:
            features: [B, T, W] from `features`.
            known: [B, T, D, n], int64.

        Returns:
            [B, T, D, stop - start, L], float32; -inf where an entry has no such level.
        """
        if not 0 <= start < stop <= self.num_stages:
            raise ValueError(f"stages {start}..{stop - 1} asked of a head with {self.num_stages} stages")
        batch, steps, _ = features.shape
        count = stop - start
        prefix = self._prefix(known)[:, :, start:stop]  # [B, T, q, W]
        tokens = features[:, :, None] + prefix + self.stage_embedding[start:stop]  # [B, T, q, W]
        tokens = tokens.transpose(1, 2).reshape(batch * count, steps, -1)  # [B*q, T, W]
        states = self.output_norm(self.blocks(tokens)).reshape(batch, count, steps, -1)  # [B, q, T, W]
        logits = torch.einsum("bqtw,qwd->btqd", states, self.output[start:stop]).float()  # [B, T, q, D*L]
        logits = logits.reshape(batch, steps, count, self.code_shape.latent_dim, -1).transpose(2, 3)  # [B, T, D, q, L]
        return logits.masked_fill(self.missing[..., start:stop, :], -torch.inf)
