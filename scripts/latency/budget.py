"""What a combination could save at most: sums of measured parts. Projected figures, and called so."""

from __future__ import annotations

from typing import Any

from scripts.latency.arms import COMMANDS, FP8, HEAD, LANGUAGE, PREPARATION, VISION

EXIT_SHARE = 0.46  # of chunks: those that the small policy's draft ended at half depth at no loss, docs/results
SKIP_SHARE = 0.5  # of calls


def best_rung(results: dict[str, Any], pictures: str) -> str | None:
    """The fastest bf16 arm of the whole model; None when none was timed."""
    arms, (depth, tokens) = results["arms"], results["whole"]
    found = [
        name
        for name, arm in arms.items()
        if (arm["depth"], arm["tokens"], arm["pictures"], arm["precision"]) == (depth, tokens, pictures, "bf16")
    ]
    return min(found, key=lambda name: arms[name]["wall_ms"]["median"], default=None)


def part(results: dict[str, Any], name: str, **wanted: Any) -> float | None:
    """Median ms of a part in the first arm of this kind; None when none was timed."""
    for arm in results["arms"].values():
        if all(arm[key] == value for key, value in wanted.items()):
            return float(arm["parts_ms"][name]["median"])
    return None


def projected(results: dict[str, Any], *, depth: int, tokens: int, execution: str) -> float | None:
    """A call's ms: the language model of this shape, and the other parts of the best bf16 call; None without them."""
    best = best_rung(results, "device")
    language = part(results, LANGUAGE, execution=execution, depth=depth, tokens=tokens, pictures="device")
    if best is None or language is None:
        return None
    others = results["arms"][best]["parts_ms"]
    return language + sum(float(others[name]["median"]) for name in (PREPARATION, VISION, HEAD, COMMANDS))


def budget(results: dict[str, Any], *, exit_share: float = EXIT_SHARE, skip_share: float = SKIP_SHARE) -> str:
    """Markdown: combination → projected ms and ceilings, over the best bf16 rung with the same preparation."""
    best = best_rung(results, "device")
    if best is None:
        return "no bf16 call of the whole model was timed with pictures on the device: no budget\n"
    base = results["arms"][best]["wall_ms"]["median"]
    head = ["layers", "tokens a view", "precision", "projected ms", "ceiling"]
    head += [f"{exit_share:.0%} of chunks end there", f"and {skip_share:.0%} of calls are skipped"]
    lines = [f"Projected from measured parts ({results['label']}); 1.00 is {best}, {base:.2f} ms", ""]
    lines += [" | ".join(head), " | ".join("---" for _ in head)]
    shapes = sorted({(arm["depth"], arm["tokens"]) for arm in results["arms"].values()}, reverse=True)
    for execution, precision in ((results["arms"][best]["execution"], "bf16"), (FP8, FP8)):
        for depth, tokens in shapes:
            ms = projected(results, depth=depth, tokens=tokens, execution=execution)
            rest = projected(results, depth=results["whole"][0], tokens=tokens, execution=execution)
            if ms is None or rest is None:
                lines.append(f"{depth} | {tokens} | {precision} | not measured | | |")
                continue
            mixed = exit_share * ms + (1 - exit_share) * rest
            ratios = [base / ms, base / mixed, base / (mixed * (1 - skip_share))]
            cells = [depth, tokens, precision, f"{ms:.2f}", *(f"{ratio:.2f}×" for ratio in ratios)]
            lines.append(" | ".join(map(str, cells)))
    return "\n".join(lines) + "\n"
