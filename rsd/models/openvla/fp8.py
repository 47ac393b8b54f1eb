"""Matrix products in eight bits (e4m3): weights scaled per output channel, activations per row at the time of the call.

Both factors are numbers of the product itself (`torch._scaled_mm`); nothing is rounded to eight bits and multiplied in
sixteen. What surprises first: query, key and value are one product here, and so are gate and up; a name in `keep` that
belongs to one of them keeps its whole product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from rsd.errors import RSDError

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
SMALLEST_SCALE = 1e-12  # a row of zeros stays one
MULTIPLE = 16  # of both widths of a product, by the hardware
CAPABILITY = (8, 9)  # the first cards with such products: Ada; Hopper is 9.0
KEEP = ("vision_backbone", "projector", "proprio_projector", "action_head", "language_model.lm_head")


class Fp8Error(RSDError, ValueError):
    """Eight-bit products were asked for where there can be none."""


@dataclass(frozen=True, kw_only=True)
class Fp8:
    """What execution=fp8 means.

    Attributes:
        keep: Names of linear layers that stay in sixteen bits: a layer, everything below a module, or a pattern with
            "*". Small projections, heads, the vocabulary and the vision towers by default.
        limit: Largest accepted deviation from the bfloat16 model, in parts of an output's largest value. A trained
            policy of ours moves by 0.03, random weights by 0.2 to 0.4.
    """

    keep: Sequence[str] = KEEP
    limit: float = 0.15

    def __post_init__(self) -> None:
        if isinstance(self.keep, str) or not all(isinstance(name, str) for name in self.keep):
            raise Fp8Error(f"model.backbone.fp8.keep is {self.keep!r}, expected a list of names of layers")
        if not 0 < self.limit < float("inf"):
            raise Fp8Error(f"model.backbone.fp8.limit is {self.limit}, expected a number above 0")

    def keeps(self, name: str) -> bool:
        """Whether the layer of this name stays in sixteen bits."""
        return any(_means(one, name) for one in self.keep)

    def to_json(self) -> dict[str, Any]:
        """What decides on the numbers, for the fingerprint."""
        return {"format": "e4m3", "weights": "output channel", "activations": "row", "keep": sorted(self.keep)}


def _means(pattern: str, name: str) -> bool:
    """Whether a name in `keep` is that of a layer, or of a module that the layer is below."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] → e4m3 [M, K] and the factor of each row [M, 1], float32, whose product is about `rows`."""
    wide = rows.float()
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_SCALE) / LARGEST  # [M, 1]
    return (wide / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


class Fp8Linear(nn.Module):
    """Linear layers that read the same input, as one eight-bit product: [..., K] → [..., N], N of all together."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight, scale = scaled(torch.cat([layer.weight.detach() for layer in layers]))
        self.register_buffer("weight", weight)  # [N, K]
        self.register_buffer("scale", scale.T.contiguous())  # [1, N]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.register_buffer("bias", torch.cat(biases) if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = scaled(x.reshape(-1, x.shape[-1]))
        product = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.scale, bias=self.bias, out_dtype=x.dtype,
            use_fast_accum=True,
        )  # fmt: skip
        return product.view(*x.shape[:-1], -1)


class Side(nn.Module):
    """Linear layers that read the same input, kept in sixteen bits: what `Fp8Linear` gives, without rounding."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


class Fp8Attention(nn.Module):
    """Llama's attention with two products; it serves heads of one parallel pass, so there is no cache."""

    def __init__(self, attention: Any, inward: nn.Module, outward: nn.Module) -> None:
        super().__init__()
        config = attention.config
        self.head_dim: int = attention.head_dim
        self.num_heads, self.num_key_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.inward, self.outward = inward, outward

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        is_causal: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        batch, tokens, _width = hidden_states.shape
        heads = self.inward(hidden_states).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        query, key, value = heads.split([self.num_heads, self.num_key_heads, self.num_key_heads], dim=1)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        x = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, is_causal=is_causal and attention_mask is None,
            enable_gqa=self.num_heads != self.num_key_heads,
        )  # fmt: skip
        return self.outward(x.transpose(1, 2).reshape(batch, tokens, -1)), None


class Fp8MLP(nn.Module):
    """Llama's MLP with two products."""

    def __init__(self, mlp: Any, inward: nn.Module, outward: nn.Module) -> None:
        super().__init__()
        self.activation = mlp.act_fn
        self.inward, self.outward = inward, outward

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.inward(x).chunk(2, dim=-1)
        return self.outward(self.activation(gate) * up)


def to_fp8(model: nn.Module, fp8: Fp8) -> None:
    """Replace the linear layers that are not kept, in place: meant for a twin, whose weights are another model's too.

    Raises:
        Fp8Error: a layer has a width that is no multiple of 16, all are kept, or a name in `keep` (but for the default
            ones, of which not every model has all) is that of none.
    """
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    strange = [one for one in fp8.keep if one not in KEEP and not any(_means(one, name) for name in names.values())]
    if strange:
        tops = sorted({name.partition(".")[0] for name in names.values()})
        raise Fp8Error(
            f"model.backbone.fp8.keep names {strange}, and the model has no such linear layer; it has some in {tops}, "
            f"such as {next(reversed(names.values()))}"
        )
    blocks = [block for block in model.modules() if isinstance(block, LlamaDecoderLayer)]
    within = {layer for block in blocks for layer in block.modules()}
    for layer, name in names.items():
        if layer not in within and not fp8.keeps(name):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _product([layer], names, fp8))
    for block in map(_untyped, blocks):
        attention, mlp = block.self_attn, block.mlp
        joint = _product([attention.q_proj, attention.k_proj, attention.v_proj], names, fp8)
        block.self_attn = Fp8Attention(attention, joint, _product([attention.o_proj], names, fp8))
        joint = _product([mlp.gate_proj, mlp.up_proj], names, fp8)
        block.mlp = Fp8MLP(mlp, joint, _product([mlp.down_proj], names, fp8))
    if not any(isinstance(module, Fp8Linear) for module in model.modules()):
        raise Fp8Error("model.backbone.fp8.keep keeps every layer; shorten it, or set execution=compiled")


def _untyped(module: nn.Module) -> Any:
    """A module of transformers, whose parts may be replaced by others than it was written with."""
    return module


def _product(layers: list[nn.Linear], names: dict[nn.Linear, str], fp8: Fp8) -> nn.Module:
    """One eight-bit product for the layers, or the layers as they are where one of them is kept."""
    if any(fp8.keeps(names[layer]) for layer in layers):
        return layers[0] if len(layers) == 1 else Side(layers)
    for layer in layers:
        if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
            raise Fp8Error(
                f"layer {names[layer]} is {layer.in_features} wide and gives {layer.out_features}, eight-bit products "
                f"need multiples of {MULTIPLE}; add it to model.backbone.fp8.keep"
            )
    return Fp8Linear(layers)
