"""Cheap trials that catch a base model which runs and is wrong: it ignores its pictures, or attends in the wrong way.

Each is a known way of failing quietly (SPEC §7, §8, §16): an empty cache object that hides the picture, a causal mask
where attention is bidirectional, weights that are not finite in the chosen dtype, statistics of nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsd.errors import RSDError
from rsd.images import CAMERA_SIZE
from rsd.models.openvla.backbone import OpenVLABackbone
from rsd.normalization import bounded_range
from rsd.types import Observation

WHITE = 255
TOKEN_DECODERS = ("discrete", "autoregressive")


class CanaryError(RSDError, RuntimeError):
    """A loaded base model failed a trial."""


@dataclass(frozen=True)
class Canary:
    """Result of one trial: its name, whether it passed, and what was measured, in words."""

    name: str
    passed: bool
    found: str


def plain_observation(backbone: OpenVLABackbone, level: int) -> Observation:
    """All pictures of one grey level, proprio in the middle of its range, an instruction that the model knows."""
    picture = np.full((CAMERA_SIZE, CAMERA_SIZE, 3), level, dtype=np.uint8)
    return Observation(dict.fromkeys(backbone.views, picture), _proprio(backbone, 0.5), backbone.text.example)


def random_observation(backbone: OpenVLABackbone, seed: int) -> Observation:
    """Noise in every picture, proprio anywhere in its range."""
    random = np.random.default_rng(seed)
    shape = (CAMERA_SIZE, CAMERA_SIZE, 3)
    pictures = {view: random.integers(0, 256, shape, dtype=np.uint8) for view in backbone.views}
    return Observation(pictures, _proprio(backbone, float(random.uniform())), backbone.text.example)


def _proprio(backbone: OpenVLABackbone, part: float) -> np.ndarray:
    """A vector at this part of its range in every dim; empty for a model that is not told the proprio."""
    if not backbone.use_proprio:
        return np.zeros(0)
    low, high = bounded_range(backbone.norm_stats["proprio"])
    return low + part * (high - low)


@torch.inference_mode()
def run_canaries(backbone: OpenVLABackbone) -> Iterator[Canary]:
    """Run all trials; two forward passes and two of the first decoder layer."""
    yield _statistics(backbone)
    inputs = backbone.prepare([plain_observation(backbone, level) for level in (0, WHITE)])
    last = backbone.num_layers
    output = backbone.forward(inputs, [last])
    states, actions = output.hidden_states[last], output.actions
    broken = int((~states.isfinite()).sum() + (~actions.isfinite()).sum())
    yield Canary("hidden states are finite", broken == 0, f"{broken} of {states.numel()} numbers are not")
    difference = float((states[0].float() - states[1].float()).abs().max())
    moved = float((actions[0] - actions[1]).abs().max())
    found = f"states differ by {difference:.3g}, actions by {moved:.3g}"
    # an untrained model may choose the same token for both, so the states decide where actions are made of tokens
    different = difference > 0 if backbone.decoder in TOKEN_DECODERS else moved > 0
    yield Canary("a black and a white picture give different answers", different, found)
    yield _attention(backbone, inputs)


def check_canaries(backbone: OpenVLABackbone) -> list[Canary]:
    """Run all trials.

    Raises:
        CanaryError: one failed; the message names all that did.
    """
    results = list(run_canaries(backbone))
    failed = [f"{canary.name}: {canary.found}" for canary in results if not canary.passed]
    if failed:
        raise CanaryError(
            f"the base model runs but cannot be right: {'; '.join(failed)}; look at its checkpoint and dtype, and run "
            "python scripts/doctor.py model=… for all trials"
        )
    return results


def _statistics(backbone: OpenVLABackbone) -> Canary:
    low, high = bounded_range(backbone.norm_stats["action"])
    good = len(low) == backbone.action_dim and bool((np.isfinite(low) & np.isfinite(high) & (low <= high)).all())
    found = f"{backbone.unnorm_key}: {len(low)} dims, widest range {float((high - low).max()):.3g}"
    return Canary("statistics are present and ordered", good, found)


def _attention(backbone: OpenVLABackbone, inputs: dict[str, Tensor]) -> Canary:
    """Change the last token's embedding; the first layer's states before it move if and only if it sees everything."""
    model = backbone.model
    embeds = model.language_model.model.embed_tokens(inputs["input_ids"][:1].to(backbone.device))  # [1, L, H]
    changed = embeds.clone()
    changed[:, -1] += embeds.abs().mean() + 1
    causal = backbone.decoder == "autoregressive"
    before, after = (model.decoder_states(x, None, {1}, causal=causal)[1][:, :-1] for x in (embeds, changed))
    moved = float((before.float() - after.float()).abs().max())
    name = "attention is causal" if causal else "attention is bidirectional"
    return Canary(name, (moved == 0) == causal, f"a change of the last token moves earlier states by {moved:.3g}")
