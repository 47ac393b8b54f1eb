"""Latency of the policy inside the closed loop, part by part, in milliseconds a chunk.

These are the values of every chunk of the run, first calls and warm-up included, on a machine that also runs the
simulator. They say where the time goes; they are no basis for a speed-up, which takes interleaved calls and a check.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rsd.evaluation.plan import Plan
from rsd.types import EpisodeResult

TOTAL = "total"
PARTS_TOLERANCE = 0.05  # largest |sum of parts - total| ÷ total that counts as explained


def busy_note(plan: Plan) -> str | None:
    """Why milliseconds are not those of one observation on an idle machine; None when nothing speaks against it."""
    num_workers, max_batch = plan.num_workers, plan.max_batch
    if num_workers == 1 and max_batch == 1:
        return None
    processes = "1 simulator process" if num_workers == 1 else f"{num_workers} simulator processes"
    observations = "1 observation" if max_batch == 1 else f"up to {max_batch} observations"
    return (
        f"Milliseconds are those of a busy machine: {processes} ran beside the policy, and each of its calls answered "
        f"{observations}."
    )


def summarize_latency(results: Sequence[EpisodeResult], actions_per_chunk: float | None) -> dict[str, Any]:
    """Percentiles by part, and throughput.

    Args:
        results: Any number of episodes.
        actions_per_chunk: Executed actions ÷ predicted chunks; None when there are no chunks.

    Returns:
        unit ("ms per chunk"), num_chunks, parts (in the order of measurement; each: part, num_chunks, mean, p50, p90,
        p99, share of all time), total (the same record or None), parts_sum_ratio (time in all parts ÷ total time) and
        parts_explain_total (within 5 %), chunks_per_s, actions_per_s (policy time only, the simulator left out).
    """
    values: dict[str, list[float]] = {}
    for result in results:
        for part, own in result.latency_ms.items():
            if own:
                values.setdefault(part, []).extend(own)
    totals = values.pop(TOTAL, [])
    total_sum = float(np.sum(totals)) if totals else None
    parts = [_summarize(part, own, total_sum) for part, own in values.items()]
    ratio = sum(float(np.sum(own)) for own in values.values()) / total_sum if total_sum and values else None
    chunks_per_s = 1000.0 * len(totals) / total_sum if total_sum else None
    return {
        "unit": "ms per chunk",
        "num_chunks": len(totals),
        "parts": parts,
        "total": _summarize(TOTAL, totals, total_sum) if totals else None,
        "parts_sum_ratio": ratio,
        "parts_explain_total": abs(ratio - 1) <= PARTS_TOLERANCE if ratio is not None else None,
        "chunks_per_s": chunks_per_s,
        "actions_per_s": chunks_per_s * actions_per_chunk if chunks_per_s and actions_per_chunk else None,
    }


def _summarize(part: str, values: Sequence[float], total_sum: float | None) -> dict[str, Any]:
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    share = float(np.sum(values)) / total_sum if total_sum else None
    return {
        "part": part,
        "num_chunks": len(values),
        "mean": float(np.mean(values)),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "share": share,
    }
