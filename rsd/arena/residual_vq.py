"""vector-quantize-pytorch in the arena: residual VQ as in VQ-BeT (arXiv 2403.03181), and its ResidualFSQ to time.

A chunk as a whole goes through an MLP into one latent, whose residual stages are code books learned by moving averages
with the package's own quantiser dropout, so that every depth decodes. The only file that imports the package.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rsd.arena import NOT_INSTALLED, ArenaError
from rsd.arena.contract import Written
from rsd.arena.training import train
from rsd.tokenizer.rfsq import GELU_LIPSCHITZ

LATENT, HIDDEN = 32, 128
NUM_STAGES, CODE_BOOK = 4, 256
MAX_STEPS = 5000
COMMITMENT = 0.25  # weight of the package's own loss
LARGEST_BOOK = 4096  # ResidualFSQ makes a table of all values of a token


def package() -> ModuleType:
    """vector_quantize_pytorch.

    Raises:
        ArenaError: it is not installed.
    """
    try:
        import vector_quantize_pytorch
    except ModuleNotFoundError as error:
        raise ArenaError(
            f"the package vector-quantize-pytorch {NOT_INSTALLED} ({error}); pip install -e '.[arena]'"
        ) from error
    return vector_quantize_pytorch


class ResidualVQ:
    """An MLP over the whole chunk around `vector_quantize_pytorch.ResidualVQ`.

    Raises:
        ArenaError: the package is not installed.
    """

    name, idea, num_stages = "rvq", "residual VQ of whole chunks (VQ-BeT-like)", NUM_STAGES

    def __init__(self, chunk_length: int, action_dim: int, seed: int) -> None:
        self._shape, width = (chunk_length, action_dim), chunk_length * action_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._encoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, LATENT))
            self._decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, width))
            self._books = package().ResidualVQ(
                dim=LATENT,
                num_quantizers=NUM_STAGES,
                codebook_size=CODE_BOOK,
                kmeans_init=True,
                quantize_dropout=True,
                threshold_ema_dead_code=1,
            )

    def fit(self, chunks: Tensor, *, seed: int, max_steps: int | None) -> int:
        steps = MAX_STEPS if max_steps is None else max_steps
        with torch.random.fork_rng(devices=[]):  # the package draws from the global generator
            torch.manual_seed(seed)
            weights = [*self._encoder.parameters(), *self._decoder.parameters()]
            train(weights, self._loss, chunks, steps=steps, seed=seed)
        for part in (self._encoder, self._decoder, self._books):
            part.eval().requires_grad_(False)
        return steps

    def _loss(self, chunks: Tensor, draw: torch.Generator) -> Tensor:
        flat = chunks.flatten(1)
        quantized, _, commitment = self._books(self._encoder(flat)[:, None])
        return (self._decoder(quantized[:, 0]) - flat).square().mean() + COMMITMENT * commitment.mean()

    def encode(self, chunks: Tensor) -> Tensor:
        return self._books(self._encoder(chunks.flatten(1))[:, None])[1][:, 0]  # [N, Q]

    def decode(self, code: Tensor, depth: int) -> Tensor:
        known = code.clone()
        known[:, depth:] = -1  # the package's word for a stage that is not there
        latents = self._books.get_output_from_indices(known[:, None])[:, 0]
        return self._decoder(latents).view(-1, *self._shape)

    def written(self, code: Tensor) -> Written:
        return Written(code, torch.arange(NUM_STAGES), torch.full((NUM_STAGES,), CODE_BOOK))

    def tail_bound(self, depth: int) -> Tensor | None:
        """The farthest that each latent number can go, through the decoder's Lipschitz bound entry by entry."""
        reach = self._books.codebooks[depth:].abs().amax(dim=1).sum(dim=0)  # [D]
        widen, narrow = (layer.weight.abs() for layer in self._decoder if isinstance(layer, nn.Linear))
        return (narrow @ (widen @ reach * GELU_LIPSCHITZ)).view(self._shape)


def residual_fsq(num_scalars: int, num_stages: int, num_levels: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Encoding and decoding of the package's ResidualFSQ for chunks of as many scalars: [N, scalars] each way.

    As many scalars share a token as keep its table of values small: four of seven levels.

    Raises:
        ArenaError: the package is not installed.
    """
    shared = max(count for count in (1, 2, 4) if num_scalars % count == 0 and num_levels**count <= LARGEST_BOOK)
    stages = package().ResidualFSQ(levels=[num_levels] * shared, num_quantizers=num_stages, dim=shared).eval()

    def encode(scalars: Tensor) -> Tensor:
        return stages(scalars.view(len(scalars), -1, shared))[1]

    return encode, stages.get_output_from_indices
