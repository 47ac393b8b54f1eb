"""What a contestant does to held-out chunks: errors in the robot's units, tokens, bits, use of the alphabet, bounds.

Millimetres and degrees are those of LIBERO's controller: an action moves its goal by up to 5 cm and turns it by up to
0.5 rad. What surprises first: errors are against what the tokenizer was given, so they leave out what normalising cuts
off, which is a row of its own; and they are not clipped to what the robot executes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from rsd.arena.contract import Contestant, Written
from rsd.space import Space

MM = 50.0  # of an action of 1, docs/architecture.md
RADIANS = 0.5
POSITION, ROTATION = slice(0, 3), slice(3, 6)


def distances(said: np.ndarray, meant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of two blocks of standard actions [..., 7]: millimetres between their goals, and degrees between their turns."""
    millimetres = MM * np.linalg.norm(said[..., POSITION] - meant[..., POSITION], axis=-1)
    turns = [
        Rotation.from_rotvec(RADIANS * one[..., ROTATION].reshape(-1, 3)) for one in np.broadcast_arrays(said, meant)
    ]
    return millimetres, np.degrees((turns[0].inv() * turns[1]).magnitude()).reshape(millimetres.shape)


def bound_distances(bound: Tensor, space: Space) -> tuple[float, float]:
    """The largest millimetres and degrees within a bound of model-space entries, [T, A].

    Degrees by the length of the difference of two rotation vectors, which the angle between them does not exceed.
    """
    half = (np.asarray(space.action.high) - np.asarray(space.action.low)) / 2
    moved = bound.double().numpy() * half
    ends = (MM * np.linalg.norm(moved[:, part], axis=-1).max() for part in (POSITION, ROTATION))
    return next(ends), math.degrees(RADIANS / MM * next(ends))


def alphabet_use(written: Written, stage: int) -> dict[str, float]:
    """Tokens, bits, entropy and perplexity of one stage, a chunk.

    Returns:
        tokens, longest: how many, on average and at most; bits: log2 of the values that they could have; entropy: bits
        that they have on average, by the frequencies on these very chunks; perplexity: of a token, the mean over the
        columns. Where columns mean something else in each chunk, one distribution stands for all.
    """
    columns = written.stages == stage
    tokens, levels = written.tokens[:, columns], written.levels[columns]
    there = tokens >= 0
    counts = there.sum(dim=1).double()
    groups = [column[column >= 0] for column in tokens.T] if written.aligned else [tokens[there]]
    entropies = torch.tensor([_entropy(group) for group in groups], dtype=torch.float64)
    each = entropies.sum() if written.aligned else entropies[0] * counts.mean()
    return {
        "tokens": counts.mean().item(),
        "longest": counts.max().item(),
        "bits": (there * levels.double().log2()).sum(dim=1).mean().item(),
        "entropy": each.item(),
        "perplexity": entropies.exp2().mean().item(),
    }


def _entropy(tokens: Tensor) -> float:
    """Bits, of the frequencies of some tokens."""
    shares = tokens.bincount().double() / len(tokens)
    return -(shares[shares > 0] * shares[shares > 0].log2()).sum().item()


@torch.inference_mode()
def measure(contestant: Contestant, chunks: Tensor, space: Space) -> list[dict[str, Any]]:
    """A record for each prefix depth.

    Args:
        contestant: Fitted.
        chunks: Held out, [N, T, 7], float32, model space.
        space: What its numbers mean.

    Returns:
        depth; mean_mm, max_mm, mean_deg, max_deg; gripper_errors, share of the steps on the wrong side; bound_mm,
        bound_deg: what later stages can change, None where nobody can say; tail_mm, tail_deg: what they do change; of
        the stage what `alphabet_use` says; total_tokens and total_bits up to this depth.
    """
    code = contestant.encode(chunks)
    written = contestant.written(code)
    meant = space.action.unnormalize(chunks.numpy())
    whole = space.action.unnormalize(contestant.decode(code, contestant.num_stages).numpy())
    grippers, records = list(space.action.grippers), []
    total_tokens = total_bits = 0.0
    for depth in range(1, contestant.num_stages + 1):
        said = space.action.unnormalize(contestant.decode(code, depth).numpy())
        millimetres, degrees = distances(said, meant)
        tail = distances(said, whole)
        bound = contestant.tail_bound(depth)
        ends = (None, None) if bound is None else bound_distances(bound, space)
        stage = alphabet_use(written, depth - 1)
        total_tokens, total_bits = total_tokens + stage["tokens"], total_bits + stage["bits"]
        wrong = (said[..., grippers] > 0.5) != (meant[..., grippers] > 0.5)
        records.append(
            {
                "depth": depth,
                "mean_mm": float(millimetres.mean()),
                "max_mm": float(millimetres.max()),
                "mean_deg": float(degrees.mean()),
                "max_deg": float(degrees.max()),
                "gripper_errors": float(wrong.mean()) if grippers else 0.0,
                "bound_mm": ends[0],
                "bound_deg": ends[1],
                "tail_mm": float(tail[0].max()),
                "tail_deg": float(tail[1].max()),
                **stage,
                "total_tokens": total_tokens,
                "total_bits": total_bits,
            }
        )
    return records
