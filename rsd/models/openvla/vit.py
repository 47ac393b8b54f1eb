"""The two vision transformers of OpenVLA: DINOv2 with registers, and SigLIP.

Parameter names are timm's (0.9.10), with `gamma` of LayerScale called `scale_factor` as OpenVLA's checkpoints do. What
surprises first: the features are taken *before the last block* and without the final norm, so the last block, the norm
and the attention pool exist only to be loaded and saved (SPEC §3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsd.errors import SettingError
from rsd.settings import Count, Total

MAX_RATIO = 100.0  # of an MLP's width
NORM_EPS = 1e-6  # timm's LayerNorm epsilon in vision transformers


@dataclass(frozen=True)
class ViTShape:
    """Shape of one vision transformer, in timm's words.

    Attributes:
        image_size, patch_size: Pixels; pictures are square.
        embed_dim, depth, num_heads: Width, number of blocks (the last one is never run), attention heads.
        mlp_ratio: The MLP's hidden width is int(embed_dim * mlp_ratio).
        reg_tokens: Register tokens; with any, there is a class token too (DINOv2).
        layer_scale: Whether each branch is scaled per channel (DINOv2).
        attention_pool: Whether the checkpoint carries SigLIP's attention pool (never run).
    """

    image_size: Count
    patch_size: Count
    embed_dim: Count
    depth: Count
    num_heads: Count
    mlp_ratio: float
    reg_tokens: Total
    layer_scale: bool
    attention_pool: bool

    def __post_init__(self) -> None:
        fits = (
            self.embed_dim % self.num_heads == 0
            and self.patch_size <= self.image_size
            and 0 < self.mlp_ratio < MAX_RATIO
        )
        if not fits:
            raise SettingError(
                f"a vision transformer with embed_dim {self.embed_dim}, num_heads {self.num_heads}, mlp_ratio "
                f"{self.mlp_ratio}, pictures of {self.image_size} and patches of {self.patch_size} pixels cannot be"
            )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def mlp_dim(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)


class PatchEmbed(nn.Module):
    """Picture → one token a patch."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.embed_dim, kernel_size=shape.patch_size, stride=shape.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)  # [B, N, C]


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.qkv = nn.Linear(shape.embed_dim, 3 * shape.embed_dim)
        self.proj = nn.Linear(shape.embed_dim, shape.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, C / heads]
        x = F.scaled_dot_product_attention(query, key, value)
        if x.is_cpu:  # whose kernel makes zeros of rows whose scores are no numbers
            bound = query.abs().amax().float() * key.abs().amax().float() * query.shape[-1]  # of the scores, times √
            x = x.masked_fill(~bound.isfinite(), torch.nan)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """Two layers with the exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel. Starts at 1 (DINOv2's own training starts at 1e-5: blocks that learn from zero)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.embed_dim, eps=NORM_EPS)
        self.attn = Attention(shape)
        self.ls1 = LayerScale(shape.embed_dim) if shape.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.embed_dim, eps=NORM_EPS)
        self.mlp = MLP(shape.embed_dim, shape.mlp_dim)
        self.ls2 = LayerScale(shape.embed_dim) if shape.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_channels(self.mix_tokens(x))

    def mix_tokens(self, x: Tensor) -> Tensor:
        return x + self.ls1(self.attn(self.norm1(x)))

    def mix_channels(self, x: Tensor) -> Tensor:
        return x + self.ls2(self.mlp(self.norm2(x)))


class FiLMBlock(nn.Module):
    """A block whose tokens are scaled and shifted by the instruction between its two branches (OFT+, SPEC §10)."""

    def __init__(self, shape: ViTShape, language_dim: int) -> None:
        super().__init__()
        self.block = Block(shape)
        self.scale = nn.Linear(language_dim, shape.embed_dim)
        self.shift = nn.Linear(language_dim, shape.embed_dim)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        scale, shift = self.scale(language)[:, None], self.shift(language)[:, None]  # each [B, 1, C]
        return self.block.mix_channels(self.block.mix_tokens(x) * (1 + scale) + shift)


class AttentionPool(nn.Module):
    """SigLIP's pooling head: parameters of the checkpoint that OpenVLA never runs."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        width = shape.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, shape.mlp_dim)


class VisionTransformer(nn.Module):
    """One featurizer: pixels [B, 3, S, S] → patch features [B, N, C] after the last block but one.

    With language_dim its blocks are FiLM blocks, and `forward` needs the instruction's vector, [B, language_dim].
    """

    def __init__(self, shape: ViTShape, language_dim: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = PatchEmbed(shape)
        if shape.reg_tokens:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.embed_dim))
            self.reg_token = nn.Parameter(torch.randn(1, shape.reg_tokens, shape.embed_dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, shape.num_patches, shape.embed_dim) * 0.02)
        blocks = (Block(shape) if language_dim is None else FiLMBlock(shape, language_dim) for _ in range(shape.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(shape.embed_dim, eps=NORM_EPS)
        if shape.attention_pool:
            self.attn_pool = AttentionPool(shape)

    def forward(self, pixels: Tensor, language: Tensor | None = None) -> Tensor:
        x = self.patch_embed(pixels) + self.pos_embed  # positions for the patches alone
        prefix = 0
        if self.shape.reg_tokens:
            batch = len(x)
            x = torch.cat([self.cls_token.expand(batch, -1, -1), self.reg_token.expand(batch, -1, -1), x], dim=1)
            prefix = 1 + self.shape.reg_tokens
        for block in self.blocks[:-1]:
            x = block(x) if language is None else block(x, language)
        return x[:, prefix:]
