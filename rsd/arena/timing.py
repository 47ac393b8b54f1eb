"""Milliseconds of encoding and decoding, all arms in turn, so that what else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.arena import ArenaError
from rsd.arena.blocks import Blocks
from rsd.arena.contract import Contestant
from rsd.arena.residual_vq import residual_fsq

WARM_UP = 3  # calls of each arm that are not counted
PERCENTILES = (25, 75)


def in_turn(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each call, arm → [rounds]."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-WARM_UP, rounds):
        for name, call in arms.items():
            begun = time.perf_counter()
            call()
            if number >= 0:
                taken[name].append(1e3 * (time.perf_counter() - begun))
    return {name: np.array(ms) for name, ms in taken.items()}


@torch.inference_mode()
def throughput(contestant: Contestant, chunks: Tensor, rounds: int) -> dict[str, Any]:
    """Chunks a second of a contestant, and of residual stages beside those of vector-quantize-pytorch.

    Args:
        chunks: One batch, [N, T, A].
        rounds: Timed calls of each arm; medians count.

    Returns:
        batch, rounds; encode_per_s, decode_per_s; of the project's own tokenizers "quantizer": for encode and decode
        the ratio of ResidualFSQ's time to ours at equal scalars, stages and levels, as the median of the rounds' ratios
        with its quartiles, or "left_out", why there is none.
    """
    code, depth = contestant.encode(chunks), contestant.num_stages
    arms: dict[str, Callable[[], Any]] = {
        "encode": lambda: contestant.encode(chunks),
        "decode": lambda: contestant.decode(code, depth),
    }
    stages: dict[str, Any] = {}
    if isinstance(contestant, Blocks):
        quantizer, shape = contestant.tokenizer.quantizer, contestant.tokenizer.code_shape
        latents = contestant.tokenizer.to_latents(chunks)
        scalars = latents.flatten(1)
        try:
            encode, decode = residual_fsq(scalars.shape[1], shape.num_stages, shape.num_levels)
            theirs = encode(scalars)
            arms |= {
                "our encode": lambda: quantizer.encode(latents),
                "their encode": lambda: encode(scalars),
                "our decode": lambda: quantizer.decode(code),
                "their decode": lambda: decode(theirs),
            }
        except ArenaError as error:
            stages = {"left_out": str(error)}
    taken = in_turn(arms, rounds)
    for way in ("encode", "decode") if "our encode" in taken else ():
        ratios = taken[f"their {way}"] / taken[f"our {way}"]
        low, high = np.percentile(ratios, PERCENTILES)
        stages[way] = {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}
    found = {f"{way}_per_s": 1e3 * len(chunks) / float(np.median(taken[way])) for way in ("encode", "decode")}
    return {"batch": len(chunks), "rounds": rounds, **found} | ({"quantizer": stages} if stages else {})
