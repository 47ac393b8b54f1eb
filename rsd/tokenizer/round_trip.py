"""A recorded episode as a tokenizer says it: normalised, encoded, decoded from a prefix of stages, un-normalised."""

from __future__ import annotations

import numpy as np
import torch

from rsd.space import Space, SpaceError
from rsd.tokenizer.base import ActionTokenizer


def in_chunks(actions: np.ndarray, chunk_length: int) -> tuple[np.ndarray, list[int]]:
    """Actions [n, A] as chunks one after the other, [m, T, A], and the step at which each begins.

    The last one ends with the episode, and so overlaps the one before; an episode shorter than a chunk repeats its
    last action.
    """
    if len(actions) < chunk_length:
        actions = np.concatenate([actions, np.repeat(actions[-1:], chunk_length - len(actions), axis=0)])
    last = len(actions) - chunk_length
    starts = sorted({*range(0, last, chunk_length), last})
    return np.stack([actions[start : start + chunk_length] for start in starts]), starts


def joined(chunks: np.ndarray, starts: list[int], num_steps: int) -> np.ndarray:
    """The inverse of `in_chunks`, [num_steps, A]; where two overlap the earlier one counts, which began before."""
    length = chunks.shape[1]
    actions = np.empty((max(num_steps, length), chunks.shape[2]), dtype=chunks.dtype)
    for chunk, start in reversed([*zip(chunks, starts, strict=True)]):
        actions[start : start + length] = chunk
    return actions[:num_steps]


def normalised(actions: np.ndarray, space: Space) -> np.ndarray:
    """Standard actions [n, A] after normalising and back alone, which cuts off what is beyond the bounds, [n, A].

    Raises:
        SpaceError: the space is of other actions.
    """
    if len(space.action) != actions.shape[1]:
        raise SpaceError(
            f"actions have {actions.shape[1]} dims, {space.name!r} of the tokenizer {len(space.action)}; give one that "
            "was fitted to this data set"
        )
    return space.action.unnormalize(space.to_model(actions))


@torch.inference_mode()
def round_trip(actions: np.ndarray, tokenizer: ActionTokenizer, space: Space, depth: int) -> np.ndarray:
    """What the first `depth` stages of the tokenizer's code of standard actions [n, A] stand for, standard, [n, A].

    Args:
        space: What the tokenizer's numbers mean.
    """
    chunks, starts = in_chunks(space.to_model(actions), tokenizer.code_shape.chunk_length)
    indices = tokenizer.encode(torch.from_numpy(chunks))  # [m, T, D, Q]
    decoded = tokenizer.decode(indices[..., :depth]).numpy()  # [m, T, A]
    return space.action.unnormalize(joined(decoded, starts, len(actions)))
