"""Where a plot's numbers come to stand in its SVG, and which of them are written at its axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

NUM_TICKS = 5  # at most so many, and one


@dataclass(frozen=True)
class Axis:
    """From values `low` … `high` to places `start` … `end` of the picture, in a straight line."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Place of a value, kept inside, in tenths of a unit."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Round values between low and high, evenly apart."""
        raw = (self.high - self.low) / NUM_TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * n, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
