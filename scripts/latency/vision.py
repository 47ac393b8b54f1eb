"""The vision towers alone, as one CUDA graph, in several ways: which is worth being what `compiled` means?"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rsd.models.openvla.compilation import (
    compile_blocks,
    compiled_twin,
    run_towers_side_by_side,
    transformer_blocks,
    twin,
)
from rsd.models.openvla.execution import CudaCapture, deviation
from rsd.models.openvla.fp8 import KEEP, Fp8
from rsd.models.openvla.model import OpenVLAOFT, VisionBackbone
from rsd.models.openvla.segments import given
from scripts.benchmark_7b.clocks import Call, Clock, interleaved

EIGHT_BIT_TOWERS = Fp8(keep=[*(name for name in KEEP if name != "vision_backbone"), "language_model"])


def _towers(model: OpenVLAOFT) -> VisionBackbone:
    assert isinstance(model.vision_backbone, VisionBackbone)
    return model.vision_backbone


def blocks_in_turn(model: OpenVLAOFT) -> nn.Module:
    """Compiled blocks, one tower after the other."""
    double = twin(model)
    compile_blocks(double)
    return double.vision_backbone


def blocks_side_by_side(model: OpenVLAOFT) -> nn.Module:
    """What `compiled` means: compiled blocks, the towers on two streams."""
    return compiled_twin(model).vision_backbone


def blocks_in_eight_bits(model: OpenVLAOFT) -> nn.Module:
    """The same with eight-bit products."""
    return compiled_twin(model, EIGHT_BIT_TOWERS).vision_backbone


def towers_side_by_side(model: OpenVLAOFT) -> nn.Module:
    """Each tower compiled as a whole: norms and residuals melt across blocks."""
    towers = _towers(twin(model))
    for tower in towers.children():
        tower.compile(dynamic=False)
    run_towers_side_by_side(towers)
    return towers


def autotuned_blocks(model: OpenVLAOFT) -> nn.Module:
    """Blocks whose products are generated, too, so that biases and activations are part of them."""
    double = twin(model)
    for block in transformer_blocks(double):
        block.compile(dynamic=False, mode="max-autotune-no-cudagraphs")
    run_towers_side_by_side(_towers(double))
    return double.vision_backbone


WAYS: tuple[Callable[[OpenVLAOFT], nn.Module], ...] = (
    blocks_side_by_side, blocks_in_turn, blocks_in_eight_bits, towers_side_by_side, autotuned_blocks,
)  # fmt: skip


@torch.no_grad()
def measure_vision(
    model: OpenVLAOFT,
    pixels: Tensor,
    *,
    warmup: int,
    calls: int,
    report: Callable[[str], None],
    left: Callable[[], float],
) -> dict[str, Any]:
    """Way → times and deviation from eager; a way that fails keeps its traceback, and the others run.

    Args:
        left: Seconds until no further way may begin.
    """
    expected = model.vision_backbone(pixels)
    replays: dict[str, Call] = {}
    found: dict[str, Any] = {}
    for way in WAYS:
        name = way.__name__.replace("_", " ")
        if left() < 0:
            found[name] = {"failed": "there was no time left"}
            continue
        try:
            replays[name] = _captured(way(model), pixels)
            found[name] = {"deviation": deviation(expected, replays[name]())}
        except Exception:  # noqa: BLE001  the other ways are still worth their time
            replays.pop(name, None)
            found[name] = {"failed": traceback.format_exc()}
        report(f"vision, {name}: {found[name].get('deviation') or found[name]['failed'].splitlines()[-1]}")
    times = interleaved(replays, Clock(pixels.device), warmup, calls)
    return {name: found[name] | times.get(name, {}) for name in found}


def _captured(towers: nn.Module, pixels: Tensor) -> Call:
    replay = CudaCapture(pixels.device)(lambda: {"features": towers(pixels)})
    return lambda: given(replay(), "features")
