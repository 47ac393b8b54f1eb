"""Gradient × input of the action slots: which patches, words and proprio the chunk hangs on.

The gradient is always taken from the network as it is, however the policy is executed. What surprises first: words may
act through the vision towers, too (FiLM), so the words' gradient starts at their embeddings and takes both ways. What
it says is local: how the chunk would change with a little more of an input, not with another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rsd.models.openvla import segments
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.conv import ConvTower, ConvVision
from rsd.models.openvla.ddim import timesteps
from rsd.models.openvla.heads import time_embedding
from rsd.models.openvla.model import LanguageInput, select
from rsd.types import Observation


@dataclass(frozen=True)
class Saliency:
    """Shares of the whole, of one observation; all of them together are 1.

    Attributes:
        maps: View → heat over the picture, [h, w]; the sums over views are the pictures' share.
        words: Tokens of the prompt with their shares.
        proprio: The proprio token's share; None for a model that is not told it.
    """

    maps: dict[str, np.ndarray]
    words: list[tuple[str, float]]
    proprio: float | None

    @property
    def shares(self) -> dict[str, float]:
        """Input → share."""
        found = {view: float(heat.sum()) for view, heat in self.maps.items()}
        found["words"] = sum(share for _, share in self.words)
        return found if self.proprio is None else found | {"proprio": self.proprio}


def saliency(base: OpenVLABase, observation: Observation) -> Saliency:
    """Of one observation."""
    with torch.enable_grad():
        inputs = base.on_device(base.prepare([observation]))
        ids = segments.given(inputs, "input_ids")
        words = base.model.text(ids, inputs.get("sentence")).detach().requires_grad_()
        base.model.text = lambda *_: words  # type: ignore[method-assign]  # of this one object, and only here
        try:
            sequence, kept = _sequence(base, inputs)
        finally:
            del base.model.text
        sequence.embeds.retain_grad()
        _answer(base, inputs, sequence).backward()
    heat, of_words = _strength(sequence.embeds), _strength(words)  # [S], [L]
    num_kept = len(kept)
    patches = heat.new_zeros(base.num_pictures)
    patches[kept] = heat[1 : 1 + num_kept]
    proprio = float(heat[1 + num_kept]) if base.use_proprio else None
    prompt = of_words[1 : int(segments.given(inputs, "action_start")[0])]  # without BOS
    total = float(patches.sum() + prompt.sum()) + (proprio or 0.0) or 1.0
    names = token_names(base, observation.instruction, len(prompt))
    return Saliency(
        maps=_maps(base, inputs, patches / total),
        words=[(name, float(share) / total) for name, share in zip(names, prompt, strict=True)],
        proprio=None if proprio is None else proprio / total,
    )


@torch.no_grad()
def _strength(inputs: Tensor) -> Tensor:
    """Norm of gradient × input of the first row's tokens, of [1, n, H]: [n]."""
    assert inputs.grad is not None
    return (inputs * inputs.grad)[0].float().norm(dim=-1)


def _sequence(base: OpenVLABase, inputs: segments.Tensors) -> tuple[LanguageInput, Tensor]:
    """What the language model reads, and which of the picture tokens are in it, [n]."""
    model, ids = base.model, segments.given(inputs, "input_ids")
    mask, start = inputs["attention_mask"], segments.given(inputs, "action_start")
    patches = model.projector(
        model.vision_features(
            segments.given(inputs, "pixel_values"), ids, mask, start, base.chunk_length, inputs.get("sentence")
        )
    )
    kept = None
    if base.choose is not None:
        kept = base.choose(patches.detach(), lambda: model.words(ids, start, inputs.get("sentence")))
    more: dict[str, Any] = {"sentence": inputs.get("sentence")}
    if base.action_head == "diffusion":
        first = torch.full((1,), timesteps(model.num_diffusion_steps)[0], device=patches.device)
        noise = segments.given(inputs, "noise")
        more["noisy"] = model.noisy_action_projector(noise.to(patches.dtype))
        more["time"] = time_embedding(first, patches.shape[-1])[:, None].to(patches.dtype)
    sequence = model.assemble(patches, ids, mask, start, base.chunk_length, inputs.get("proprio"), kept=kept, **more)
    return sequence, torch.arange(base.num_pictures) if kept is None else kept[0].cpu()


def _answer(base: OpenVLABase, inputs: segments.Tensors, sequence: LanguageInput) -> Tensor:
    """One number that stands for the chunk: what its head says of all slots, in size.

    For a diffusion head what it says of the first noise; for an autoregressive one what it says of the first token.
    """
    model, causal = base.model, base.action_head == "autoregressive"
    last = model.run_layers(
        sequence.embeds, sequence.mask, 0, model.num_layers, causal=causal, positions=sequence.positions
    )
    states = model.read_out(last, model.num_layers)
    if causal:
        return model.language_model.lm_head(states[:, -1]).float().amax(dim=-1).sum()
    states = select(states, sequence.slots)
    if base.action_head in ("l1", "diffusion"):
        return model.action_head(states).float().abs().sum()
    return model.language_model.lm_head(states).float().amax(dim=-1).sum()


def _maps(base: OpenVLABase, inputs: segments.Tensors, patches: Tensor) -> dict[str, np.ndarray]:
    """Shares of the picture tokens [M*N] as heat over each picture; a keypoint's lies where it looks."""
    vision = base.model.vision_backbone
    rows = patches.view(len(base.views), -1)
    if not isinstance(vision, ConvVision):
        side = round(rows.shape[1] ** 0.5)
        return {view: row.view(side, side).cpu().numpy() for view, row in zip(base.views, rows, strict=True)}
    with torch.no_grad():
        return {
            view: torch.einsum("n,nhw->hw", row, heat).cpu().numpy()
            for view, row, heat in zip(base.views, rows, keypoint_heat(base, inputs), strict=True)
        }


def keypoint_heat(base: OpenVLABase, inputs: segments.Tensors) -> list[Tensor]:
    """Where the keypoints of each convolutional tower look: sums to 1 a keypoint, [N, h, w] a view."""
    vision, found = base.model.vision_backbone, []
    assert isinstance(vision, ConvVision)
    for tower, features in zip(vision.towers.children(), feature_maps(base, inputs), strict=True):
        assert isinstance(tower, ConvTower)
        heat = tower.heat(features)[0].float()  # [N, h, w]
        found.append(F.softmax(heat.flatten(1), dim=-1).view_as(heat))
    return found


def feature_maps(base: OpenVLABase, inputs: segments.Tensors) -> list[Tensor]:
    """What each convolutional tower makes of its picture, [1, C', h, w] a view."""
    told = segments.given(inputs, "input_ids"), segments.given(inputs, "action_start"), inputs.get("sentence")
    words = base.model.words(*told)
    pixels = segments.given(inputs, "pixel_values").split(3, dim=1)
    vision = base.model.vision_backbone
    assert isinstance(vision, ConvVision)
    towers = [tower for tower in vision.towers if isinstance(tower, ConvTower)]
    return [tower.feature_map(picture, words) for tower, picture in zip(towers, pixels, strict=True)]


def token_names(base: OpenVLABase, instruction: str, count: int) -> list[str]:
    """The prompt's tokens behind BOS, as text."""
    ids = base.text.encode(instruction)[1 : 1 + count]
    return [base.text.piece(one) for one in ids]
