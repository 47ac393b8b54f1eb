"""OpenVLA-OFT as one module: pixels, prompt ids and proprio in; states at the action positions and a chunk out.

Sequence handed to Llama (SPEC §4, §8):
    BOS · patches of image 1 · patches of image 2 · … · proprio · prompt after BOS · K zero vectors · stop · pads
What surprises first: attention is bidirectional over the *whole* sequence, and the states that belong to the K action
slots are read one position early, from the last prompt token on.

Two liberties for models trained from scratch, both off in published ones: convolutional towers instead of the two
vision transformers, and learned vectors instead of the K zeros, which a narrow model can hardly tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rsd.models.openvla.conv import ConvShape, ConvVision
from rsd.models.openvla.heads import L1ActionHead, PrismaticProjector, ProprioProjector
from rsd.models.openvla.vit import VisionTransformer, ViTShape

CHANNELS_PER_IMAGE = 6  # the picture twice: normalised for DINOv2, then for SigLIP


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the names and shapes of the weights.

    Attributes:
        llm: Arguments of LlamaConfig; whatever is absent takes LlamaConfig's default (rms_norm_eps 1e-6!).
        action_dim: A.
        proprio_dim: P, or None for a model without a proprio token.
        dino, siglip: The two vision transformers; None for a model with convolutional towers.
        conv: The convolutional towers, or None.
        num_slots: K for a model with learned vectors at the action positions; 0 for zeros there.
    """

    llm: dict[str, Any]
    action_dim: int
    proprio_dim: int | None
    dino: ViTShape | None = None
    siglip: ViTShape | None = None
    conv: ConvShape | None = None
    num_slots: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Architecture:
        kinds = {"dino": ViTShape, "siglip": ViTShape, "conv": ConvShape}
        shapes = {name: kind(**record[name]) for name, kind in kinds.items() if record.get(name) is not None}
        return cls(**{**record, **shapes})

    @property
    def vision_dim(self) -> int:
        """Width of a patch feature."""
        return self.conv.feature_dim if self.conv is not None else self.dino.embed_dim + self.siglip.embed_dim

    @property
    def num_patches(self) -> int:
        """Patch features a picture."""
        return self.conv.num_keypoints if self.conv is not None else self.dino.num_patches


class LanguageInput(NamedTuple):
    """What the language model reads.

    Attributes:
        embeds: [B, S, H].
        mask: [B, S], bool, True for real tokens.
        slots: Positions whose states belong to the K action tokens, [B, K], int64.
    """

    embeds: Tensor
    mask: Tensor
    slots: Tensor


class VisionBackbone(nn.Module):
    """DINOv2 and SigLIP side by side; every image goes through both."""

    def __init__(self, dino: ViTShape, siglip: ViTShape) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(dino)
        self.fused_featurizer = VisionTransformer(siglip)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 6M, S, S] → [B, M*N, C_dino + C_siglip]; images follow each other on the patch axis."""
        batch, channels, height, width = pixel_values.shape
        pixels = pixel_values.reshape(batch * channels // CHANNELS_PER_IMAGE, CHANNELS_PER_IMAGE, height, width)
        features = torch.cat([self.featurizer(pixels[:, :3]), self.fused_featurizer(pixels[:, 3:])], dim=-1)
        return features.reshape(batch, -1, features.shape[-1])


class OpenVLAOFT(nn.Module):
    """The network with its L1 head. Weight names are the published ones; side files sit under their own name."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        config = LlamaConfig(**architecture.llm, attn_implementation="sdpa")
        if architecture.conv is not None:
            self.vision_backbone = ConvVision(architecture.conv, config.hidden_size)
        else:
            self.vision_backbone = VisionBackbone(architecture.dino, architecture.siglip)
        self.projector = PrismaticProjector(architecture.vision_dim, config.hidden_size)
        self.language_model = LlamaForCausalLM(config)
        self.action_head = L1ActionHead(config.hidden_size, architecture.action_dim)
        if architecture.proprio_dim is not None:
            self.proprio_projector = ProprioProjector(architecture.proprio_dim, config.hidden_size)
        if architecture.num_slots:
            self.slots = nn.Embedding(architecture.num_slots, config.hidden_size)
            nn.init.normal_(self.slots.weight, std=config.initializer_range)

    @property
    def llm_config(self) -> LlamaConfig:
        return self.language_model.config

    def forward(
        self,
        *,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        action_start: Tensor,
        chunk_length: int,
        layers: Sequence[int],
        proprio: Tensor | None = None,
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Run the whole model.

        Args:
            pixel_values: [B, 6M, S, S]; 3M channels for convolutional towers.
            input_ids: Prompt, K tokens that will be zeroed, stop token, padding on the right; [B, L], int64.
            attention_mask: [B, L]; true or 1 for real tokens.
            action_start: Index in input_ids of the first action token, [B], int64.
            chunk_length: T.
            layers: Layers whose states to return, 1..num_layers; layer i is the output of decoder layer i.
            proprio: Normalised, [B, P]; None leaves the proprio token out.

        Returns:
            States at the action slots of each layer, [B, K, H], and the L1 head's chunk, [B, T, A].
        """
        patches = self.projector(self.vision_features(pixel_values, input_ids, action_start))  # [B, M*N, H]
        sequence = self.assemble(patches, input_ids, attention_mask, action_start, chunk_length, proprio)
        last = self.llm_config.num_hidden_layers
        states = self.decoder_states(sequence.embeds, sequence.mask, {*layers, last})
        states = {layer: select(value, sequence.slots) for layer, value in states.items()}
        return {layer: states[layer] for layer in layers}, self.action_head(states[last])

    def vision_features(self, pixel_values: Tensor, input_ids: Tensor, action_start: Tensor) -> Tensor:
        """Patch features of all pictures, [B, M*N, C]; convolutional towers are told the mean of the prompt's words."""
        if self.architecture.conv is None:
            return self.vision_backbone(pixel_values)
        is_prompt = torch.arange(input_ids.shape[1], device=input_ids.device) < action_start[:, None]  # [B, L]
        words = self.language_model.model.embed_tokens(input_ids) * is_prompt[..., None]  # [B, L, H]
        return self.vision_backbone(pixel_values, words.sum(dim=1) / action_start[:, None])

    def assemble(
        self,
        patches: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        action_start: Tensor,
        chunk_length: int,
        proprio: Tensor | None,
    ) -> LanguageInput:
        """Put the language model's input together; arguments as in `forward`, patches [B, M*N, H]."""
        num_action_tokens = chunk_length * self.architecture.action_dim
        offset = torch.arange(input_ids.shape[1], device=input_ids.device) - action_start[:, None]  # [B, L]
        is_action = (offset >= 0) & (offset < num_action_tokens)
        text = self.language_model.model.embed_tokens(input_ids).masked_fill(is_action[..., None], 0.0)  # [B, L, H]
        if self.architecture.num_slots:
            text = torch.where(is_action[..., None], self.slots(offset.clamp(0, num_action_tokens - 1)), text)
        inserted = patches
        if proprio is not None:
            inserted = torch.cat([patches, self.proprio_projector(proprio).to(patches.dtype)], dim=1)
        embeds = torch.cat([text[:, :1], inserted, text[:, 1:]], dim=1)  # [B, S, H]
        mask = attention_mask.bool()
        mask = torch.cat([mask[:, :1], mask.new_ones(inserted.shape[:2]), mask[:, 1:]], dim=1)  # [B, S]
        first = inserted.shape[1] + action_start - 1  # one before the first action token
        slots = first[:, None] + torch.arange(num_action_tokens, device=input_ids.device)  # [B, K]
        return LanguageInput(embeds, mask, slots)

    def decoder_states(self, embeds: Tensor, mask: Tensor, layers: Sequence[int] | set[int]) -> dict[int, Tensor]:
        """Run the decoder layers up to the largest asked for; every token sees every real token.

        Args:
            embeds: [B, S, H].
            mask: [B, S], bool.
            layers: 1-based; the last layer's states are taken after the final norm.

        Returns:
            Layer to states, [B, S, H].
        """
        llama = self.language_model.model
        batch, length, _ = embeds.shape
        attend = mask[:, None, None, :].expand(batch, 1, length, length)
        positions = llama.rotary_emb(embeds, torch.arange(length, device=embeds.device)[None])
        states: dict[int, Tensor] = {}
        x = embeds
        for number, layer in enumerate(llama.layers[: max(layers)], start=1):
            x = layer(x, attention_mask=attend, position_embeddings=positions, use_cache=False)
            if number in layers:
                states[number] = llama.norm(x) if number == len(llama.layers) else x
        return states


def select(states: Tensor, positions: Tensor) -> Tensor:
    """States [B, S, H] at positions [B, K] → [B, K, H]."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))
