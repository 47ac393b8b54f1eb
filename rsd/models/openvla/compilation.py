"""A compiled double of a loaded model: blocks of fused kernels, and two vision transformers at the same time.

What surprises first: the double has modules of its own around the *same* weights. The model stays as it is, to be
compared with, and no weight is in memory twice.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from rsd.models.openvla.fp8 import Fp8, to_fp8
from rsd.models.openvla.model import OpenVLAOFT, VisionBackbone
from rsd.models.openvla.vit import VisionTransformer

MAX_SHAPES = 64  # that one block may be compiled for; torch's own limit is 8, and beyond it runs eagerly


def compiled_twin(model: OpenVLAOFT, fp8: Fp8 | None = None) -> OpenVLAOFT:
    """Compile the model's double for CUDA; the compiler runs when a shape is first seen.

    Args:
        fp8: Which products are taken in eight bits, by weights of the double's own: half the model's memory once more.
    """
    double = twin(model)
    if fp8 is not None:
        to_fp8(double, fp8)
    compile_blocks(double)
    if isinstance(double.vision_backbone, VisionBackbone):
        run_towers_side_by_side(double.vision_backbone)
    return double


def twin(model: OpenVLAOFT) -> OpenVLAOFT:
    """A second set of modules around the same weights, to be changed without touching the first."""
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)


def compile_blocks(model: OpenVLAOFT) -> None:
    """Compile each kind of block once: norms, rotations and activations melt into fewer kernels."""
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    for block in transformer_blocks(model):
        block.compile(dynamic=False)


def transformer_blocks(model: OpenVLAOFT) -> list[nn.Module]:
    """The blocks that are worth compiling: the language model's, and those of vision transformers."""
    towers = model.vision_backbone.children() if isinstance(model.vision_backbone, VisionBackbone) else ()
    blocks = [block for tower in towers if isinstance(tower, VisionTransformer) for block in tower.blocks]
    return [*blocks, *model.language_model.model.layers]


def run_towers_side_by_side(vision: VisionBackbone) -> None:
    """Let DINOv2 and SigLIP share the GPU: at batch 1 the kernels of each are too small for it."""
    vision.run_towers = partial(  # type: ignore[method-assign]  # of this twin alone
        _side_by_side, vision, torch.cuda.Stream(next(vision.parameters()).device)
    )


def _side_by_side(
    vision: VisionBackbone, side: torch.cuda.Stream, views: tuple[Tensor, ...], language: Tensor | None
) -> list[Tensor]:
    """As `VisionBackbone.run_towers`, all but the first tower on a second stream."""
    here = torch.cuda.current_stream(side.device)
    first, *others = zip(vision.children(), views, strict=True)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        later = [tower(view, language) for tower, view in others]
    features = [first[0](first[1], language), *later]
    here.wait_stream(side)
    return features
