"""What people read: medians of the device time, in ms."""

from __future__ import annotations

import json
from typing import Any

from benchmark_7b.cases import CASES


def table(results: dict[str, Any]) -> str:
    """Results as Markdown."""
    lines = [f"{results['device']}, torch {results['torch']}, {results['size']} shapes, random weights", ""]
    forward = results.get("forward", {})
    for case in CASES:
        if case not in forward:
            continue
        entry = forward[case]
        parts = [name for name in ("vision", "projector", "llm", "head", "whole") if name in entry]
        ways = list(entry["whole"])
        head = ["part", *(f"{way} ms" for way in ways), "floor ms", "best / floor"]
        lines += [f"**{case}** ({entry['tokens']} tokens)", "", " | ".join(head), " | ".join("---" for _ in head)]
        preprocess = entry["preprocess"]["preprocess"]["wall_ms"]["median"]
        lines.append(" | ".join(["preprocess (CPU)", f"{preprocess:.2f}", *[""] * (len(head) - 2)]))
        for part in parts:
            medians = [entry[part][way]["device_ms"]["median"] for way in ways]
            floor = entry.get("floor_ms", {}).get(part)
            ratio = [f"{floor:.2f}", f"{min(medians) / floor:.2f}"] if floor else ["", ""]
            lines.append(" | ".join([part, *(f"{value:.2f}" for value in medians), *ratio]))
        lines.append("")
    for section in ("load", "caching"):
        if section in results:
            lines += [f"**{section}**", "", "```", json.dumps(results[section], indent=1), "```", ""]
    lines += [f"FAILED {name}: {error.splitlines()[-1]}" for name, error in results["errors"].items()]
    return "\n".join(lines) + "\n"
