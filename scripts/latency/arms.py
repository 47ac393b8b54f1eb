"""What is timed of 7B shapes: one call from decoded pictures to robot commands, in one way of running and one shape."""

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
from rsd.models.openvla.model import Architecture
from rsd.models.openvla.random_weights import openvla_architecture
from rsd.models.openvla.segments import Run, Tensors, given
from rsd.models.openvla.visual_tokens import Grid
from rsd.types import Observation

RUNGS = EAGER, CAPTURED, COMPILED = ("eager", "captured", "compiled")  # of bfloat16, slowest first
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
        tokens: Picture tokens of a view that reach it, by `visual_tokens=grid`.
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
    """All arms, those first that goals are about: a run that is cut has them. Both lists begin with the whole."""
    depth, half_depth, number, half_tokens = depths[0], depths[min(1, len(depths) - 1)], tokens[0], tokens[-1]
    if len(tokens) > 1:
        half_tokens = tokens[1]
    said = [
        Arm(COMPILED, depth, number),  # what all others are held against
        Arm(FP8, half_depth, half_tokens),
        Arm(COMPILED, half_depth, number),
        Arm(COMPILED, depth, half_tokens),
        Arm(FP8, depth, number),
        Arm(COMPILED, half_depth, half_tokens),
        Arm(COMPILED, depth, number, "cpu"),
        Arm(CAPTURED, depth, number),
        Arm(EAGER, depth, number),
    ]
    for rungs in ((COMPILED, FP8), (CAPTURED, EAGER)):
        said += [Arm(rung, deep, kept) for kept in tokens for deep in depths for rung in rungs]
    said += [Arm(rung, depth, number, "cpu") for rung in (CAPTURED, EAGER)]
    yield from dict.fromkeys(said)


def selection_of(base: OpenVLABase, tokens: int) -> partial[Tensors] | None:
    """The segment that keeps so many tokens a view; None where they are all."""
    if tokens == base.pictures.num_patches:
        return None
    choose = partial(Grid(num_tokens=tokens).choose, base.pictures)
    return partial(segments.keep, choose=choose, num_pictures=base.num_pictures)


class Call:
    """One arm, ready to be called: observation → chunk in model space [1, T, A]; `actions` are its robot commands.

    Args:
        base: Prepares the pictures as the arm wants it; only its model's shapes are used beside that.
        run: Runs the segments as the arm wants it.
        selection: Of `selection_of`; calls that share graphs share it.
    """

    actions: np.ndarray

    def __init__(self, arm: Arm, base: OpenVLABase, run: Run, selection: partial[Tensors] | None) -> None:
        self.arm, self.base, self.run, self.selection = arm, base, run, selection

    @torch.no_grad()
    def __call__(self, observation: Observation, mark: Callable[[str], None]) -> np.ndarray:
        """`mark` is told of the end of each part."""
        arm, base, run = self.arm, self.base, self.run
        inputs = base.on_device(base.prepare_live([observation]))
        mark(PREPARATION)
        sequence = run(partial(segments.embed, chunk_length=base.chunk_length), inputs)
        if self.selection is not None:
            sequence = run(self.selection, {**sequence, **segments.told(inputs)})
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
