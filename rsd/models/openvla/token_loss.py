"""The original OpenVLA's training loss: cross-entropy of action tokens and stop token, causally (SPEC §5, §7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rsd.models.openvla.action_tokens import IGNORE_LABEL, STOP_TOKEN, encode_actions
from rsd.models.openvla.model import OpenVLAOFT


def token_rows(prompts: list[list[int]], actions: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompt ids and normalised actions → what teacher forcing reads.

    Args:
        prompts: Ids of each prompt, BOS to the closing 29871.
        actions: [B, 1, A], in [-1, 1]; values outside are clipped.
        pad_id: For rows shorter than the longest.

    Returns:
        input_ids and labels, each [B, L], int64; labels are IGNORE_LABEL before the actions and in the padding.
    """
    supervised = [[*row, STOP_TOKEN] for row in encode_actions(actions.flatten(1).cpu().numpy()).tolist()]
    rows = [[*prompt, *tail] for prompt, tail in zip(prompts, supervised, strict=True)]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full((len(rows), longest), IGNORE_LABEL)
    for number, (row, tail) in enumerate(zip(rows, supervised, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        labels[number, len(row) - len(tail) : len(row)] = torch.tensor(tail)
    return ids, labels


def token_loss(model: OpenVLAOFT, pixel_values: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all supervised labels, a scalar; arguments as in `OpenVLAOFT.token_logits`."""
    logits, wanted = model.token_logits(pixel_values, input_ids, labels)
    return F.cross_entropy(logits.float(), wanted)
