"""OpenVLA's 256-bin action tokens: normalised action values ↔ ids at the end of Llama's vocabulary (SPEC §5).

What surprises first: 256 bin *edges* give 255 bins, so the last two of the 256 ids decode to the same centre, and ±1
are never returned. "Is an action token" is one comparison, id > 31743, which also holds for ids that no bin produces.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

VOCAB_SIZE = 32000  # Llama-2's own vocabulary, without the added <PAD> and the padding to a multiple of 64
NUM_BINS = 256
ACTION_TOKEN_BEGIN = VOCAB_SIZE - (NUM_BINS + 1)  # 31743: ids above it are action tokens
STOP_TOKEN = 2  # </s>
IGNORE_LABEL = -100

BIN_EDGES = np.linspace(-1, 1, NUM_BINS)  # [256]
BIN_CENTERS = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2  # [255]


def encode_actions(actions: np.ndarray) -> np.ndarray:
    """Normalised actions, any shape → token ids of the same shape, int64, in 31744..31999; values are clipped to ±1."""
    return VOCAB_SIZE - np.digitize(np.clip(actions, -1, 1), BIN_EDGES).astype(np.int64)


def decode_actions(token_ids: np.ndarray) -> np.ndarray:
    """Token ids, any shape → bin centres of the same shape, float64; ids outside the range give an end bin."""
    return BIN_CENTERS[np.clip(VOCAB_SIZE - np.asarray(token_ids) - 1, 0, NUM_BINS - 2)]


def decode_action_ids(token_ids: Tensor) -> Tensor:
    """As `decode_actions`, for tensors on any device; float32."""
    return _centers(token_ids.device)[(VOCAB_SIZE - token_ids - 1).clamp(0, NUM_BINS - 2)]


@cache
@torch.inference_mode(False)
def _centers(device: torch.device) -> Tensor:
    """BIN_CENTERS on a device, float32; kept there, because a copy from the host cannot be part of a CUDA graph."""
    return torch.from_numpy(BIN_CENTERS).to(device, torch.float32)


def action_masks(labels: Tensor, action_dim: int) -> tuple[Tensor, Tensor]:
    """Which labels belong to the first action of the chunk, and which to the later ones.

    Args:
        labels: [B, L], int64; IGNORE_LABEL outside the supervised positions.

    Returns:
        (current, next), each [B, L], bool. Their union marks the K action tokens.
    """
    supervised = (labels != IGNORE_LABEL).cumsum(dim=1)
    action = labels > ACTION_TOKEN_BEGIN
    return action & (supervised <= action_dim), action & (supervised > action_dim)


def action_start(labels: Tensor, num_action_tokens: int) -> Tensor:
    """Index of the first action token of each row, [B], int64.

    Raises:
        ValueError: a row does not hold exactly num_action_tokens action tokens in one run.
    """
    action = labels > ACTION_TOKEN_BEGIN  # [B, L]
    start = action.int().argmax(dim=1)
    offset = torch.arange(labels.shape[1], device=labels.device) - start[:, None]
    expected = (offset >= 0) & (offset < num_action_tokens)
    wrong = (action != expected).any(dim=1).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            f"rows {wrong} of labels hold {action[wrong].sum(dim=1).tolist()} action tokens (ids above "
            f"{ACTION_TOKEN_BEGIN}), expected {num_action_tokens} in one run; check chunk_length and action_dim"
        )
    return start
