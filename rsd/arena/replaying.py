"""What is replayed of a held-out demonstration: its arms, which of them still have to be executed, and their order.

An arm is the recorded actions (raw), what normalising alone leaves of them, or what a contestant says of them at one of
its depths. What surprises first: arms of the very same commands are executed once, and the outcome is that of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsd.arena.splitting import Suite
from rsd.space import GRIPPERS, LIBERO_GRIPPER

RAW, NORMALISED = CONTROLS = ("raw", "normalised")
ARMS_A_JOB = 6  # of an episode, executed in a row: small jobs keep all simulators busy to the end


def arm_of(name: str, depth: int, num_stages: int) -> str:
    """Name of what is replayed."""
    return f"{name} {depth}/{num_stages}"


def commands_of(
    suite: Suite, episode: int, contestants: Iterable[str], folder: Path, depths: str
) -> dict[str, np.ndarray]:
    """Name of each arm → robot commands [n, 7]; the controls first.

    Args:
        contestants: Names; what each says is in the folder.
        folder: Of the suite.
        depths: "full" for whole codes, "ends" for the first depth too, or "all".
    """
    actions = suite.actions[episode]
    arms = {RAW: actions, NORMALISED: suite.space.action.unnormalize(suite.space.to_model(actions))}
    for name in contestants:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            said = file[str(episode)]
        for depth in range(1, len(said) + 1):
            if depth == len(said) or depths == "all" or (depths == "ends" and depth == 1):
                arms[arm_of(name, depth, len(said))] = said[depth - 1]
    simulated: Callable[[np.ndarray], np.ndarray] = GRIPPERS[LIBERO_GRIPPER]
    return {name: simulated(np.array(standard, dtype=np.float64)) for name, standard in arms.items()}


def missing_arms(
    arms: Mapping[str, np.ndarray], done: set[str]
) -> tuple[list[dict[str, np.ndarray]], dict[str, list[str]]]:
    """What has to be executed of an episode's arms, ARMS_A_JOB at a time.

    Args:
        arms: Name → robot commands, [n, 7].
        done: Names whose outcome is known.

    Returns:
        The arms of each job; and arm → all arms of the very same commands, of which that one is executed.
    """
    same: dict[bytes, list[str]] = {}
    for name in arms:
        if name not in done:
            same.setdefault(arms[name].tobytes(), []).append(name)
    alike = {names[0]: names for names in same.values()}
    missing = [*alike]
    jobs = [
        {name: arms[name] for name in missing[place : place + ARMS_A_JOB]}
        for place in range(0, len(missing), ARMS_A_JOB)
    ]
    return jobs, alike


def in_order(arms: Sequence[Mapping[str, Any]], contestants: Sequence[str]) -> list[Mapping[str, Any]]:
    """Records of arms: controls, then contestants in their order; those of others are left out."""
    order = {name: place for place, name in enumerate((*CONTROLS, *contestants))}
    known = [one for one in arms if _name(one) in order]
    return sorted(known, key=lambda one: (order[_name(one)], one["arm"]))


def _name(arm: Mapping[str, Any]) -> str:
    """Whose arm it is, without its depth."""
    return str(arm["arm"]).split()[0]
