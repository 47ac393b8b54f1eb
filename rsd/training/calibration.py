"""How good and how honest stage predictions are: accuracy, calibration and surprise of each stage."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_CONFIDENCE_BINS = 15  # of the expected calibration error (Guo et al., arXiv 1706.04599)


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Mean distance between confidence and accuracy over equal-width confidence bins, weighted by their share.

    Args:
        confidence: [N], float in 0..1.
        correct: [N], bool.
    """
    edges = torch.linspace(0, 1, NUM_CONFIDENCE_BINS + 1, device=confidence.device)[1:-1]
    bins = torch.bucketize(confidence, edges)
    total = 0.0
    for index in bins.unique():
        inside = bins == index
        gap = (confidence[inside].mean() - correct[inside].float().mean()).abs()
        total += (gap * inside.float().mean()).item()
    return total


def stage_report(logits: Tensor, labels: Tensor, levels: Tensor) -> dict[str, list[float]]:
    """Per-stage quality of teacher-forced predictions.

    Args:
        logits: [N, T, D, Q, L], float32.
        labels: [N, T, D, Q], int64.
        levels: [T, D, Q], int64; entries with one level are left out.

    Returns:
        token_accuracy, stage_accuracy (all tokens of the stage right), ece, nll (nats per token); one value a stage.
    """
    report: dict[str, list[float]] = {"token_accuracy": [], "stage_accuracy": [], "ece": [], "nll": []}
    for stage in range(labels.shape[-1]):
        exists = levels[..., stage] > 1  # [T, D]
        log_probs = torch.log_softmax(logits[..., stage, :], dim=-1)[:, exists]  # [N, tokens, L]
        truth = labels[..., stage][:, exists]  # [N, tokens]
        confidence, choice = log_probs.exp().max(dim=-1)
        correct = choice == truth
        report["token_accuracy"].append(correct.float().mean().item())
        report["stage_accuracy"].append(correct.all(dim=1).float().mean().item())
        report["ece"].append(expected_calibration_error(confidence.flatten(), correct.flatten()))
        report["nll"].append(-log_probs.gather(-1, truth[..., None]).mean().item())
    return report
