"""What people read of latency.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.latency.arms import COMPILED, FP8, PARTS, PREPARATION, VISION
from scripts.latency.budget import best_rung, budget, part, records, row
from scripts.latency.replay import LEVEL, REFERENCE
from scripts.latency.runs import POLICY, SHAPES, TOWERS, Group, Run, groups

CALL_GOALS = ((FP8, 2, 2, 2.5), (COMPILED, 2, 1, 1.6))  # execution, whole depth and tokens over these, least ratio
VISION_MS, PREPARATION_MS, CHUNK_RATIO = 2.0, 1.0, 2.0


def ratio(run: Run, name: str, pictures: str = "device") -> float | None:
    """How many times faster an arm is than the best bf16 rung of the same run; None where one failed its check."""
    arms = run["arms"]
    over = best_rung(arms, run["whole"], pictures)
    if over is None or not (arms[name]["check"]["passed"] and arms[over]["check"]["passed"]):
        return None
    return float(arms[over]["wall_ms"]["median"] / arms[name]["wall_ms"]["median"])


def shapes_goals(group: Group) -> Iterator[str]:
    """What was to be reached at 7B shapes, and what was."""
    arms, (layers, patches) = group.arms, group.last["whole"]
    for execution, depth, tokens, least in CALL_GOALS:
        wanted = (execution, layers // depth, patches // tokens, "device")
        keys = ("execution", "depth", "tokens", "pictures")
        names = [name for name, (_, arm) in arms.items() if tuple(arm[key] for key in keys) == wanted]
        found = ratio(arms[names[0]][0], names[0]) if names else None
        what = f"{execution}, {wanted[1]} layers, {wanted[2]} tokens, at least {least}× over the best bf16 call"
        yield _met(what, found, "×", found is not None and found >= least)
    whole = {"execution": COMPILED, "depth": layers, "tokens": patches, "pictures": "device"}
    for name, most in ((VISION, VISION_MS), (PREPARATION, PREPARATION_MS)):
        ms = part(records(group), name, **whole)
        yield _met(f"{name}, at most {most} ms", ms, " ms", ms is not None and ms <= most)


def policy_goals(group: Group) -> Iterator[str]:
    """What was to be reached of the released policy, and what was: time alone, success is another table."""
    passed = {
        name: arm for name, (_, arm) in group.arms.items() if arm["decoding"] != REFERENCE and arm["check"]["passed"]
    }
    best = max(passed, key=lambda name: passed[name]["over_l1"]["ratio"], default=None)
    found = None if best is None else passed[best]["over_l1"]["ratio"]
    what = f"mean wall time a chunk, at least {CHUNK_RATIO}× shorter than l1 ({best})"
    yield _met(what, found, "×", found is not None and found >= CHUNK_RATIO)


def _met(what: str, found: float | None, unit: str, met: bool) -> str:
    return f"{what}: " + ("not measured" if found is None else f"{found:.2f}{unit}, {'met' if met else 'missed'}")


def _said(check: dict[str, Any]) -> str:
    """How far an arm's outputs were off."""
    off = "not finite" if check["off"] is None else f"{check['off']:.3g}"
    return off + ("" if check["passed"] else f" FAILED (limit {check['limit']})")


def shapes_table(group: Group) -> Iterator[str]:
    """Every arm, its parts, and ratios within its own run."""
    head = ["execution", "layers", "tokens a view", "pictures", "ms", "p90", *PARTS, "× best", "× today", "off by"]
    head.append("run")
    yield from _title(group, "one call from decoded pictures to robot commands, medians")
    yield "× best: over the fastest bf16 rung of the whole model in the same run, pictures on the device; × today: over"
    yield "the same with pictures prepared on the CPU. No ratio where outputs failed their check."
    yield ""
    yield row(head)
    yield row(["---"] * len(head))
    for name, (run, arm) in group.arms.items():
        parts = [f"{arm['parts_ms'][one]['median']:.2f}" for one in PARTS]
        ratios = [ratio(run, name), ratio(run, name, "cpu")]
        cells = [arm["execution"], arm["depth"], arm["tokens"], arm["pictures"], f"{arm['wall_ms']['median']:.2f}"]
        cells += [f"{arm['wall_ms']['p90']:.2f}", *parts, *("" if one is None else f"{one:.2f}" for one in ratios)]
        yield row([*cells, _said(arm["check"]), list(group.runs).index(run) + 1])
    yield from _troubles(group)


def policy_table(group: Group) -> Iterator[str]:
    """Every decoding, its mean time and its counted work."""
    yield from _title(group, "from decoded pictures to robot commands, in recorded episodes of l1")
    yield f"× l1: mean of the fastest rung of l1 in the same run over the arm's, {LEVEL} % paired bootstrap interval. A"
    yield "held chunk has more steps. Outputs: share of timed chunks that are what the decoding promises."
    yield ""
    head = ["decoding", "execution", "mean ms a chunk", "median", "p90", "ms a step", "× l1", "decided early", "layers"]
    head += ["pictures", "outputs", "calls"]
    yield row(head)
    yield row(["---"] * len(head))
    for arm in records(group).values():
        over, ms, check = arm["over_l1"], arm["wall_ms"], arm["check"]
        low, high = over["interval"]
        gain = f"{over['ratio']:.2f} ({low:.2f} … {high:.2f})" if check["passed"] else ""
        cells = [arm["decoding"], arm["execution"], f"{ms['mean']:.2f}", f"{ms['median']:.2f}", f"{ms['p90']:.2f}"]
        cells += [f"{arm['ms_a_step']:.2f}", gain, f"{arm['decided_early']['share']:.0%}"]
        cells += [f"{arm['work'][name]:.2f}" for name in ("base_layers", "pictures_prepared")]
        yield row([*cells, f"{check['agreeing']:.1%}" + ("" if check["passed"] else " FAILED"), ms["calls"]])
    yield from _troubles(group)


def towers_table(group: Group) -> Iterator[str]:
    """The vision towers alone."""
    yield from _title(group, "the vision towers of one call alone, as one CUDA graph")
    yield row(["way", "ms", "p90", "off by"])
    yield row(["---"] * 4)
    for name, arm in records(group).items():
        yield row([name, f"{arm['wall_ms']['median']:.2f}", f"{arm['wall_ms']['p90']:.2f}", _said(arm["check"])])
    yield from _troubles(group)


def _title(group: Group, what: str) -> Iterator[str]:
    last = group.last
    yield f"## {last['what']}, {last['device']}"
    yield ""
    turns = f"{last['rounds']} calls an arm in turn after {last['warmup']}"
    load = f"; load {last['load']} at the start" if "load" in last else ""
    yield f"torch {last['torch']}, {last['label']}; {what}; {turns}{load}"
    yield ""


def _troubles(group: Group) -> Iterator[str]:
    """What was refused or failed in the last run, left for the next one, and sums that are none."""
    run = group.last
    reasons: dict[str, list[str]] = {}
    for one, why in run.get("refused", {}).items():
        reasons.setdefault(why, []).append(one)
    lines = [f"refused, {len(names)} arms ({names[0]} …): {why}" for why, names in reasons.items()]
    lines += [f"{one}: FAILED: {why.splitlines()[-1]}" for one, why in run.get("failed", {}).items()]
    if left := [name for name in run.get("postponed", ()) if name not in group.arms]:
        lines.append(f"not measured for want of time, {len(left)} arms: {'; '.join(left)}")
    lines += [
        f"{name}: its parts do not sum to the whole within 5 %, but to {arm['parts_over_whole']:.0%}"
        for name, arm in records(group).items()
        if not arm.get("parts_sum", True)
    ]
    if found := run.get("fp8_deviation"):
        lines.append(f"fp8 moves the first observation's chunk by {found['max_rel']:.3g} of its largest value")
    if lines:
        yield ""
        yield from (f"* {line}" for line in lines)


def table(runs: Sequence[Run]) -> str:
    """Results as Markdown."""
    lines = ["# Latency", ""]
    lines += ["Made of `latency.json` by `python scripts/benchmark_latency.py`.", ""]
    for section, said, goals in (
        (SHAPES, shapes_table, shapes_goals),
        (TOWERS, towers_table, None),
        (POLICY, policy_table, policy_goals),
    ):
        for group in groups(runs, section):
            lines += [*said(group), ""]
            if goals is not None:
                lines += ["Goals:", "", *(f"* {line}" for line in goals(group)), ""]
    return "\n".join(lines) + "\n" + budget(runs)
