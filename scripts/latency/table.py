"""What people read of latency.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.latency.arms import FP8, PARTS, PREPARATION, VISION
from scripts.latency.budget import best_rung, budget, part


def ratio(results: dict[str, Any], name: str, over: str | None) -> float | None:
    """How many times faster an arm is; None where its outputs, or the other's, failed their check."""
    arms = results["arms"]
    if over is None or not (arms[name]["check"]["passed"] and arms[over]["check"]["passed"]):
        return None
    return float(arms[over]["wall_ms"]["median"] / arms[name]["wall_ms"]["median"])


def goals(results: dict[str, Any]) -> Iterator[str]:
    """What was to be reached, and what was."""
    layers, patches = results["whole"]
    best = best_rung(results, "device")

    def line(what: str, found: float | None, met: bool, unit: str) -> str:
        return f"{what}: " + ("not measured" if found is None else f"{found:.2f}{unit}, {'met' if met else 'missed'}")

    for execution, depth, tokens, least in (
        (FP8, layers // 2, patches // 2, 2.5),
        ("compiled", layers // 2, patches, 1.6),
    ):
        names = [
            name
            for name, arm in results["arms"].items()
            if (arm["execution"], arm["depth"], arm["tokens"]) == (execution, depth, tokens)
        ]
        found = ratio(results, names[0], best) if names else None
        what = f"{execution}, {depth} layers, {tokens} tokens, at least {least}× over the best bf16 call"
        yield line(what, found, found is not None and found >= least, "×")
    whole = {"execution": "compiled", "depth": layers, "tokens": patches, "pictures": "device"}
    for name, most in ((VISION, 2.0), (PREPARATION, 1.0)):
        found = part(results, name, **whole)
        yield line(f"{name}, at most {most} ms", found, found is not None and found <= most, " ms")


def _said(check: dict[str, Any]) -> str:
    """How far an arm's outputs were off."""
    if check["max_rel"] is None:
        return "not checked"
    return f"{check['max_rel']:.3g}" + ("" if check["passed"] else f" FAILED (limit {check['limit']})")


def table(results: dict[str, Any]) -> str:
    """Results as Markdown."""
    best, today = best_rung(results, "device"), best_rung(results, "cpu")
    head = [
        "execution",
        "layers",
        "tokens a view",
        "pictures",
        "ms",
        "p90",
        *PARTS,
        "× best",
        "× today",
        "outputs off by",
    ]
    lines = [
        f"{results['device']}, torch {results['torch']}, {results['size']} shapes, {results['label']}, "
        f"{results['rounds']} calls an arm in turn; one call from decoded pictures to robot commands",
        "",
        f"× best: over {best}; × today: over {today}. No ratio where outputs failed their check.",
        "",
        " | ".join(head),
        " | ".join("---" for _ in head),
    ]
    for name, arm in results["arms"].items():
        parts = [f"{arm['parts_ms'][one]['median']:.2f}" for one in PARTS]
        ratios = [ratio(results, name, over) for over in (best, today)]
        check = arm["check"]
        cells = [arm["execution"], arm["depth"], arm["tokens"], arm["pictures"], f"{arm['wall_ms']['median']:.2f}"]
        cells += [f"{arm['wall_ms']['p90']:.2f}", *parts, *("" if one is None else f"{one:.2f}" for one in ratios)]
        cells.append(_said(check))
        lines.append(" | ".join(map(str, cells)))
    reasons: dict[str, list[str]] = {}
    for one, why in results["refused"].items():
        reasons.setdefault(why, []).append(one)
    lines += ["", *(f"refused, {len(names)} arms ({names[0]} …): {why}" for why, names in reasons.items())]
    lines += [f"{one}: FAILED: {why.splitlines()[-1]}" for one, why in results["failed"].items()]
    wrong = [one for one, arm in results["arms"].items() if not arm["parts_sum"]]
    lines += [f"{one}: its parts do not sum to the whole within 5 %" for one in wrong]
    if results.get("vision"):
        lines += ["", "Vision alone, ms: " + ", ".join(
            f"{one} {found['device_ms']['median']:.2f}" if "device_ms" in found else f"{one} FAILED"
            for one, found in results["vision"].items()
        )]  # fmt: skip
    lines += ["", "Goals", "", *(f"* {line}" for line in goals(results)), "", "Budget", "", budget(results)]
    return "\n".join(lines)
