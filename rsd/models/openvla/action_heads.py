"""Ways from patches and a prompt to a chunk of actions: L1, discrete, diffusion, autoregressive (SPEC §7, §8, §10).

All four have one signature and read the states one position before each action token. What surprises first: only the
autoregressive one, the original OpenVLA, is causal; and the diffusion one runs the language model once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from rsd.models.openvla import ddim
from rsd.models.openvla.action_tokens import decode_action_ids
from rsd.models.openvla.heads import time_embedding

if TYPE_CHECKING:
    from rsd.models.openvla.model import LanguageInput, OpenVLAOFT

States = dict[int, Tensor]


class Prompt(NamedTuple):
    """What the language model is told beside the pictures; shapes as in `OpenVLAOFT.forward`.

    `kept` are the picture tokens that it reads, [B, n]; None for all. `sentence` is None for a model that reads words.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    action_start: Tensor
    chunk_length: int
    proprio: Tensor | None
    noise: Tensor | None
    kept: Tensor | None = None
    sentence: Tensor | None = None


def l1(model: OpenVLAOFT, patches: Tensor, prompt: Prompt, layers: Sequence[int]) -> tuple[States, Tensor]:
    """One pass; the L1 head turns the last states into the chunk."""
    states, last = _parallel_states(model, patches, prompt, layers)
    return states, model.action_head(last)


def discrete(model: OpenVLAOFT, patches: Tensor, prompt: Prompt, layers: Sequence[int]) -> tuple[States, Tensor]:
    """One pass; the most probable token of each slot, of the full vocabulary, is decoded as a bin."""
    states, last = _parallel_states(model, patches, prompt, layers)
    return states, read_tokens(model, last, prompt.chunk_length)


def read_tokens(model: OpenVLAOFT, last: Tensor, chunk_length: int) -> Tensor:
    """The most probable token of each state of the last layer, [B, K, H], as a chunk [B, T, A]."""
    logits = model.language_model.lm_head(last)  # [B, K, vocabulary]
    return _chunk_of(logits.argmax(dim=-1), logits, chunk_length)


def _chunk_of(ids: Tensor, logits: Tensor, chunk_length: int) -> Tensor:
    """Tokens [B, K] as a chunk [B, T, A]; NaN where the logits that chose them were no numbers, as argmax hides it."""
    actions = decode_action_ids(ids).masked_fill(~logits.isfinite().all(dim=-1), torch.nan)
    return actions.view(len(ids), chunk_length, -1)


def num_runs(model: OpenVLAOFT, chunk_length: int) -> int:
    """How often a chunk takes a token through the language model's layers."""
    kind = model.architecture.action_head
    if kind == "diffusion":
        return len(ddim.timesteps(model.num_diffusion_steps))
    return chunk_length * model.architecture.action_dim if kind == "autoregressive" else 1


def _assembled(
    model: OpenVLAOFT, patches: Tensor, prompt: Prompt, *, noisy: Tensor | None = None, time: Tensor | None = None
) -> LanguageInput:
    return model.assemble(
        patches,
        prompt.input_ids,
        prompt.attention_mask,
        prompt.action_start,
        prompt.chunk_length,
        prompt.proprio,
        noisy=noisy,
        time=time,
        kept=prompt.kept,
        sentence=prompt.sentence,
    )


def _parallel_states(
    model: OpenVLAOFT, patches: Tensor, prompt: Prompt, layers: Sequence[int]
) -> tuple[States, Tensor]:
    sequence = _assembled(model, patches, prompt)
    last = model.llm_config.num_hidden_layers
    states = model.layer_states(sequence.embeds, sequence.mask, {*layers, last}, positions=sequence.positions)
    states = {layer: select(value, sequence.slots) for layer, value in states.items()}
    return {layer: states[layer] for layer in layers}, states[last]


def diffusion(model: OpenVLAOFT, patches: Tensor, prompt: Prompt, layers: Sequence[int]) -> tuple[States, Tensor]:
    """Denoise `prompt.noise`; the states are those of the last step."""
    if prompt.noise is None:
        raise ValueError("a diffusion head needs the starting noise, [B, T, A]: pass noise=")
    alphas = ddim.alphas_cumprod().to(patches.device)
    num_steps, last = model.num_diffusion_steps, model.llm_config.num_hidden_layers
    sample = prompt.noise
    for timestep in ddim.timesteps(num_steps):
        now = torch.full((len(patches),), timestep, device=patches.device)
        sequence = _assembled(
            model,
            patches,
            prompt,
            noisy=model.noisy_action_projector(sample.to(patches.dtype)),
            time=time_embedding(now, patches.shape[-1])[:, None].to(patches.dtype),
        )
        asked = {*layers, last} if timestep == 0 else {last}
        states = model.layer_states(sequence.embeds, sequence.mask, asked, positions=sequence.positions)
        states = {layer: select(value, sequence.slots) for layer, value in states.items()}
        noise = model.action_head(states[last])  # [B, T, A]
        sample = ddim.step(sample, noise.to(sample.dtype), timestep, num_steps, alphas)
    return {layer: states[layer] for layer in layers}, sample


def autoregressive(model: OpenVLAOFT, patches: Tensor, prompt: Prompt, layers: Sequence[int]) -> tuple[States, Tensor]:
    """Greedy generation of the K action tokens, one after the other, causally, with a key-value cache."""
    ids, states = generate(model, patches, prompt, layers)
    logits = model.language_model.lm_head(states[model.llm_config.num_hidden_layers])  # [B, K, vocabulary]
    return states, _chunk_of(ids, logits, prompt.chunk_length)


def generate(model: OpenVLAOFT, patches: Tensor, prompt: Prompt, layers: Sequence[int]) -> tuple[Tensor, States]:
    """Greedy token ids [B, K] and the states that each was read from, [B, K, H] a layer.

    Rows may have prompts of different lengths: pads lie between a row's prompt and its generated tokens in the cache,
    masked, and every token is told its own position.
    """
    last = model.llm_config.num_hidden_layers
    sequence = _assembled(model, patches, prompt)
    embeds, mask = sequence.embeds, sequence.mask
    if mask is None:
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    count = prompt.chunk_length * model.architecture.action_dim
    cache = DynamicCache(config=model.llm_config)
    asked = {*layers, last}
    states = model.layer_states(embeds, mask, asked, causal=True, cache=cache, positions=sequence.positions)
    ends = sequence.slots[:, :1]  # [B, 1]  the last prompt token of each row
    places = ends if sequence.positions is None else sequence.positions.gather(1, ends)
    steps = [{layer: select(value, ends) for layer, value in states.items()}]
    ids = []
    for number in range(count):
        ids.append(model.language_model.lm_head(steps[-1][last]).argmax(dim=-1))  # [B, 1]
        if number == count - 1:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        embeds = model.language_model.model.embed_tokens(ids[-1])  # [B, 1, H]
        steps.append(model.layer_states(embeds, mask, asked, causal=True, cache=cache, positions=places + 1 + number))
    joined = {layer: torch.cat([states[layer] for states in steps], dim=1) for layer in layers}
    return torch.cat(ids, dim=1), joined


def select(states: Tensor, positions: Tensor) -> Tensor:
    """States [B, S, H] at positions [B, K] → [B, K, H]."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


Decoder = Callable[["OpenVLAOFT", Tensor, Prompt, Sequence[int]], tuple[States, Tensor]]
ACTION_HEADS: dict[str, Decoder] = {
    "l1": l1,
    "discrete": discrete,
    "diffusion": diffusion,
    "autoregressive": autoregressive,
}
