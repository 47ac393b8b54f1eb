"""One optimizer step of OFT's LoRA recipe, without peft."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from benchmark_7b.cases import TWO_VIEWS, make_backbone, model_inputs, random_observation
from benchmark_7b.clocks import Clock, interleaved
from rsd.models.openvla.model import OpenVLAOFT

LORA_RANK, LORA_ALPHA = 32, 16


class LowRank(nn.Module):
    """A frozen linear layer and its adapter, the arithmetic of peft's LoRA without dropout: W x + b + (α / r) B A x."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        place = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Parameter(torch.randn(LORA_RANK, base.in_features, **place) / LORA_RANK)
        self.up = nn.Parameter(torch.zeros(base.out_features, LORA_RANK, **place))

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.base(x) + low * (LORA_ALPHA / LORA_RANK)


def add_adapters(model: OpenVLAOFT) -> list[nn.Parameter]:
    """Adapters on every linear layer of towers, projector and language model but lm_head; heads are trained whole."""
    model.requires_grad_(False)
    whole = ("action_head", "proprio_projector")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not name.startswith(whole) and not name.endswith("lm_head"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, LowRank(module))
    for part in whole:
        getattr(model, part).requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def measure_lora(options: argparse.Namespace, model: OpenVLAOFT, device: torch.device) -> dict[str, Any]:
    """One optimizer step of the OFT recipe at batch 1 and 8. Changes the model: the last section."""
    backbone = make_backbone(model, TWO_VIEWS)
    batches = {
        size: model_inputs(backbone, [random_observation(seed, TWO_VIEWS) for seed in range(size)]) for size in (1, 8)
    }
    parameters = add_adapters(model)
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    result: dict[str, Any] = {"trained_parameters": sum(parameter.numel() for parameter in parameters)}
    for size, batch in batches.items():

        def step(inputs: dict[str, Tensor] = batch) -> Tensor:
            loss = model(**inputs, attention_mask=None, chunk_length=8, layers=[])[1].abs().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = interleaved({"step": step}, Clock(device), 3, max(2, options.calls // 20))
        if not torch.isfinite(step()):
            raise RuntimeError("the loss of the LoRA step is not finite")
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        result[f"batch {size}"] = {**times["step"], "gpu_bytes": memory}
    return result
