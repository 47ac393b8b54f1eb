"""One input of a frame at a time is taken away or exchanged; how far the policy's chunk moves, and what that costs.

Two figures an intervention: *moved*, the L1 between the chunks with and without it, and *cost*, how much larger the
error against the demonstration becomes. What surprises first: moving is not using. A policy that was trained on black
pictures moves at random when it is shown real ones, and is no more wrong with another task's than with the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rsd.diagnosis.moments import Moment
from rsd.types import Observation

PICTURES, INSTRUCTION, PROPRIO, ALL_BUT_PROPRIO = "pictures", "instruction", "proprio", "pictures and instruction"
BLACK, NOISE, FROZEN, SWAPPED = "black", "noise", "frozen", "another task's"
EMPTY, NONSENSE, ZERO, NOISY = "no", "nonsense as", "zero", "noisy"
WHITE = 255
NONSENSE_WORDS = "blicket dax wug florp zib"  # words of no language

Change = Callable[[Moment, np.random.Generator], Observation]


@dataclass(frozen=True)
class Intervention:
    """What is changed of an observation.

    Attributes:
        input: PICTURES, INSTRUCTION, PROPRIO or ALL_BUT_PROPRIO.
        kind: How it is changed.
        views: Cameras that are changed; all of them, none, or a single one.
        change: Moment and randomness → what the policy is shown instead.
    """

    input: str
    kind: str
    views: tuple[str, ...]
    alone: bool
    change: Change

    @property
    def name(self) -> str:
        """For people: "black image", "another task's pictures", "no instruction"."""
        return f"{self.kind} {self.views[0] if self.alone else self.input}"


def black(moment: Moment, random: np.random.Generator, view: str) -> np.ndarray:
    return np.zeros_like(moment.own["observation"].images[view])


def noise(moment: Moment, random: np.random.Generator, view: str) -> np.ndarray:
    return random.integers(0, WHITE + 1, moment.own["observation"].images[view].shape, dtype=np.uint8)


def frozen(moment: Moment, random: np.random.Generator, view: str) -> np.ndarray:
    return moment.first["observation"].images[view]


def swapped(moment: Moment, random: np.random.Generator, view: str) -> np.ndarray:
    return moment.other["observation"].images[view]


CAMERAS = {BLACK: black, NOISE: noise, FROZEN: frozen, SWAPPED: swapped}


def of_pictures(kind: str, views: Sequence[str], alone: bool) -> Intervention:
    """These cameras show something else."""

    def change(moment: Moment, random: np.random.Generator) -> Observation:
        own = moment.own["observation"]
        shown = {view: CAMERAS[kind](moment, random, view) for view in views}
        return replace(own, images={**own.images, **shown})

    return Intervention(PICTURES, kind, tuple(views), alone, change)


def of_words(kind: str, say: Callable[[Moment], str]) -> Intervention:
    """Another instruction."""
    return Intervention(
        INSTRUCTION, kind, (), False, lambda moment, random: replace(moment.own["observation"], instruction=say(moment))
    )


def of_proprio(kind: str, feel: Callable[[Moment, np.random.Generator], np.ndarray]) -> Intervention:
    """Another proprio."""

    def change(moment: Moment, random: np.random.Generator) -> Observation:
        own = moment.own["observation"]
        return replace(own, proprio=feel(moment, random).astype(own.proprio.dtype))

    return Intervention(PROPRIO, kind, (), False, change)


def interventions(
    views: Sequence[str], *, nonsense: str | None, several_tasks: bool, proprio_std: np.ndarray | None
) -> Iterator[Intervention]:
    """All that can be done to a policy.

    Args:
        views: Its cameras.
        nonsense: Words that mean nothing to anybody and that its tokenizer takes; None where it takes none.
        several_tasks: Whether the data set has other instructions.
        proprio_std: Standard deviation of the data set's proprio, [P]; None for a policy that is not told it.
    """
    for kind in CAMERAS:
        yield of_pictures(kind, views, alone=False)
        if len(views) > 1:
            yield from (of_pictures(kind, [view], alone=True) for view in views)
    if several_tasks:
        yield of_words(SWAPPED, lambda moment: moment.other["observation"].instruction)
    yield of_words(EMPTY, lambda moment: "")
    if nonsense is not None:
        yield of_words(NONSENSE, lambda moment: nonsense)
    if proprio_std is None:
        return
    std = proprio_std
    yield of_proprio(ZERO, lambda moment, random: np.zeros_like(std))
    yield of_proprio(
        NOISY, lambda moment, random: moment.own["observation"].proprio + std * random.normal(size=len(std))
    )
    yield of_proprio(FROZEN, lambda moment, random: moment.first["observation"].proprio)

    def all_but_proprio(moment: Moment, random: np.random.Generator) -> Observation:
        return replace(moment.other["observation"], proprio=moment.own["observation"].proprio)

    yield Intervention(ALL_BUT_PROPRIO, SWAPPED, tuple(views), False, all_but_proprio)


@dataclass(frozen=True)
class Answers:
    """What a policy said of N moments, model space.

    Attributes:
        chunks: Of the frames as they are, [N, T, A].
        demonstrated: The demonstrations', [N, T, A].
        changed: Intervention → chunks, [N, T, A].
        refused: Name of an intervention that the policy refused → why.
    """

    chunks: np.ndarray
    demonstrated: np.ndarray
    changed: dict[Intervention, np.ndarray]
    refused: dict[str, str]

    def error(self) -> np.ndarray:
        """Held-out error of each moment, [N]."""
        return np.abs(self.chunks - self.demonstrated).mean(axis=(1, 2))

    def moved(self, intervention: Intervention) -> np.ndarray:
        """How far each chunk moved in each dim, [N, A]."""
        return np.abs(self.changed[intervention] - self.chunks).mean(axis=1)

    def cost(self, intervention: Intervention) -> np.ndarray:
        """How much larger the error of each moment became, [N]; below 0 where it became smaller."""
        return np.abs(self.changed[intervention] - self.demonstrated).mean(axis=(1, 2)) - self.error()
