"""The decodings, each a frozen record with its options as fields; none of them knows which models it asks.

Within a stage tokens are independent given the stages before it. A *pass* is one call of the target. At temperature 0
every distribution is one-hot and needs no noise, so greedy decoding has no code of its own.
"""

from rsd.decoding.accept import Certificate, Levels
from rsd.decoding.anytime import Anytime
from rsd.decoding.decoding import (
    DRAFT,
    EARLIER,
    KIND,
    TARGET,
    Decoding,
    asks_tokens,
    from_json,
    stages_of_draft,
    to_json,
)
from rsd.decoding.depth_ar import DepthAR
from rsd.decoding.early_exit import EarlyExit
from rsd.decoding.exit import Exit
from rsd.decoding.gates import Gate, MeanLogProb
from rsd.decoding.horizon import FixedHorizon, Hold
from rsd.decoding.l1 import L1
from rsd.decoding.parallel import Parallel
from rsd.decoding.sampling import Noise
from rsd.decoding.speculative import Speculative, relaxed
from rsd.decoding.temporal import Temporal

__all__ = [
    "DRAFT",
    "EARLIER",
    "KIND",
    "L1",
    "TARGET",
    "Anytime",
    "Certificate",
    "Decoding",
    "DepthAR",
    "EarlyExit",
    "Exit",
    "FixedHorizon",
    "Gate",
    "Hold",
    "Levels",
    "MeanLogProb",
    "Noise",
    "Parallel",
    "Speculative",
    "Temporal",
    "asks_tokens",
    "from_json",
    "relaxed",
    "stages_of_draft",
    "to_json",
]
