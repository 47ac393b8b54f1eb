"""What OpenVLA-OFT fixes per robot: chunk length, widths, and which statistics span [-1, 1] (SPEC §8).

The reference picks these by searching its command line for a word; here they are a config, conf/robot. Widths are also
in the weights and in the statistics, and a contradiction is refused; the chunk length is in no file at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd.normalization import EXTREMES, QUANTILES

BOUNDS = {"quantiles": QUANTILES, "extremes": EXTREMES}


@dataclass(frozen=True, kw_only=True)
class Robot:
    """Constants of one robot.

    Attributes:
        name: For messages.
        chunk_length: T of an OFT checkpoint.
        action_dim, proprio_dim: A and P.
        bounds: "quantiles" (q01, q99) or "extremes" (min, max).
    """

    name: str
    chunk_length: int
    action_dim: int
    proprio_dim: int
    bounds: str

    def __post_init__(self) -> None:
        if self.bounds not in BOUNDS:
            raise ValueError(f"bounds {self.bounds!r} of robot {self.name!r}, expected one of {sorted(BOUNDS)}")
