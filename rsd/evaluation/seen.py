"""What an episode began with, as digests: two runs whose digests are equal saw the same at first.

What surprises first: pictures are those that the policy was given, so another renderer (a GPU's EGL beside OSMesa), or
an ablation, gives other digests of the same init state. The init state is the simulator's, whatever is shown of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from rsd.types import Env, EpisodeResult, Observation

DIGITS = 16  # hex digits of a digest: 64 bits
INIT_STATE, PROPRIO = "init_state", "proprio"


def digest(array: np.ndarray) -> str:
    """First digits of the SHA-256 of an array's type, shape and bytes."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:DIGITS]


def seen_first(env: Env, init_state_id: int, first: Observation) -> dict[str, str]:
    """Digests of an episode's init state (of environments that tell theirs), of each first picture, and of proprio."""
    told = getattr(env, INIT_STATE, None)
    state = {} if told is None else {INIT_STATE: digest(np.asarray(told(init_state_id)))}
    pictures = {view: digest(picture) for view, picture in first.images.items()}
    return {**state, **pictures, PROPRIO: digest(np.asarray(first.proprio))}


def told_inputs(pairs: Sequence[tuple[EpisodeResult, EpisodeResult]], names: tuple[str, str]) -> list[str]:
    """A sentence on whether two runs' pairs of episodes began with the same; none where one of them did not record it.

    Args:
        names: Of the two runs.
    """
    both = [(one.seen, other.seen) for one, other in pairs if one.seen and other.seen]
    if not both:
        return []
    between = f"{names[0]} and {names[1]}"
    unlike = [name for name in both[0][0] if any(_differ(one, other, name) for one, other in both)]
    if not unlike:
        return [f"{between} began with the same init states, first pictures and proprio in {len(both)} pairs."]
    counts = ", ".join(f"{name} in {sum(_differ(*pair, name) for pair in both)}" for name in unlike)
    return [f"{between} did not begin with the same, of {len(both)} pairs: other {counts}."]


def _differ(one: Mapping[str, str], other: Mapping[str, str], name: str) -> bool:
    return name in one and name in other and one[name] != other[name]
