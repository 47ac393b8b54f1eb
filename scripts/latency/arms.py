"""What is timed: one call from decoded pictures to robot commands, in one way of running and one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rsd.models.openvla import segments
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.random_weights import openvla_architecture
from rsd.models.openvla.segments import Run, Tensors, given
from rsd.types import Observation

RUNGS = ("eager", "captured", "compiled")  # of bfloat16, slowest first
FP8 = "fp8"
PREPARATION, VISION, LANGUAGE, HEAD, COMMANDS = PARTS = (
    "preparation", "vision", "language model", "head", "robot commands",
)  # fmt: skip
SMOKE_LAYERS, SMOKE_BLOCKS = 4, 3  # of the language model and of each tower, 7B wide


@dataclass(frozen=True)
class Arm:
    """One way of running and one shape.

    Attributes:
        execution: See rsd/models/openvla/execution.py.
        depth: Layers of the language model that are run.
        tokens: Patches of a view that reach it.
        pictures: Where they are resized and cropped, "cpu" or "device".
    """

    execution: str
    depth: int
    tokens: int
    pictures: str = "device"

    @property
    def name(self) -> str:
        return f"{self.execution}, {self.depth} layers, {self.tokens} tokens, pictures on {self.pictures}"

    @property
    def precision(self) -> str:
        return FP8 if self.execution == FP8 else "bf16"


def architecture_of(size: str) -> Architecture:
    """Shapes of "7b" or "tiny", or "smoke": a few layers as wide as 7B's."""
    if size != "smoke":
        return openvla_architecture(size=size)
    whole = openvla_architecture(size="7b")
    assert whole.dino is not None and whole.siglip is not None  # all OpenVLAs of this size have both
    return dataclasses.replace(
        whole,
        llm={**whole.llm, "num_hidden_layers": SMOKE_LAYERS},
        dino=dataclasses.replace(whole.dino, depth=SMOKE_BLOCKS),
        siglip=dataclasses.replace(whole.siglip, depth=SMOKE_BLOCKS),
    )


def halves(whole: int) -> list[int]:
    """All, a half and a quarter, as far as they are different and not nothing."""
    return sorted({whole, whole // 2, whole // 4} - {0}, reverse=True)


def arms_of(depths: Sequence[int], tokens: Sequence[int]) -> Iterator[Arm]:
    """The ladder of the whole model first, both ways of preparing pictures; then every shape, by number of tokens: a
    new number has to be compiled for. Both lists begin with the whole.
    """
    for rung in RUNGS:
        for pictures in ("cpu", "device"):
            yield Arm(rung, depths[0], tokens[0], pictures)
    for kept in tokens:
        for depth in depths:
            rungs = (FP8,) if (depth, kept) == (depths[0], tokens[0]) else (*RUNGS, FP8)
            yield from (Arm(rung, depth, kept) for rung in rungs)


def embed_some(model: OpenVLAOFT, inputs: Tensors, *, chunk_length: int, tokens: int) -> Tensors:
    """`segments.embed` with the first `tokens` patches of each view between projector and language model."""
    ids, mask, start = given(inputs, "input_ids"), inputs["attention_mask"], given(inputs, "action_start")
    features = model.vision_features(given(inputs, "pixel_values"), ids, mask, start, chunk_length)
    patches = model.projector(features).unflatten(1, (-1, model.architecture.num_patches))  # [B, M, N, H]
    some = patches[:, :, :tokens].flatten(1, 2)
    sequence = model.assemble(some, ids, mask, start, chunk_length, inputs.get("proprio"))
    return {"x": sequence.embeds, "mask": sequence.mask, "slots": sequence.slots}


class Call:
    """One arm, ready to be called: observation → chunk in model space [1, T, A]; `actions` are its robot commands.

    Args:
        base: Prepares the pictures as the arm wants it; only its model's shapes are used beside that.
        run: Runs the segments as the arm wants it.
    """

    actions: np.ndarray

    def __init__(self, arm: Arm, base: OpenVLABase, run: Run) -> None:
        self.arm, self.base, self.run = arm, base, run

    @torch.no_grad()
    def __call__(self, observation: Observation, mark: Callable[[str], None]) -> np.ndarray:
        """`mark` is told of the end of each part."""
        arm, base, run = self.arm, self.base, self.run
        inputs = base.on_device(base.prepare_live([observation]))
        mark(PREPARATION)
        sequence = run(partial(embed_some, chunk_length=base.chunk_length, tokens=arm.tokens), inputs)
        mark(VISION)
        states = given(run(partial(segments.run_layers, start=0, stop=arm.depth), sequence), "states")
        mark(LANGUAGE)
        chunk = self._read(states)
        mark(HEAD)
        values = chunk.float().cpu().numpy()
        self.actions = base.space.to_robot(values)
        mark(COMMANDS)
        return values

    def _read(self, states: Tensor) -> Tensor:
        """The L1 head on states of any layer: its shape is what counts here."""
        features = self.run(partial(segments.read_head), {"states": states})
        return given(self.run(partial(segments.read_chunk, chunk_length=self.base.chunk_length), features), "chunk")
