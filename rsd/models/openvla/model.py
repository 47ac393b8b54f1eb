"""OpenVLA and OpenVLA-OFT as one module: pixels, prompt ids and proprio in; states at the action positions, chunk out.

Sequence handed to Llama (SPEC §4, §8, §10):
    BOS · patches of image 1 · patches of image 2 · … · proprio · time · prompt after BOS · K slots · stop · pads
The K slots are zero vectors, or a noisy chunk's embeddings for a diffusion head, which alone has a time token. The
original OpenVLA has neither slots nor stop.
What surprises first: attention is bidirectional over the *whole* sequence, and the states that belong to the K action
slots are read one position early, from the last prompt token on.

Three liberties for models trained from scratch, all off in published ones: convolutional towers (of keypoints,
conv.py, or of patches, patches.py) instead of the two vision transformers; learned vectors instead of the K zeros,
which a narrow model can hardly tell apart; and instead of words the vector of a frozen sentence encoder (sentences.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rsd.errors import SettingError
from rsd.models.openvla.action_heads import ACTION_HEADS, Prompt, select
from rsd.models.openvla.action_tokens import IGNORE_LABEL
from rsd.models.openvla.conv import CameraTowers, ConvShape, ConvVision
from rsd.models.openvla.ddim import NUM_TRAIN_TIMESTEPS
from rsd.models.openvla.heads import (
    DiffusionActionHead,
    L1ActionHead,
    NoisyActionProjector,
    PrismaticProjector,
    ProprioProjector,
    SentenceProjector,
    SingleProjector,
)
from rsd.models.openvla.patches import PatchShape, PatchVision
from rsd.models.openvla.text import SentenceText
from rsd.models.openvla.vit import VisionTransformer, ViTShape
from rsd.record import EntryError, conform, shown
from rsd.settings import Count, Total

__all__ = [
    "CHANNELS_PER_IMAGE",
    "Architecture",
    "LanguageInput",
    "OpenVLAOFT",
    "VisionBackbone",
    "cast_weights",
    "select",
]

CHANNELS_PER_IMAGE = 6  # of a fused backbone: the picture twice, normalised for DINOv2, then for SigLIP
COLOURS = 3
LONGEST = 200  # letters of what LlamaConfig says
# Left out of the JSON form at these values
OPTIONAL_FIELDS = {"action_head": "l1", "film": False, "patches": None, "sentence": None}
FORMER_NAMES = {"decoder": "action_head"}  # of fields, in checkpoints of earlier versions

Choose = Callable[[Tensor, Callable[[], Tensor]], Tensor]  # patches, what makes the instruction's vector → indices


def check_llm(llm: dict[str, Any], where: str, entry: str) -> None:
    """See that the entries of a LlamaConfig have its types, and heads divide its width.

    Raises:
        EntryError: they do not.
    """
    sizes = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings"),
    ]
    conform(llm, {name: Count for name in sizes if llm.get(name) is not None}, where, entry)
    conform(llm, {name: float for name in ("rms_norm_eps", "rope_theta") if name in llm}, where, entry)
    try:
        config = LlamaConfig(**llm)
    except (TypeError, ValueError, StrictDataclassError) as error:
        line = " ".join(str(error).split())
        raise EntryError(f"{where}: entry '{entry}' makes no LlamaConfig: {shown(line, LONGEST)}") from error
    if (pad := llm.get("pad_token_id")) is not None and not (type(pad) is int and -1 <= pad < config.vocab_size):
        raise EntryError(f"{where}: entry '{entry}.pad_token_id' is {shown(pad)}, no token of {config.vocab_size}")
    width, heads = (llm.get(name) for name in ("hidden_size", "num_attention_heads"))
    if width and heads and width % heads:
        raise EntryError(f"{where}: entry '{entry}.num_attention_heads' is {heads}, no divisor of hidden_size {width}")


@dataclass(frozen=True)
class SentenceShape:
    """What a model that reads sentences is told of one: E numbers, which become `num_tokens` tokens."""

    width: Count
    num_tokens: Count


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the names and shapes of the weights.

    Attributes:
        llm: Arguments of LlamaConfig; whatever is absent takes LlamaConfig's default (rms_norm_eps 1e-6!).
        action_dim: A.
        proprio_dim: P, or None for a model without a proprio token.
        dino, siglip: The two vision transformers; None for a model with convolutional towers. A single one is the
            layout of OpenVLA v0.1 (siglip alone).
        conv: Convolutional towers of keypoints, or None.
        num_slots: K for a model with learned vectors at the action positions; 0 for zeros there.
        action_head: Name in ACTION_HEADS: how states become actions, and which head the weights hold.
        film: Whether the instruction modulates the vision transformers (OFT+).
        patches: Convolutional towers of patches, or None.
        sentence: A sentence's vector in place of words, or None.
    """

    llm: dict[str, Any]
    action_dim: Count
    proprio_dim: Count | None
    dino: ViTShape | None = None
    siglip: ViTShape | None = None
    conv: ConvShape | None = None
    num_slots: Total = 0
    action_head: str = "l1"
    film: bool = False
    patches: PatchShape | None = None
    sentence: SentenceShape | None = None

    def __post_init__(self) -> None:
        if self.action_head not in ACTION_HEADS:
            raise SettingError(
                f"action_head {shown(self.action_head)} is unknown; expected one of {sorted(ACTION_HEADS)}"
            )
        if self.conv is not None and self.patches is not None:
            raise SettingError("conv and patches are both given, expected one kind of convolutional towers")
        if len({tower.num_patches for tower in self.transformers}) > 1:
            sides = [f"pictures of {tower.image_size} and patches of {tower.patch_size}" for tower in self.transformers]
            raise SettingError(
                f"dino has {sides[0]} pixels, siglip {sides[1]}; expected as many patches of both, which are joined"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON types; fields that later versions added are left out at their defaults, so that fingerprints stay."""
        record = asdict(self)
        return {
            name: value
            for name, value in record.items()
            if name not in OPTIONAL_FIELDS or value != OPTIONAL_FIELDS[name]
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], where: str = "architecture") -> Architecture:
        """Of the entry "config.architecture" of a file.

        Raises:
            EntryError: an entry is missing, unknown or mistyped.
        """
        record = {FORMER_NAMES.get(name, name): value for name, value in record.items()}
        made: Architecture = conform(record, cls, where, "config.architecture")
        check_llm(made.llm, where, "config.architecture.llm")
        return made

    @property
    def transformers(self) -> list[ViTShape]:
        """The vision transformers, in the order of their channels."""
        return [shape for shape in (self.dino, self.siglip) if shape is not None]

    @property
    def cameras(self) -> ConvShape | PatchShape | None:
        """The convolutional towers, one a camera, which are told the instruction; None for vision transformers."""
        return self.conv or self.patches

    @property
    def vision_dim(self) -> int:
        """Width of a patch feature."""
        if self.cameras is not None:
            return self.cameras.feature_dim
        return sum(shape.embed_dim for shape in self.transformers)

    @property
    def num_patches(self) -> int:
        """Patch features a picture."""
        return (self.cameras or self.transformers[0]).num_patches

    @property
    def channels_per_image(self) -> int:
        """Channels of one picture in pixel_values."""
        return COLOURS * max(1, len(self.transformers))


class LanguageInput(NamedTuple):
    """What the language model reads.

    Attributes:
        embeds: [B, S, H].
        mask: [B, S], bool, True for real tokens; None when all are.
        slots: Indices whose states belong to the K action tokens, [B, K], int64.
        positions: Of the tokens, [B, S], int64, where some were left out; None for 0..S-1.
    """

    embeds: Tensor
    mask: Tensor | None
    slots: Tensor
    positions: Tensor | None = None

    def keeping(self, kept: Tensor, num_pictures: int) -> LanguageInput:
        """The same without some picture tokens; the others keep their positions.

        Args:
            kept: Indices of those that stay, ascending, [B, n], int64.
            num_pictures: Picture tokens that there are, behind BOS.
        """
        behind = torch.arange(1 + num_pictures, self.embeds.shape[1], device=kept.device).expand(len(kept), -1)
        positions = torch.cat([torch.zeros_like(kept[:, :1]), 1 + kept, behind], dim=1)  # [B, S']
        return LanguageInput(
            embeds=select(self.embeds, positions),
            mask=None if self.mask is None else self.mask.gather(1, positions),
            slots=self.slots - (num_pictures - kept.shape[1]),
            positions=positions,
        )


class VisionBackbone(nn.Module):
    """One or two vision transformers; every image goes through each.

    Args:
        shapes: DINOv2 then SigLIP, or a single one.
        language_dim: Width of the instruction's vector for FiLM blocks; None for plain ones.
    """

    def __init__(self, shapes: Sequence[ViTShape], language_dim: int | None = None) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(shapes[0], language_dim)
        if len(shapes) > 1:
            self.fused_featurizer = VisionTransformer(shapes[1], language_dim)

    def forward(self, pixel_values: Tensor, language: Tensor | None = None) -> Tensor:
        """[B, 6M, S, S] → [B, M*N, C_dino + C_siglip]; images follow each other on the patch axis.

        3M channels for a single transformer. With FiLM, language is [B, H].
        """
        num_towers = len(list(self.children()))
        batch, channels, height, width = pixel_values.shape
        num_images = channels // (COLOURS * num_towers)
        pixels = pixel_values.reshape(batch * num_images, COLOURS * num_towers, height, width)
        if language is not None:
            language = language.repeat_interleave(num_images, dim=0)  # [B*M, H]
        features = torch.cat(self.run_towers(pixels.split(COLOURS, dim=1), language), dim=-1)
        return features.reshape(batch, -1, features.shape[-1])

    def run_towers(self, views: Sequence[Tensor], language: Tensor | None) -> list[Tensor]:
        """The picture as each tower wants it, [B*M, 3, S, S], through that tower; one after the other."""
        return [tower(view, language) for tower, view in zip(self.children(), views, strict=True)]


def cast_weights(model: OpenVLAOFT, dtype: torch.dtype) -> OpenVLAOFT:
    """Change the weights' dtype, in place, and leave the rotary frequencies in float32.

    `model.to(dtype)` would round those too: in bfloat16 a position of 600 turns by up to 0.7 radians too far.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def outline(architecture: Architecture) -> OpenVLAOFT:
    """The network without numbers, on device "meta": names, shapes and order of its weights, and no memory for them."""
    with torch.device("meta"), no_init_weights():
        return OpenVLAOFT(architecture)


class OpenVLAOFT(nn.Module):
    """The network with its head. Weight names are the published ones; side files sit under their own name.

    Attributes:
        num_diffusion_steps: Of a diffusion head's sampler, 1..50.
    """

    vision_backbone: VisionBackbone | CameraTowers
    action_head: L1ActionHead | DiffusionActionHead

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_diffusion_steps = NUM_TRAIN_TIMESTEPS
        options = {**architecture.llm, "attn_implementation": "sdpa"}
        config = LlamaConfig(**options)
        width = config.hidden_size
        if architecture.conv is not None:
            self.vision_backbone = ConvVision(architecture.conv, width)
        elif architecture.patches is not None:
            self.vision_backbone = PatchVision(architecture.patches, width)
        else:
            self.vision_backbone = VisionBackbone(architecture.transformers, width if architecture.film else None)
        single = architecture.cameras is None and len(architecture.transformers) == 1
        self.projector = (SingleProjector if single else PrismaticProjector)(architecture.vision_dim, width)
        self.language_model = LlamaForCausalLM(config)
        if architecture.action_head == "l1":
            self.action_head = L1ActionHead(width, architecture.action_dim)
        if architecture.action_head == "diffusion":
            self.action_head = DiffusionActionHead(width, architecture.action_dim)
            self.noisy_action_projector = NoisyActionProjector(width)
        if architecture.proprio_dim is not None:
            self.proprio_projector = ProprioProjector(architecture.proprio_dim, width)
        if architecture.num_slots:
            self.slots = nn.Embedding(architecture.num_slots, width)
            nn.init.normal_(self.slots.weight, std=config.initializer_range)
        if architecture.sentence is not None:
            told = architecture.sentence
            self.sentence_projector = SentenceProjector(told.width, told.num_tokens, width)

    @property
    def llm_config(self) -> LlamaConfig:
        return self.language_model.config

    def forward(
        self,
        *,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        action_start: Tensor,
        chunk_length: int,
        layers: Sequence[int],
        proprio: Tensor | None = None,
        noise: Tensor | None = None,
        choose: Choose | None = None,
        sentence: Tensor | None = None,
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Run the whole model.

        Args:
            pixel_values: [B, 6M, S, S]; 3M channels for convolutional towers and for a single transformer.
            input_ids: Prompt, K tokens that will be zeroed, stop token, padding on the right; [B, L], int64. The
                autoregressive model takes the prompt alone.
            attention_mask: [B, L]; true or 1 for real tokens; None when all are real, which is faster.
            action_start: Index in input_ids of the first action token, [B], int64.
            chunk_length: T.
            layers: Layers whose states to return; layer i is the output of the language model's layer i, 1..num_layers.
            proprio: Normalised, [B, P]; None for a model without proprio projector.
            noise: What a diffusion head starts from, [B, T, A]; None for the others.
            choose: Makes of patches [B, M*N, H] and the instruction the indices of those that the language model
                reads, see `visual_tokens.VisualTokens`; None keeps all.
            sentence: Vectors of the instructions, [B, E]; None for a model that reads words.

        Returns:
            States at the action slots of each layer, [B, K, H], and the normalised chunk, [B, T, A].
        """
        features = self.vision_features(pixel_values, input_ids, attention_mask, action_start, chunk_length, sentence)
        patches = self.projector(features)
        kept = None if choose is None else choose(patches, partial(self.words, input_ids, action_start, sentence))
        prompt = Prompt(input_ids, attention_mask, action_start, chunk_length, proprio, noise, kept, sentence)
        return ACTION_HEADS[self.architecture.action_head](self, patches, prompt, layers)

    def token_logits(self, pixel_values: Tensor, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits of the original OpenVLA for every supervised label, [N, vocabulary], and those labels.

        Args:
            pixel_values: As in `forward`.
            input_ids, labels: See `token_loss.token_rows`, [B, L].
        """
        patches = self.projector(self.vision_backbone(pixel_values))
        supervised = labels != IGNORE_LABEL
        lengths = torch.where(supervised, torch.arange(1, labels.shape[1] + 1, device=labels.device), 0).amax(dim=1)
        mask = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]  # pads follow the stop token
        start = supervised.int().argmax(dim=1)
        sequence = self.assemble(patches, input_ids, mask, start, 1, None, keep_actions=True)
        states = self.layer_states(sequence.embeds, sequence.mask, {self.num_layers}, causal=True)[self.num_layers]
        inserted = patches.shape[1]
        speaking = states[:, inserted:-1][supervised[:, 1:]]  # [N, H]  position t - 1 speaks for t
        return self.language_model.lm_head(speaking), labels[:, 1:][supervised[:, 1:]]

    def renew_frequencies(self, device: str | torch.device) -> None:
        """The rotary frequencies, which are no weights, on a device: a model on "meta" has none."""
        self.language_model.model.rotary_emb = LlamaRotaryEmbedding(config=self.llm_config).to(device)

    def text(self, input_ids: Tensor, sentence: Tensor | None = None) -> Tensor:
        """Embeddings of the text, [B, L, H]; those of a sentence's placeholders are made of its vector."""
        if (sentence is None) != (self.architecture.sentence is None):
            raise ValueError("a model that reads sentences needs their vectors, and no other takes them: sentence=")
        text = self.language_model.model.embed_tokens(input_ids)
        if sentence is None:
            return text
        tokens, is_sentence = self.sentence_projector(sentence), input_ids == SentenceText.SENTENCE  # [B, n, H], [B, L]
        place = (is_sentence.cumsum(dim=1) - 1).clamp(min=0)
        return torch.where(is_sentence[..., None], select(tokens.to(text.dtype), place), text)

    def words(self, input_ids: Tensor, action_start: Tensor, sentence: Tensor | None = None) -> Tensor:
        """The mean of the instruction's embeddings, [B, H]."""
        is_word = torch.arange(input_ids.shape[1], device=input_ids.device) < action_start[:, None]  # [B, L]
        words = self.text(input_ids, sentence) * is_word[..., None]  # [B, L, H]
        return words.sum(dim=1) / is_word.sum(dim=1, keepdim=True)

    def vision_features(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        action_start: Tensor,
        chunk_length: int,
        sentence: Tensor | None = None,
    ) -> Tensor:
        """Patch features of all pictures, [B, M*N, C]; some towers are told the mean of the instruction's words."""
        if self.architecture.cameras is not None:
            is_word = torch.arange(input_ids.shape[1], device=input_ids.device) < action_start[:, None]  # [B, L]
        elif self.architecture.film:
            is_word = ~self._action_offsets(input_ids, action_start, chunk_length)[1]
            is_word = is_word if attention_mask is None else is_word & attention_mask.bool()
        else:
            return self.vision_backbone(pixel_values)
        words = self.text(input_ids, sentence) * is_word[..., None]  # [B, L, H]
        return self.vision_backbone(pixel_values, words.sum(dim=1) / is_word.sum(dim=1, keepdim=True))

    def _action_offsets(self, input_ids: Tensor, action_start: Tensor, chunk_length: int) -> tuple[Tensor, Tensor]:
        """Number of each text token counted from the first action token, and whether it is one; each [B, L]."""
        num_action_tokens = chunk_length * self.architecture.action_dim
        offset = torch.arange(input_ids.shape[1], device=input_ids.device) - action_start[:, None]
        return offset, (offset >= 0) & (offset < num_action_tokens)

    def assemble(
        self,
        patches: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        action_start: Tensor,
        chunk_length: int,
        proprio: Tensor | None,
        *,
        noisy: Tensor | None = None,
        time: Tensor | None = None,
        keep_actions: bool = False,
        kept: Tensor | None = None,
        sentence: Tensor | None = None,
    ) -> LanguageInput:
        """Put the language model's input together; arguments as in `forward`, patches [B, M*N, H].

        Args:
            noisy: Embeddings of a noisy chunk for the action slots, [B, K, H].
            time: The diffusion time token, [B, 1, H].
            keep_actions: Leave the action tokens' own embeddings in place: teacher forcing of the original OpenVLA.
            kept: Indices of the patches that stay, [B, n], ascending; None for all.
        """
        if (proprio is None) != (self.architecture.proprio_dim is None):
            raise ValueError(
                "proprio given to a model without proprio projector; leave it out"
                if proprio is not None
                else f"the model has a proprio projector for {self.architecture.proprio_dim} dims, got no proprio"
            )
        offset, is_action = self._action_offsets(input_ids, action_start, chunk_length)
        text = self.text(input_ids, sentence)  # [B, L, H]
        if not keep_actions:
            text = text.masked_fill(is_action[..., None], 0.0)
        num_action_tokens = chunk_length * self.architecture.action_dim
        within = offset.clamp(0, num_action_tokens - 1)
        if self.architecture.num_slots:
            text = torch.where(is_action[..., None], self.slots(within), text)
        if noisy is not None:
            text = torch.where(is_action[..., None], select(noisy, within), text)
        inserted = patches
        if proprio is not None:
            inserted = torch.cat([inserted, self.proprio_projector(proprio).to(patches.dtype)], dim=1)
        if time is not None:
            inserted = torch.cat([inserted, time], dim=1)
        embeds = torch.cat([text[:, :1], inserted, text[:, 1:]], dim=1)  # [B, S, H]
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()
            mask = torch.cat([mask[:, :1], mask.new_ones(inserted.shape[:2]), mask[:, 1:]], dim=1)  # [B, S]
        first = inserted.shape[1] + action_start - 1  # one before the first action token
        slots = first[:, None] + torch.arange(num_action_tokens, device=input_ids.device)  # [B, K]
        sequence = LanguageInput(embeds, mask, slots)
        return sequence if kept is None else sequence.keeping(kept, patches.shape[1])

    def layer_states(
        self,
        embeds: Tensor,
        mask: Tensor | None,
        layers: Sequence[int] | set[int],
        *,
        causal: bool = False,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> dict[int, Tensor]:
        """Run the language model's layers up to the largest asked for.

        Args:
            embeds: [B, S, H].
            mask: Which tokens are real, those in the cache first, [B, cached + S], bool; None when all are.
            layers: 1-based; the last layer's states are taken after the final norm.
            causal: False lets every token see every real token (OpenVLA-OFT), True only those up to itself.
            cache: Keys and values of earlier calls; this one's are added. Needs a mask.
            positions: Of the tokens, [B, S], int64; 0..S-1 when None.

        Returns:
            Layer to states, [B, S, H].
        """
        states: dict[int, Tensor] = {}
        x, depth = embeds, 0
        for stop in sorted(layers):
            x = self.run_layers(x, mask, depth, stop, causal=causal, cache=cache, positions=positions)
            states[stop], depth = self.read_out(x, stop), stop
        return states

    def run_layers(
        self,
        x: Tensor,
        mask: Tensor | None,
        start: int,
        stop: int,
        *,
        causal: bool = False,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The language model's layers start+1..stop on the whole sequence, [B, S, H]; see `layer_states`."""
        llama = self.language_model.model
        batch, length, _ = x.shape
        if positions is None:
            positions = torch.arange(length, device=x.device)[None]
        attend = None
        if mask is not None:
            attend = mask[:, None, None, :].expand(batch, 1, length, mask.shape[1])
            if causal and length > 1:
                past = mask.shape[1] - length
                attend = attend & attend.new_ones(length, mask.shape[1]).tril(past)
        rotary = llama.rotary_emb(x, positions)
        arguments: dict[str, Any] = {"attention_mask": attend, "position_embeddings": rotary, "is_causal": causal}
        if cache is not None:
            arguments |= {"past_key_values": cache, "use_cache": True}
        for layer in llama.layers[start:stop]:
            x = layer(x, **arguments)
        return x

    def read_out(self, x: Tensor, number: int) -> Tensor:
        """What layer `number` says: its output, after the final norm where it is the last one. [B, S, H]."""
        return self.language_model.model.norm(x) if number == self.num_layers else x

    @property
    def num_layers(self) -> int:
        """Layers of the language model."""
        return len(self.language_model.model.layers)
