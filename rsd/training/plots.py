"""Plots that the phases leave beside their checkpoints, and a calibration beside its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#1f2933", "#2563eb", "#9aa5b1"


def _axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    return figure, axes


def plot_codec(report: dict[str, Any], bins: dict[str, Any], path: Path) -> None:
    """Mean squared error per prefix depth against bits, beside the 256 bins."""
    figure, axes = _axes("Reconstruction error, decoded from the integers", "bits per chunk", "MSE (normalised)")
    total, cumulative = 0.0, []
    for bits in report["bits"]:
        total += bits
        cumulative.append(total)
    axes.plot(cumulative, report["mse"], "o-", color=ACCENT, label="this tokenizer, depth 1, 2, …")
    axes.plot(bins["bits"], bins["mse"], "s", color=MUTED, label="256 bins")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def plot_stages(accuracy: list[float], ece: list[float], path: Path) -> None:
    """Token accuracy and calibration error of each stage."""
    figure, axes = _axes("Held-out tokens, true prefix", "stage", "share")
    stages = range(1, len(accuracy) + 1)
    axes.bar(stages, accuracy, color=ACCENT, width=0.6, label="token accuracy")
    axes.plot(stages, ece, "o-", color=INK, label="expected calibration error")
    axes.set_ylim(0, 1)
    axes.set_xticks(list(stages))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def plot_risk_coverage(
    found: dict[str, Any], rows: list[tuple[float, float, float | None]], ylabel: str, path: Path
) -> None:
    """Risk of each threshold against the share of chunks that it lets through.

    Args:
        found: Evidence of a calibration: its risk (the promised one), threshold, coverage and coverage_blind.
        rows: Coverage, risk and its upper bound (None: not drawn) of each threshold.
        ylabel: What the risk is.
    """
    figure, axes = _axes("Risk and coverage on held-out episodes", "share of chunks that pass the gate", ylabel)
    covered, risk, bound = zip(*sorted(rows), strict=True)
    axes.plot(covered, risk, "o-", color=ACCENT, markersize=3, label="measured")
    if None not in bound:
        axes.plot(covered, bound, "--", color=MUTED, label=f"bound, but for a probability of {found['delta']:g}")
    axes.axhline(found["risk"], color="#b91c1c", linewidth=1, label=f"promised: {found['risk']:g}")
    axes.axvline(found["coverage"], color=INK, linewidth=1, label=f"threshold {found['threshold']:.4g}")
    name, share = max(found["coverage_blind"].items(), key=lambda item: item[1])  # the canary that passes most
    axes.axvline(share, color=MUTED, linewidth=1, linestyle=":", label=f"passes with {name}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, min(1.0, 4 * found["risk"]))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
