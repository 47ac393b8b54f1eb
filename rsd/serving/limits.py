"""What a server takes of its clients, the same over REST and over a websocket."""

from __future__ import annotations

from dataclasses import dataclass

from rsd.settings import Count, Positive, checked

MAX_BODY_BYTES = 16 * 2**20  # two raw pictures of 256 pixels are 0.4 MB
MAX_INSTRUCTION = 10_000  # characters; no base model's prompt holds as many
MAX_SESSIONS = 128
IDLE_S = 900.0  # a simulator may take minutes to build its next scene


@checked
@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client, and all of them together, may ask for.

    Attributes:
        body_bytes: Of one message.
        sessions: Open at a time; over a websocket each connection is one. As many requests are answered at a time.
        idle_s: Without a message, until a session ends.
        instruction: Characters.
    """

    body_bytes: Count = MAX_BODY_BYTES
    sessions: Count = MAX_SESSIONS
    idle_s: Positive = IDLE_S
    instruction: Count = MAX_INSTRUCTION

    @property
    def waiting_bytes(self) -> int:
        """Of all clients, that came and are not answered yet."""
        return 12 * self.body_bytes
