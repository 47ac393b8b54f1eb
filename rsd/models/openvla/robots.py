"""What OpenVLA-OFT fixes per robot: chunk length, widths, which statistics span [-1, 1], the gripper (SPEC §8, §12).

The reference picks these by searching its command line for a word; here they are a config, conf/robot. Widths are also
in the weights and in the statistics, and a contradiction is refused; the chunk length is in no file at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd.errors import SettingError
from rsd.settings import ChunkLength, Width, checked
from rsd.space import BOUNDS, GRIPPERS, LIBERO_GRIPPER


@checked
@dataclass(frozen=True, kw_only=True)
class Robot:
    """Constants of one robot.

    Attributes:
        name: For messages.
        chunk_length: T of an OFT checkpoint.
        action_dim, proprio_dim: A and P.
        bounds: "quantiles" (q01, q99) or "extremes" (min, max), for statistics that do not say it themselves.
        gripper: What is done with the model's gripper before it is executed: "inverted_sign" (robosuite's command) or
            "unchanged".
    """

    name: str
    chunk_length: ChunkLength
    action_dim: Width
    proprio_dim: Width
    bounds: str
    gripper: str = LIBERO_GRIPPER

    def __post_init__(self) -> None:
        if self.bounds not in BOUNDS:
            raise SettingError(f"bounds {self.bounds!r} of robot {self.name!r}, expected one of {sorted(BOUNDS)}")
        if self.gripper not in GRIPPERS:
            raise SettingError(f"gripper {self.gripper!r} of robot {self.name!r}, expected one of {sorted(GRIPPERS)}")
