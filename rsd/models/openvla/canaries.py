"""Cheap trials that catch a base model which runs and is wrong: it ignores its pictures, or attends in the wrong way.

Each is a known way of failing quietly (SPEC §7, §8, §16): an empty cache object that hides the picture, a causal mask
where attention is bidirectional, weights that are not finite in the chosen dtype, statistics of nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rsd.errors import RSDError
from rsd.finding import Finding, judged
from rsd.images import CAMERA_SIZE
from rsd.models.openvla.base import OpenVLABase
from rsd.points import point_name
from rsd.types import Inputs, Observation

WHITE = 255
TOKEN_HEADS = ("discrete", "autoregressive")


class CanaryError(RSDError, RuntimeError):
    """A loaded base model failed a trial."""


def plain_observation(base: OpenVLABase, level: int) -> Observation:
    """All pictures of one grey level, proprio in the middle of its range, an instruction that the model knows."""
    picture = np.full((CAMERA_SIZE, CAMERA_SIZE, 3), level, dtype=np.uint8)
    return Observation(dict.fromkeys(base.views, picture), _proprio(base, 0.5), base.text.example)


def random_observation(base: OpenVLABase, seed: int) -> Observation:
    """Noise in every picture, proprio anywhere in its range."""
    random = np.random.default_rng(seed)
    shape = (CAMERA_SIZE, CAMERA_SIZE, 3)
    pictures = {view: random.integers(0, 256, shape, dtype=np.uint8) for view in base.views}
    return Observation(pictures, _proprio(base, float(random.uniform())), base.text.example)


def _proprio(base: OpenVLABase, part: float) -> np.ndarray:
    """A vector at this part of its range in every dim; empty for a model that is not told the proprio."""
    proprio = base.space.proprio
    if not base.use_proprio or proprio is None:
        return np.zeros(0)
    low, high = np.asarray(proprio.low), np.asarray(proprio.high)
    return low + part * (high - low)


@torch.inference_mode()
def run_canaries(base: OpenVLABase) -> Iterator[Finding]:
    """Run all trials; two forward passes and two of the first layers."""
    yield _statistics(base)
    inputs = base.prepare([plain_observation(base, level) for level in (0, WHITE)])
    looked = base.look(inputs)
    states, actions = looked.at(point_name(base.model.num_layers)), looked.chunk()
    broken = int((~states.isfinite()).sum() + (~actions.isfinite()).sum())
    yield judged("hidden states are finite", broken == 0, f"{broken} of {states.numel()} numbers are not")
    difference = float((states[0].float() - states[1].float()).abs().max())
    moved = float((actions[0] - actions[1]).abs().max())
    found = f"states differ by {difference:.3g}, actions by {moved:.3g}"
    # an untrained model may choose the same token for both, so the states decide where actions are made of tokens
    different = difference > 0 if base.action_head in TOKEN_HEADS else moved > 0
    yield judged("a black and a white picture give different answers", different, found)
    yield _attention(base, inputs)


def check_canaries(base: OpenVLABase) -> list[Finding]:
    """Run all trials.

    Raises:
        CanaryError: one failed; the message names all that did.
    """
    findings = list(run_canaries(base))
    failed = [f"{finding.name}: {finding.found}" for finding in findings if not finding.passed]
    if failed:
        raise CanaryError(
            f"the base model runs but cannot be right: {'; '.join(failed)}; look at its checkpoint and dtype, and run "
            "python scripts/doctor.py model=… for all trials"
        )
    return findings


def _statistics(base: OpenVLABase) -> Finding:
    low, high = np.asarray(base.space.action.low), np.asarray(base.space.action.high)
    good = len(low) == base.spec.action_dim and bool((np.isfinite(low) & np.isfinite(high) & (low <= high)).all())
    found = f"{base.space.name}: {len(low)} dims, widest range {float((high - low).max()):.3g}"
    return judged("statistics are present and ordered", good, found)


def _attention(base: OpenVLABase, inputs: Inputs) -> Finding:
    """Change the last token's embedding; the first layer's states before it move if and only if it sees everything."""
    model = base.model
    embeds = model.language_model.model.embed_tokens(inputs["input_ids"][:1].to(base.device))  # [1, L, H]
    changed = embeds.clone()
    changed[:, -1] += embeds.abs().mean() + 1
    causal = base.action_head == "autoregressive"
    before, after = (model.layer_states(x, None, {1}, causal=causal)[1][:, :-1] for x in (embeds, changed))
    moved = float((before.float() - after.float()).abs().max())
    name = "attention is causal" if causal else "attention is bidirectional"
    return judged(name, (moved == 0) == causal, f"a change of the last token moves earlier states by {moved:.3g}")
