"""What a combination could save at most: sums of measured parts. Projected figures, and called so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.latency.arms import COMMANDS, FP8, HEAD, LANGUAGE, PREPARATION, VISION
from scripts.latency.replay import REFERENCE
from scripts.latency.runs import POLICY, SHAPES, Group, Run, groups

EXIT_SHARE = 0.46  # of chunks: those that the small policy's draft ended at half depth at no loss, docs/results
SKIP_SHARE = 0.5  # of calls: every second one
SHARES = (0.25, 0.5, 2 / 3, 0.75, 1.0)

Arms = dict[str, dict[str, Any]]


def best_rung(arms: Arms, whole: Sequence[int], pictures: str = "device") -> str | None:
    """The fastest bf16 arm of the whole model; None when none was timed."""
    wanted = (*whole, pictures, "bf16")
    keys = ("depth", "tokens", "pictures", "precision")
    found = [name for name, arm in arms.items() if tuple(arm[key] for key in keys) == wanted]
    return min(found, key=lambda name: arms[name]["wall_ms"]["median"], default=None)


def records(group: Group) -> Arms:
    """The best record of each arm."""
    return {name: record for name, (_, record) in group.arms.items()}


def part(arms: Arms, name: str, **wanted: Any) -> float | None:
    """Median ms of a part in the first arm of this kind; None when none was timed."""
    for arm in arms.values():
        if all(arm[key] == value for key, value in wanted.items()):
            return float(arm["parts_ms"][name]["median"])
    return None


def projected(arms: Arms, whole: Sequence[int], *, depth: int, tokens: int, execution: str) -> float | None:
    """A call's ms: the language model of this shape, and the other parts of the best bf16 call; None without them."""
    best = best_rung(arms, whole)
    language = part(arms, LANGUAGE, execution=execution, depth=depth, tokens=tokens, pictures="device")
    if best is None or language is None:
        return None
    others = arms[best]["parts_ms"]
    return language + sum(float(others[name]["median"]) for name in (PREPARATION, VISION, HEAD, COMMANDS))


def shapes_budget(group: Group, *, exit_share: float = EXIT_SHARE, skip_share: float = SKIP_SHARE) -> Iterator[str]:
    """Markdown: combination → projected ms and ceilings, over the best bf16 rung with the same preparation."""
    arms, whole = records(group), group.last["whole"]
    best = best_rung(arms, whole)
    if best is None:
        yield "no bf16 call of the whole model was timed with pictures on the device: no budget"
        return
    base = arms[best]["wall_ms"]["median"]
    head = ["layers", "tokens a view", "precision", "projected ms", "ceiling"]
    head += [f"{exit_share:.0%} of chunks end there", f"and {skip_share:.0%} of calls are skipped"]
    yield f"Projected from measured parts ({group.last['label']}); 1.00 is {best}, {base:.2f} ms"
    yield ""
    yield row(head)
    yield row(["---"] * len(head))
    shapes = sorted({(arm["depth"], arm["tokens"]) for arm in arms.values()}, reverse=True)
    for execution, precision in ((arms[best]["execution"], "bf16"), (FP8, FP8)):
        for depth, tokens in shapes:
            ms = projected(arms, whole, depth=depth, tokens=tokens, execution=execution)
            rest = projected(arms, whole, depth=whole[0], tokens=tokens, execution=execution)
            if ms is None or rest is None:
                yield row([depth, tokens, precision, "not measured", "", "", ""])
                continue
            mixed = exit_share * ms + (1 - exit_share) * rest
            ratios = [base / ms, base / mixed, base / (mixed * (1 - skip_share))]
            yield row([depth, tokens, precision, f"{ms:.2f}", *(f"{ratio:.2f}×" for ratio in ratios)])


def policy_budget(group: Group) -> Iterator[str]:
    """Markdown: what a decoding that decides some chunks early comes to, by the share of those chunks."""
    arms = records(group)
    references = {name: arm["wall_ms"]["mean"] for name, arm in arms.items() if arm["decoding"] == REFERENCE}
    if not references:
        yield "l1 was not timed: no budget"
        return
    best = min(references, key=lambda name: references[name])
    base = references[best]
    yield f"Projected from mean ms of chunks that were decided early and of the others; 1.00 is {best}, {base:.2f} ms"
    yield ""
    head = ["", "early ms", "whole ms", "measured share", *(f"{share:.0%} early" for share in SHARES)]
    yield row(head)
    yield row(["---"] * len(head))
    for name, arm in arms.items():
        early = arm["decided_early"]
        if "early_ms" not in early:
            continue
        own = "whole_ms" in early
        other = early["whole_ms"] if own else base  # a decoding that always ends early falls back to l1
        ratios = [base / (share * early["early_ms"] + (1 - share) * other) for share in SHARES]
        cells = [name, f"{early['early_ms']:.2f}", f"{other:.2f}" + ("" if own else " (l1)"), f"{early['share']:.0%}"]
        yield row([*cells, *(f"{ratio:.2f}×" for ratio in ratios)])


def row(cells: Sequence[object]) -> str:
    """One line of a Markdown table."""
    return " | ".join(map(str, cells))


def budget(runs: Sequence[Run]) -> str:
    """The ceilings of every group of runs; Markdown."""
    lines: list[str] = []
    for section, said in ((SHAPES, shapes_budget), (POLICY, policy_budget)):
        for group in groups(runs, section):
            lines += [f"### Budget: {group.last['what']}, {group.last['device']}", "", *said(group), ""]
    return "\n".join(lines) if lines else "nothing was measured: no budget\n"
