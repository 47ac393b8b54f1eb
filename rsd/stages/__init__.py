"""Models over residual stages: who says what the next stage of a chunk's code is. Target and draft are roles of these.

A *binder* is a model with its place in the base model. Bound to a pass it is `StageLogits`, the one thing that a
decoding knows; what it reads of the base model is computed when it is first asked.
"""

from rsd.stages.base_chunk import BaseChunk
from rsd.stages.head import StageHead
from rsd.stages.head_at import HeadAt, HeadLogits
from rsd.stages.logits import Absent, Binder, NotFiniteError, Numbers, StageLogits
from rsd.stages.numbers import InNumbers, NumberHead, NumbersAt
from rsd.stages.own_look import OwnLook
from rsd.stages.two_exits import TwoExits, Twofold

__all__ = [
    "Absent",
    "BaseChunk",
    "Binder",
    "HeadAt",
    "HeadLogits",
    "InNumbers",
    "NotFiniteError",
    "NumberHead",
    "Numbers",
    "NumbersAt",
    "OwnLook",
    "StageHead",
    "StageLogits",
    "TwoExits",
    "Twofold",
]
