"""Plots that the phases leave beside their checkpoints."""

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
