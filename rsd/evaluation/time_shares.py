"""Where the wall-clock time of the episodes went.

With several workers the episodes overlap, so their seconds add up to more than the run took; shares stay meaningful.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd.types import EpisodeResult

KINDS = ("policy", "physics", "rendering", "reset")
IDLE = "idle"
CLOCK_S = 1e-9  # less was not measured (`Measured` in rsd/settings.py)


def summarize_time(results: Sequence[EpisodeResult]) -> dict[str, Any] | None:
    """Seconds and shares by kind of work, over the episodes that recorded them.

    Returns:
        num_episodes, wall_s (their sum), parts (each: part, seconds, share); "idle" is what no part accounts for, and
        "policy" includes waiting for one that other workers keep busy. None when no episode has times.
    """
    timed = [result for result in results if result.time_s]
    wall_s = sum(result.wall_s for result in timed)
    if not wall_s:
        return None
    seconds = {kind: sum(result.time_s[kind] for result in timed) for kind in KINDS}
    rest = wall_s - sum(seconds.values())
    seconds[IDLE] = rest if rest >= CLOCK_S else 0.0  # what no clock measures is rounding, below zero as above
    parts = [{"part": kind, "seconds": value, "share": value / wall_s} for kind, value in seconds.items()]
    return {"num_episodes": len(timed), "wall_s": wall_s, "parts": parts}
