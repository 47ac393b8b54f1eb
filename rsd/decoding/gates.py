"""Gates: which observations are decided already, and which go on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rsd.errors import SettingError


class Gate(Protocol):
    """A rule over what is known of each observation so far."""

    def __call__(self, log_probs: Tensor, levels: Tensor) -> Tensor:
        """Which rows are decided, [B], bool.

        Args:
            log_probs: Of the draft's tokens, [B, T, D, m], float32; 0 where an entry has no token.
            levels: Number of levels of every entry, [T, D, Q], int64.
        """


@dataclass(frozen=True, kw_only=True)
class MeanLogProb:
    """Decided where the draft's tokens are likely enough on average.

    A threshold promises nothing by itself; scripts/calibrate.py finds one that does.

    Attributes:
        threshold: Smallest mean log-probability, in nats a token, at which a row is decided: inf decides nothing, -inf
            everything. "inf" and "-inf", as the command line and JSON say them, are the same.
    """

    threshold: float

    def __post_init__(self) -> None:
        if self.threshold in ("inf", "-inf"):
            object.__setattr__(self, "threshold", float(self.threshold))
        if type(self.threshold) not in (int, float) or math.isnan(self.threshold):
            raise SettingError(f"threshold {self.threshold!r}, expected a number of nats, inf or -inf")

    def __call__(self, log_probs: Tensor, levels: Tensor) -> Tensor:
        return self.score(log_probs, levels) >= self.threshold

    def score(self, log_probs: Tensor, levels: Tensor) -> Tensor:
        """What the threshold is held against, [B], nats a token; see `Gate`."""
        exists = levels[..., : log_probs.shape[-1]] > 1  # [T, D, m]
        return log_probs.flatten(1).sum(dim=1) / exists.sum().clamp_min(1)
