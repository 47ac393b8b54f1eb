"""What goes into a policy and what comes out: environments and data sets have to fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rsd.errors import RSDError
from rsd.types import ALL_TOKENS, Policy


class PolicyError(RSDError, RuntimeError):
    """The parts of a policy do not fit together, or the model produced something that is not an action."""


@dataclass(frozen=True)
class IOContract:
    """A policy's inputs and outputs.

    Attributes:
        views: Names of the pictures that it needs, in the model's order.
        proprio_dim: P that it needs; None for a policy that is not told the proprio.
        action_dim, chunk_length: A and T of its chunks.
        decoding: How chunks are made.
        action_head: How the base model makes its own.
        unnorm_key: Statistics that its actions are un-normalised with.
        visual_tokens: Which picture tokens the base model reads.
    """

    views: tuple[str, ...]
    proprio_dim: int | None
    action_dim: int
    chunk_length: int
    decoding: str
    action_head: str
    unnorm_key: str
    visual_tokens: str = ALL_TOKENS

    @property
    def num_images(self) -> int:
        return len(self.views)

    def check(self, *, views: Sequence[str], proprio_dim: int, action_dim: int) -> None:
        """Hold the contract against what an environment or a data set offers.

        Raises:
            PolicyError: they do not fit; the message names every difference.
        """
        wrong = [f"view {view!r} is needed, offered are {sorted(views)}" for view in self.views if view not in views]
        if self.proprio_dim not in (None, proprio_dim):
            wrong.append(f"proprio of {self.proprio_dim} dims is needed, offered are {proprio_dim}")
        if self.action_dim != action_dim:
            wrong.append(f"actions have {self.action_dim} dims, executed are {action_dim}")
        if wrong:
            raise PolicyError(
                f"policy and environment do not fit: {'; '.join(wrong)}; choose another model or another env"
            )


@runtime_checkable
class Contracted(Policy, Protocol):
    """A policy that says what goes in and comes out."""

    @property
    def contract(self) -> IOContract: ...
