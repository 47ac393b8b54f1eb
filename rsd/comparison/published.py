"""Is a run's success rate what was published for that model, and if not, what may be the cause?

The published rate is an estimate from a number of episodes, too. So the verdict is about the difference: "inside" when
its interval, made of both intervals, holds zero. published.yaml has the rates, their sources, and the settings
that they were measured with; a model that is not named there has no verdict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rsd.comparison.paired import independent_difference_interval
from rsd.runs import json_types

ABSENT = "not recorded"
PUBLISHED_FILE = Path(__file__).with_name("published.yaml")


def load_published() -> dict[str, Any]:
    """published.yaml as a dict."""
    return json_types(OmegaConf.to_container(OmegaConf.load(PUBLISHED_FILE)))


def compare_with_published(
    table: dict[str, Any], model: str | None, suite: str, success: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Verdict of a run against the published rate of its model on its suite.

    Args:
        table: `load_published`.
        model: Name of the run's base model.
        success: `statistics.summarize_success` of the run.
        settings: What the run was made with, nested: `Plan.settings`, versions, num_errors.

    Returns:
        None when there is no published rate or no episode. Otherwise title, source, published (rate), num_published,
        difference (run - published), low, high (95 %), verdict ("inside", "below", "above"), checks (list of setting,
        expected, found, status, why; status is "as published", "differs" or "not recorded"; those that differ first)
        and by_hand (list of str).
    """
    entry = next((entry for entry in table["tables"] if suite in entry["success_rates"].get(model, {})), None)
    num_trials = success["num_episodes"] - success["num_errors"]
    if entry is None or num_trials == 0:
        return None
    rate, num_published = entry["success_rates"][model][suite], entry["num_episodes"]
    low, high = independent_difference_interval(
        success["num_success"], num_trials, round(rate * num_published), num_published
    )
    expected = {
        "policy.checkpoints.base.name": table["checkpoints"][model],
        "policy.unnorm_key": f"{suite}_no_noops",
        **table["suites"][suite],
        **table["settings"],
        **entry["settings"],
    }
    return {
        "title": entry["title"],
        "source": entry["source"],
        "published": rate,
        "num_published": num_published,
        "difference": success["success_rate"] - rate,
        "low": low,
        "high": high,
        "verdict": "below" if high < 0 else "above" if low > 0 else "inside",
        "checks": check_settings(expected, settings, table["why"]),
        "by_hand": table["by_hand"],
    }


def check_settings(expected: dict[str, Any], settings: dict[str, Any], why: dict[str, str]) -> list[dict[str, Any]]:
    """Hold settings to expected values, by dotted keys; those that differ come first."""
    checks = []
    for key, value in expected.items():
        found = look_up(settings, key)
        same = found == value or (key.endswith("unnorm_key") and f"{found}_no_noops" == value)
        status = ABSENT if found == ABSENT else "as published" if same else "differs"
        checks.append({"setting": key, "expected": value, "found": found, "status": status, "why": why[key]})
    order = ("differs", ABSENT, "as published")
    return sorted(checks, key=lambda check: order.index(check["status"]))


def look_up(settings: dict[str, Any], dotted: str) -> Any:
    """The value under a dotted key, or ABSENT."""
    node: Any = settings
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return ABSENT
        node = node[part]
    return node
