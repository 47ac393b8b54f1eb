"""Several ways to do the same episodes, each held against one of them: rates, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsd.comparison.paired import PairedCounts, difference_interval, mcnemar
from rsd.evaluation.statistics import wilson_interval


def summarize_arms(outcomes: Sequence[Mapping[str, bool]], reference: str) -> list[dict[str, Any]]:
    """A record for each arm, in the order in which they come.

    Args:
        outcomes: Of each episode arm → success; an episode without an arm does not count for it.
        reference: The arm that the others are compared with.

    Returns:
        arm, num_episodes, num_success, success_rate, success_low, success_high (95 %, Wilson); of all but the reference
        num_pairs, lost and gained (episodes that only the reference, or only this arm solves), difference (of the two
        rates), difference_low, difference_high (95 %, Tango), p (exact McNemar); None there where there are no pairs.
    """
    records = []
    for arm in dict.fromkeys(name for one in outcomes for name in one):
        own = [one[arm] for one in outcomes if arm in one]
        low, high = wilson_interval(sum(own), len(own))
        record: dict[str, Any] = {
            "arm": arm,
            "num_episodes": len(own),
            "num_success": sum(own),
            "success_rate": sum(own) / len(own),
            "success_low": low,
            "success_high": high,
        }
        if arm != reference:
            record |= _paired([(one[reference], one[arm]) for one in outcomes if reference in one and arm in one])
        records.append(record)
    return records


def _paired(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    counts = PairedCounts(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))
    low, high = difference_interval(counts)
    return {
        "num_pairs": len(pairs),
        "lost": counts.only_first,
        "gained": counts.only_second,
        "difference": counts.difference,
        "difference_low": low if pairs else None,
        "difference_high": high if pairs else None,
        "p": mcnemar(counts) if pairs else None,
    }
