"""What the name of an evaluation protocol promises, and what a stamp says when a run keeps less than that.

A stamp ("openvla_oft-1") stands in every result, and rates under one stamp are compared. So the values that it stands
for are written down here once more, beside conf/protocol/: a version's never change, whatever a configuration or a
command line does to its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsd.settings import Count, Finite, Natural, Positive, Seed, Side, Text, checked

OPENVLA_OFT: dict[str, Any] = {
    "num_wait_steps": 10,
    "waiting_action": [0, 0, 0, 0, 0, 0, -1],
    "max_steps": {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    },
    "image_size": 256,
    "rotate_images": True,
    "seed": 0,
    "clip_actions": True,
}
OPENVLA_BRIDGE: dict[str, Any] = {
    "max_steps": {"widowx": 60},
    "control_hz": 5,
    "blocking": False,
    "start_position": [0.3, -0.09, 0.26],
}
PROMISED: dict[str, dict[str, Any]] = {
    "openvla_oft-1": OPENVLA_OFT,
    "openvla-1": OPENVLA_OFT,
    "smoke-1": OPENVLA_OFT,
    "lerobot-1": OPENVLA_OFT | {"seed": 1000, "max_steps": OPENVLA_OFT["max_steps"] | {"libero_spatial": 280}},
    "openvla_bridge-1": OPENVLA_BRIDGE,
}
CHANGED = " with "  # what follows it in a stamp differs from what the name promises


def broken_promises(name: str, suite: str, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values that are not what a protocol promises: key to (promised, found). Nothing for a protocol of one's own.

    Args:
        name: Name and version, with or without what was changed.
        suite: Task suite, without its variant.
        values: What episodes run with; "max_steps" is the suite's limit.
    """
    promised = dict(PROMISED.get(name.partition(CHANGED)[0], {}))
    promised["max_steps"] = promised.get("max_steps", {}).get(suite)
    return {
        key: (promised[key], value)
        for key, value in values.items()
        if promised.get(key) is not None and promised[key] != value
    }


@checked
def stamp(
    *,
    name: Text,
    suite: Text,
    max_steps: Count,
    num_wait_steps: Natural,
    waiting_action: Sequence[Finite],
    image_size: Side,
    rotate_images: bool,
    seed: Seed,
    clip_actions: bool,
) -> str:
    """The stamp of a run: the protocol's name and version, and every value that they do not promise.

    Args:
        name, suite: See `broken_promises`.
        max_steps, num_wait_steps, waiting_action, image_size, rotate_images, seed, clip_actions: What episodes run
            with.

    Returns:
        For example "openvla_oft-1 with num_wait_steps=0, max_steps=100".
    """
    values = {
        "max_steps": max_steps,
        "num_wait_steps": num_wait_steps,
        "waiting_action": waiting_action,
        "image_size": image_size,
        "rotate_images": rotate_images,
        "seed": seed,
        "clip_actions": clip_actions,
    }
    return _stamped(name, suite, values)


@checked
def stamp_bridge(
    *, name: Text, max_steps: Count, control_hz: Positive, blocking: bool, start_position: Sequence[Finite]
) -> str:
    """As `stamp`, of a run on a WidowX."""
    values = {"max_steps": max_steps, "control_hz": control_hz, "blocking": blocking, "start_position": start_position}
    return _stamped(name, "widowx", values)


def _stamped(name: str, suite: str, values: Mapping[str, Any]) -> str:
    broken = broken_promises(name, suite, values)
    return name + (CHANGED + ", ".join(f"{key}={found}" for key, (_, found) in broken.items()) if broken else "")
