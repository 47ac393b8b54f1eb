"""What a codec does to real chunks: error per prefix depth, and how much of each stage's alphabet is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsd.tokenizer.base import ActionTokenizer

GAIN = 0.05  # a stage counts as a gain when it lowers the mean squared error by at least this fraction


@torch.no_grad()
def codec_report(tokenizer: ActionTokenizer, chunks: Tensor) -> dict[str, Any]:
    """Measure a tokenizer on normalised chunks, everything decoded from the integers alone.

    Args:
        tokenizer: In evaluation mode.
        chunks: [N, T, A], float32, normalised, gripper 0 or 1.

    Returns:
        JSON types. Lists have one entry per stage or per prefix depth (1..Q):
        mse, max_error: over all entries of the chunk; gripper_errors: share of steps on the wrong side of 0.5;
        bound: largest change that later stages can still make; tokens, bits; perplexity: of the level index, averaged
        over the entries that have a token; residual_std: of what is left over after the stage, in latent units.
        bits_per_chunk: of all stages.
        useful_stages: the last depth at which the error fell by at least 5 %. gripper_majority_errors: what always
        saying the more frequent side would get wrong, beside gripper_errors.
    """
    indices = tokenizer.encode(chunks)  # [N, T, D, Q]
    latents = tokenizer.to_latents(chunks)
    shape = tokenizer.code_shape
    levels = torch.tensor(shape.levels)  # [T, D, Q]
    names = ("mse", "max_error", "gripper_errors", "bound", "perplexity", "residual_std")
    report: dict[str, Any] = {name: [] for name in names}
    report |= {"tokens": shape.tokens_per_stage, "bits": shape.bits_per_stage, "num_chunks": len(chunks)}
    report["bits_per_chunk"] = sum(shape.bits_per_stage)
    grippers = list(tokenizer.grippers)
    is_open = chunks[..., grippers] > 0.5  # [N, T, G]
    opened = is_open.float().mean(dim=(0, 1))  # [G]
    report["gripper_majority_errors"] = torch.minimum(opened, 1 - opened).mean().item() if grippers else 0.0
    for depth in range(1, shape.num_stages + 1):
        prefix = indices[..., :depth]
        error = tokenizer.decode(prefix) - chunks
        wrong = (tokenizer.decode(prefix)[..., grippers] > 0.5) != is_open
        report["mse"].append(error.square().mean().item())
        report["max_error"].append(error.abs().max().item())
        report["gripper_errors"].append(wrong.float().mean().item() if grippers else 0.0)
        report["bound"].append(tokenizer.action_bound(depth).max().item())
        report["perplexity"].append(_perplexity(prefix[..., -1], levels[..., depth - 1], shape.num_levels))
        report["residual_std"].append((latents - tokenizer.quantizer.decode(prefix)).std().item())
    mse = report["mse"]
    gains = [1] + [depth + 1 for depth in range(1, len(mse)) if mse[depth] < (1 - GAIN) * mse[depth - 1]]
    report["useful_stages"] = max(gains)
    return report


def _perplexity(stage: Tensor, levels: Tensor, num_levels: int) -> float:
    """exp(entropy) of the level index, averaged over the entries [T, D] that have a token; 1.0 if none has."""
    used = torch.nn.functional.one_hot(stage, num_levels).double().mean(dim=0)  # [T, D, L]
    entropy = -(used * used.clamp_min(1e-12).log()).sum(dim=-1)  # [T, D]
    return entropy[levels > 1].exp().mean().item() if (levels > 1).any() else 1.0
