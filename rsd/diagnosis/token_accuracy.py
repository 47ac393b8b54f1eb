"""How often the policy's tokens are the demonstration's, against always saying the most frequent one.

A token head can look well trained by its loss alone: most tokens of most demonstrations are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rsd.models.openvla.action_tokens import encode_actions
from rsd.policy.policy import VLAPolicy
from rsd.stages import Absent
from rsd.types import Request

TOKEN_HEADS = ("discrete", "autoregressive")


def has_tokens(policy: VLAPolicy) -> bool:
    """Whether the policy says tokens: by a tokenizer and a target, or by the base model's own head."""
    tokens = policy.tokens
    by_stages = tokens is not None and tokens.tokenizer is not None and not isinstance(tokens.target, Absent)
    return by_stages or policy.base.spec.action_head in TOKEN_HEADS


def demonstrated_tokens(policy: VLAPolicy, demonstrated: np.ndarray) -> np.ndarray:
    """Tokens of demonstrated chunks, model space, [N, T, A]: [N, K, Q]; -1 where there is no choice."""
    tokens = policy.tokens
    if tokens is None or tokens.tokenizer is None or isinstance(tokens.target, Absent):
        return encode_actions(demonstrated).reshape(len(demonstrated), -1, 1)
    indices = tokens.tokenizer.encode(torch.from_numpy(demonstrated).to(policy.device))  # [N, T, D, Q]
    chosen = torch.tensor(tokens.tokenizer.code_shape.levels, device=indices.device) > 1  # [T, D, Q]
    return np.asarray(torch.where(chosen, indices, -1).flatten(1, 2).cpu().numpy())


@torch.inference_mode()
def tokens_of(
    policy: VLAPolicy, requests: Sequence[Request], chunks: np.ndarray, demonstrated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The policy's tokens and the demonstrations', each [N, K, Q]; -1 where there is no choice.

    Each stage of a target is told the demonstration's own stages before it.

    Args:
        chunks, demonstrated: Model space, [N, T, A].
    """
    tokens = policy.tokens
    if tokens is None or tokens.tokenizer is None or isinstance(tokens.target, Absent):
        pairs = [encode_actions(one).reshape(len(one), -1, 1) for one in (chunks, demonstrated)]
        return pairs[0], pairs[1]
    wanted = tokens.tokenizer.encode(torch.from_numpy(demonstrated).to(policy.device))  # [N, T, D, Q]
    target = tokens.target.bind(policy.base.look([one.observation for one in requests]), requests)
    said = []
    for stage in range(wanted.shape[-1]):
        logits = target(wanted[..., :stage], stage, stage + 1)  # [N, T, D, 1, L]
        said.append(logits[..., 0, :].argmax(dim=-1))  # [N, T, D]
    found = torch.stack(said, dim=-1)  # [N, T, D, Q]
    chosen = torch.tensor(tokens.tokenizer.code_shape.levels, device=found.device) > 1  # [T, D, Q]
    both = [torch.where(chosen, one, -1).flatten(1, 2).cpu().numpy() for one in (found, wanted)]
    return both[0], both[1]


def majority(tokens: np.ndarray) -> np.ndarray:
    """The most frequent token of each entry, of [N, K, Q]: [K, Q]."""
    flat = tokens.reshape(len(tokens), -1)
    guesses = []
    for column in flat.T:
        values, counts = np.unique(column, return_counts=True)
        guesses.append(values[counts.argmax()])
    return np.array(guesses).reshape(tokens.shape[1:])
