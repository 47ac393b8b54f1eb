"""The base model cut at the places where somebody may stop: tensors in, tensors out, nothing remembered.

    embed         pictures, prompt and proprio → the sequence that the language model reads
    keep          some of its picture tokens, and all the rest → the sequence of a model that reads no more
    run_layers    some of its layers → the sequence as it is then, and the states at the action slots
    read_head     the last states → what an L1 head's last linear layer reads
    read_chunk    → the chunk
    run_whole     everything at once, for heads that run the language model many times (diffusion, autoregressive)

A segment is a pure function of a model and named tensors, so that it can be run as it is or be captured as a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor

from rsd.models.openvla.action_heads import read_tokens
from rsd.models.openvla.heads import L1ActionHead
from rsd.models.openvla.model import Choose, LanguageInput, OpenVLAOFT, select
from rsd.points import point_name

Tensors = dict[str, Tensor | None]
Segment = Callable[[OpenVLAOFT, Tensors], Tensors]
PARALLEL_HEADS = ("l1", "discrete")  # one fixed sequence of kernels, which can be stopped at any layer


class Run(Protocol):
    """A way of running segments of one model; results belong to the caller."""

    def __call__(self, segment: partial[Tensors], inputs: Tensors) -> Tensors: ...


def given(tensors: Tensors, name: str) -> Tensor:
    """A tensor that has to be there."""
    value = tensors[name]
    if value is None:
        raise KeyError(f"segment input {name!r} is missing")
    return value


def l1_head(model: OpenVLAOFT) -> L1ActionHead:
    """The model's L1 head."""
    if not isinstance(model.action_head, L1ActionHead):
        raise TypeError(f"the model's action head is a {type(model.action_head).__name__}, expected an L1ActionHead")
    return model.action_head


def embed(model: OpenVLAOFT, inputs: Tensors, *, chunk_length: int) -> Tensors:
    """pixel_values, input_ids, mask, action_start, proprio, sentence → x [B, S, H], mask [B, S] or None, slots."""
    ids, mask, start = given(inputs, "input_ids"), inputs["attention_mask"], given(inputs, "action_start")
    sentence = inputs.get("sentence")
    features = model.vision_features(given(inputs, "pixel_values"), ids, mask, start, chunk_length, sentence)
    patches, proprio = model.projector(features), inputs.get("proprio")
    sequence = model.assemble(patches, ids, mask, start, chunk_length, proprio, sentence=sentence)
    return {"x": sequence.embeds, "mask": sequence.mask, "slots": sequence.slots}


def keep(model: OpenVLAOFT, inputs: Tensors, *, choose: Choose, num_pictures: int) -> Tensors:
    """x, mask, slots, and what is `told` → x, mask, slots and positions [B, S'] of what is kept."""
    x, slots = given(inputs, "x"), given(inputs, "slots")
    words = partial(model.words, given(inputs, "input_ids"), given(inputs, "action_start"), inputs.get("sentence"))
    kept = choose(x[:, 1 : 1 + num_pictures], words)
    sequence = LanguageInput(x, inputs["mask"], slots).keeping(kept, num_pictures)
    return {"x": sequence.embeds, "mask": sequence.mask, "slots": sequence.slots, "positions": sequence.positions}


def told(inputs: Tensors) -> Tensors:
    """What `keep` reads of the prepared inputs."""
    return {name: inputs[name] for name in ("input_ids", "action_start", "sentence") if name in inputs}


def run_layers(model: OpenVLAOFT, inputs: Tensors, *, start: int, stop: int) -> Tensors:
    """x, mask, slots, perhaps positions → x behind layer `stop`, and states at the slots, [B, K, H]."""
    x = model.run_layers(given(inputs, "x"), inputs["mask"], start, stop, positions=inputs.get("positions"))
    return {"x": x, "states": select(model.read_out(x, stop), given(inputs, "slots"))}


def read_head(model: OpenVLAOFT, inputs: Tensors) -> Tensors:
    """states of the last layer [B, K, H] → features [B, T, H] of an L1 head."""
    return {"features": l1_head(model).features(given(inputs, "states"))}


def read_chunk(model: OpenVLAOFT, inputs: Tensors, *, chunk_length: int) -> Tensors:
    """features of an L1 head, or states of the last layer for tokens → chunk [B, T, A]."""
    if model.architecture.action_head == "l1":
        return {"chunk": l1_head(model).chunk(given(inputs, "features"))}
    return {"chunk": read_tokens(model, given(inputs, "states"), chunk_length)}


def run_whole(model: OpenVLAOFT, inputs: Tensors, *, chunk_length: int, choose: Choose | None = None) -> Tensors:
    """The prepared inputs → chunk, and "layer.N" [B, K, H] for every layer."""
    layers = range(1, model.num_layers + 1)
    states, chunk = model(**inputs, chunk_length=chunk_length, layers=layers, choose=choose)
    return {"chunk": chunk, **{point_name(number): states[number] for number in layers}}


class Eager:
    """Runs segments as they are."""

    def __init__(self, model: OpenVLAOFT) -> None:
        self.model = model

    def __call__(self, segment: partial[Tensors], inputs: Tensors) -> Tensors:
        return segment(self.model, inputs)
