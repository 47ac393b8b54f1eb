"""The clock of a Queue: no chunk is there sooner than `delay` control steps after its picture.

A simulator waits for its policy, a robot does not. What is done in the meantime is a choice, the group `async`:

    none       the robot stands still until the chunk is there: no movement, the gripper as last commanded
    naive      the next chunk is asked for early enough, and the old one goes on meanwhile; when the new one comes, its
               first `delay` actions are late and are dropped
    corrected  the same, and a small network corrects the other actions of the new one, from the newest picture and
               proprio (A2C2, arXiv 2509.23224)

What surprises first: one chunk is computed at a time. Where `delay` is more than what a chunk leaves to execute, the
old one goes on as far as it reaches, and then the robot stands still. The first chunk of an episode is always waited
for; as nothing has moved by then, nothing of it is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypedDict

from rsd.errors import RSDError, SettingError
from rsd.settings import Natural, checked

ClockRecord = TypedDict("ClockRecord", {"delay": Natural, "async": str})  # as plan.json and servers tell it
OTHERS = "async=none (the robot waits), async=naive or async=corrected"


class DelayError(RSDError, ValueError):
    """A delay after which nothing of a chunk is left to execute."""


@checked
@dataclass(frozen=True, kw_only=True)
class Clock:
    """async=none: the robot waits for its chunk.

    Attributes:
        delay: Control steps from a picture to the first action that comes of it; 0 is a simulator that waits.
        name: Of the choice.
        goes_on: Whether the old chunk is executed until the new one is there.
        corrects: Whether a chunk that comes late is corrected by what is seen at that moment.
    """

    name: ClassVar[str] = "none"
    goes_on: ClassVar[bool] = False
    corrects: ClassVar[bool] = False
    delay: Natural = 0

    def check(self, chunk_length: int) -> None:
        """See that something of a chunk of so many actions is left to execute.

        Raises:
            DelayError: nothing is.
        """
        longest = chunk_length - 1 if self.goes_on else chunk_length
        if self.delay > longest:
            why = "of which nothing is left when it comes" if self.goes_on else "which are fewer"
            raise DelayError(
                f"delay={self.delay} with async={self.name}, but a chunk has {chunk_length} actions, {why}; set delay "
                f"to {longest} or less, or train for longer chunks (chunk=)"
            )

    def to_json(self) -> ClockRecord | None:
        """As plan.json tells it; None where nothing is late, whatever would be done then."""
        return {"delay": self.delay, "async": self.name} if self.delay else None


@checked
@dataclass(frozen=True, kw_only=True)
class Naive(Clock):
    """async=naive: the old chunk goes on, and the late actions of the new one are dropped."""

    name: ClassVar[str] = "naive"
    goes_on: ClassVar[bool] = True


@checked
@dataclass(frozen=True, kw_only=True)
class Corrected(Naive):
    """async=corrected: as async=naive, and the other actions of the new chunk are corrected when it comes."""

    name: ClassVar[str] = "corrected"
    corrects: ClassVar[bool] = True


@checked
def refuse_rtc(**_: Any) -> NoReturn:
    """Raise SettingError: what async=rtc is, and what to use instead."""
    raise SettingError(
        "async=rtc is real-time chunking (arXiv 2506.07339): it completes a chunk around the actions already on their "
        "way while a flow or diffusion head denoises it. An L1 head says its chunk in one go and has nothing to "
        f"complete, and for the diffusion head it is not built here; use {OTHERS}"
    )
