"""The vision towers alone, as one CUDA graph, in several ways: which is worth being what `compiled` means?"""

from __future__ import annotations

import math
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
from rsd.models.openvla.execution import COMPILED_LIMITS, CudaCapture, deviation
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


Way = Callable[[OpenVLAOFT], nn.Module]
COMPILED_LIMIT = COMPILED_LIMITS[torch.bfloat16]
LIMITS: dict[Way, float] = {  # in the order in which they are tried; the first is what `compiled` means
    blocks_side_by_side: COMPILED_LIMIT,
    blocks_in_turn: COMPILED_LIMIT,
    towers_side_by_side: COMPILED_LIMIT,
    blocks_in_eight_bits: 0.3,
    autotuned_blocks: COMPILED_LIMIT,
}
WAYS = tuple(LIMITS)
LABEL = "random weights, shape only"


@torch.no_grad()
def measure_vision(
    model: OpenVLAOFT,
    pixels: Tensor,
    known: set[str],
    *,
    warmup: int,
    calls: int,
    report: Callable[[str], None],
    left: Callable[[], float],
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Each way in turn with what `compiled` means; one that fails keeps its traceback, and the others run.

    Args:
        known: Ways that an earlier run has timed.
        left: Seconds until no further way may begin.
        write: Keeps what is known so far.
    """
    expected = model.vision_backbone(pixels)
    run: dict[str, Any] = {"label": LABEL, "warmup": warmup, "rounds": calls, "arms": {}, "failed": {}, "postponed": []}
    first: dict[str, Call] = {}
    for way in WAYS:
        name = _name(way)
        if first and name in known:
            continue
        if left() < 0:
            run["postponed"].append(name)
            continue
        try:
            replay = _captured(way(model), pixels)
            off = deviation(expected, replay())["max_rel"]
            first = first or {name: replay}
            times = interleaved({**first, name: replay}, Clock(pixels.device), warmup, calls)[name]
            check = {"off": off if math.isfinite(off) else None, "limit": LIMITS[way], "passed": off <= LIMITS[way]}
            run["arms"][name] = {**times, "parts_ms": {}, "check": check}
            report(f"vision, {name}: {times['wall_ms']['median']:.2f} ms")
        except Exception:  # noqa: BLE001  the other ways are still worth their time
            run["failed"][name] = traceback.format_exc()
            report(f"vision, {name}: FAILED: {run['failed'][name].splitlines()[-1]}")
        write(run)


def _name(way: Way) -> str:
    return way.__name__.replace("_", " ")


def _captured(towers: nn.Module, pixels: Tensor) -> Call:
    replay = CudaCapture(pixels.device)(lambda: {"features": towers(pixels)})
    return lambda: given(replay(), "features")
