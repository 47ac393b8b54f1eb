"""The noise schedule of OpenVLA-OFT's diffusion head and its deterministic sampler (SPEC §10).

Numbers and steps are those of diffusers' DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2") with
everything else at its default: noise prediction, samples clipped to [-1, 1], leading spacing, eta 0.
Sources: DDIM, arXiv 2010.02502; squared cosine, arXiv 2102.09672; openvla-oft @ 213c5ff.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 50
MAX_BETA = 0.999
COSINE_OFFSET = 0.008


def alphas_cumprod() -> Tensor:
    """Share of the signal's variance that is left at each time step, [NUM_TRAIN_TIMESTEPS], float32."""

    def signal(time: float) -> float:
        return math.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

    steps = range(NUM_TRAIN_TIMESTEPS)
    betas = [min(1 - signal((t + 1) / NUM_TRAIN_TIMESTEPS) / signal(t / NUM_TRAIN_TIMESTEPS), MAX_BETA) for t in steps]
    return (1 - torch.tensor(betas, dtype=torch.float32)).cumprod(dim=0)


def timesteps(num_steps: int) -> list[int]:
    """The time steps that a sampler of `num_steps` visits, falling; the last one is 0."""
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_steps {num_steps} of the sampler, expected 1..{NUM_TRAIN_TIMESTEPS}")
    stride = NUM_TRAIN_TIMESTEPS // num_steps
    return [stride * index for index in reversed(range(num_steps))]


def step(sample: Tensor, noise: Tensor, timestep: int, num_steps: int, alphas: Tensor) -> Tensor:
    """One step towards the data.

    Args:
        sample: What is there at `timestep`, any shape.
        noise: The predicted noise in it, same shape.
        num_steps: Of the sampler; decides how far the step goes.
        alphas: From `alphas_cumprod`, on the sample's device.

    Returns:
        The sample at the next smaller time step; after the last one, the data.
    """
    before = timestep - NUM_TRAIN_TIMESTEPS // num_steps
    alpha = alphas[timestep]
    alpha_before = alphas[before] if before >= 0 else torch.ones_like(alpha)
    data = ((sample - (1 - alpha).sqrt() * noise) / alpha.sqrt()).clamp(-1, 1)
    return alpha_before.sqrt() * data + (1 - alpha_before).sqrt() * noise
