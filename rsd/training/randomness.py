"""Randomness that a resumed run repeats: a function of the seed, the step, and what it is used for."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(seed: int, step: int, *, stream: int = 0, rank: int = 0) -> torch.Generator:
    """Randomness of one training step, on the CPU.

    PyTorch's CPU generator takes no more than 32 bits of its seed, so the four numbers are mixed (numpy's SeedSequence)
    and not laid side by side.

    Args:
        seed: Of the run, >= 0.
        step: Its number, or a micro batch's, >= 0.
        stream: One for each use of randomness in a step, >= 0.
        rank: Of the process among those that train together, >= 0.
    """
    (mixed,) = np.random.SeedSequence([seed, step, stream, rank]).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed))
