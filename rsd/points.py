"""Names of the points of a base model at which its hidden states can be read.

    layer.1 … layer.N   output of a layer of the language model at the action positions, [K, H]; the last after the norm
    head                what the last linear layer of an L1 head reads, [T, H]

Which of them there are is the base model's to say.
"""

from __future__ import annotations

from collections.abc import Iterable

HEAD = "head"
LAYER = "layer."


def point_name(point: int | str) -> str:
    """The name of a point as users write it: 12 is "layer.12"; names stay as they are."""
    return f"{LAYER}{point}" if isinstance(point, int) else point


def point_names(points: Iterable[int | str]) -> list[str]:
    """Names in the order given, each once."""
    return list(dict.fromkeys(map(point_name, points)))
