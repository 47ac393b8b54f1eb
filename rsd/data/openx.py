"""Open X-Embodiment: published mixtures, and what brings their data sets to one convention.

A transform is a pure function of one recorded episode, without pictures decoded → the same in the *standard* space:
"action" is the motion of the hand (position, Euler angles) and the gripper as 1 open, 0 closed; "observation/proprio"
is 8 numbers as in the reference's configs.py (position, angles, a 0 as padding, gripper; or position, quaternion,
gripper); "language_instruction" is the task in words. Features may be dropped or steps cut off, from all alike.

What surprises first: BridgeData's recorded motions are commands, and are not used: the reference takes the differences
of the reached states, so the last step has no action, and the first one, whose command is all zeros, is dropped.

Formulas and weights: openvla/openvla @ 3ea4096 (prismatic/vla/datasets/rlds/oxe/transforms.py, configs.py); written in
numpy here. A data set without a transform is refused by name: see `MISSING`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rsd.data import DataError
from rsd.data.trajectories import binarize_gripper, standardize_actions, standardize_proprio
from rsd.errors import SettingError

MIXTURES_FILE = Path(__file__).with_name("openx.yaml")
INSTRUCTION = "language_instruction"
OXE_INSTRUCTION = "observation/natural_language_instruction"
STATE, PROPRIO = "observation/state", "observation/proprio"
MOVES = 0.1  # a relative gripper command beyond this, of either sign, is one

Steps = Mapping[str, Any]  # flat feature name → an array [n, ...] or a list of n texts; of pictures, where they lie
Transform = Callable[[Steps], dict[str, Any]]

CAMERAS = {  # of the steps: the model's views "image" and "wrist_image" are the reference's primary and wrist camera
    "bridge_orig": {"image": "observation/image_0"},
    "bridge_dataset": {"image": "observation/image_0"},
    "taco_play": {"image": "observation/rgb_static", "wrist_image": "observation/rgb_gripper"},
    "jaco_play": {"wrist_image": "observation/image_wrist"},
    "viola": {"image": "observation/agentview_rgb", "wrist_image": "observation/eye_in_hand_rgb"},
    "berkeley_autolab_ur5": {"wrist_image": "observation/hand_image"},
}  # all others: observation/image, observation/wrist_image

MISSING = {
    "kuka": "its states are compressed strings, which this reader does not unpack",
    "droid": "its rotations are turned by tensorflow_graphics, of which there is no reference output here",
    "droid_wipe": "its rotations are turned by tensorflow_graphics, of which there is no reference output here",
    "furniture_bench_dataset_converted_externally_to_rlds": "its rotations are quaternions, which "
    "tensorflow_graphics makes angles of, and there is no reference output of that here",
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": "its rotations are quaternions, which "
    "tensorflow_graphics makes angles of, and there is no reference output of that here",
}


@functools.cache
def published_mixtures() -> dict[str, dict[str, float]]:
    """Name of a mixture → its members and their weights, in the published order."""
    mixtures: dict[str, dict[str, float]] = yaml.safe_load(MIXTURES_FILE.read_text())
    return mixtures


def published_mixture(name: str) -> dict[str, float]:
    """Members of a published mixture and their weights.

    Raises:
        SettingError: there is none of this name.
    """
    mixtures = published_mixtures()
    if name not in mixtures:
        raise SettingError(
            f"data.mixture is {name!r}, expected one of {sorted(mixtures)}; or name data sets and weights of your own: "
            "data.members={a: 1.0, b: 0.5}"
        )
    return dict(mixtures[name])


def why_missing(name: str) -> str | None:
    """Why a data set has no transform; None where it has one."""
    return None if name in TRANSFORMS else MISSING.get(name, "no formula of it is written down here")


def transform_of(name: str) -> Transform:
    """The standardisation transform of a data set.

    Raises:
        DataError: there is none; the message says what is missing.
    """
    if (why := why_missing(name)) is not None:
        raise DataError(
            f"no standardisation transform for the data set {name!r}: {why}; data.transform can be one of "
            f"{sorted(TRANSFORMS)}, or null where data.action, data.proprio and the others say where things are"
        )
    return TRANSFORMS[name]


def invert_gripper(gripper: np.ndarray) -> np.ndarray:
    """Positions from 0 to 1 the other way round."""
    return 1 - gripper


def absolute_gripper(commands: np.ndarray) -> np.ndarray:
    """Relative commands, [n], above 0 closing and below 0 opening → positions, 1 open, 0 closed, [n], float32.

    The first command is taken to change something, so before it the gripper was the other way; without any it is open.
    """
    moves = np.where(commands < -MOVES, 1, np.where(commands > MOVES, -1, 0))  # [n]  1 opens, -1 closes
    given = np.flatnonzero(moves)
    before = -moves[given[0]] if len(given) else 1
    last = np.maximum.accumulate(np.where(moves != 0, np.arange(len(moves)), -1))  # [n]  step of the last command
    return np.where(last < 0, before, moves[last]).astype(np.float32) / 2 + np.float32(0.5)


def cut(steps: Steps, start: int, stop: int | None = None) -> dict[str, Any]:
    """Steps [start, stop) of an episode."""
    return {name: values[start:stop] for name, values in steps.items()}


def reached_motion(steps: Steps) -> dict[str, Any]:
    """BridgeData: motions are the differences of the reached states; the last step, which has none, is dropped."""
    state = steps[STATE][:, :6]
    return cut(steps, 0, -1) | {"action": _joined(state[1:] - state[:-1], steps["action"][:-1, -1:])}


def bridge_orig(steps: Steps) -> dict[str, Any]:
    """BridgeData V2 as its authors publish it; the gripper becomes binary."""
    kept = cut(steps, 1)
    gripper = binarize_gripper(kept["action"][:, -1])
    kept = reached_motion(kept | {"action": _joined(kept["action"][:, :6], gripper)})
    return kept | {PROPRIO: _hand(kept[STATE][:, :6], kept[STATE][:, -1:])}


def bridge_oxe(steps: Steps) -> dict[str, Any]:
    """BridgeData V2 as Open X-Embodiment has it."""
    kept = reached_motion(cut(_with_action(steps, steps["action/open_gripper"]), 1))
    return kept | {PROPRIO: _hand(kept[STATE][:, :6], kept[STATE][:, -1:]), INSTRUCTION: kept[OXE_INSTRUCTION]}


def fractal(steps: Steps) -> dict[str, Any]:
    """RT-1's data (fractal20220817_data): relative gripper commands; position, quaternion and gripper as proprio."""
    moved = _with_action(steps, absolute_gripper(_one(steps["action/gripper_closedness_action"])))
    proprio = _joined(steps["observation/base_pose_tool_reached"], steps["observation/gripper_closed"])
    return moved | {PROPRIO: proprio, INSTRUCTION: steps[OXE_INSTRUCTION]}


def libero(steps: Steps) -> dict[str, Any]:
    """LIBERO: robosuite's gripper command; pose (6) and both fingers (2) as proprio."""
    return {
        **steps,
        "action": standardize_actions(steps["action"]),
        PROPRIO: standardize_proprio(steps[STATE]),
    }


def taco_play(steps: Steps) -> dict[str, Any]:
    """TACO Play: relative motions in the world's frame."""
    action, state = steps["action/rel_actions_world"], steps["observation/robot_obs"]
    return {
        **steps,
        "action": _joined(action[:, :6], np.clip(action[:, -1:], 0, 1)),
        PROPRIO: _hand(state[:, :6], state[:, 7:8]),
        INSTRUCTION: steps[OXE_INSTRUCTION],
    }


def jaco_play(steps: Steps) -> dict[str, Any]:
    """Jaco Play: it moves without turning; relative gripper commands."""
    moved = steps["action/world_vector"]
    gripper = absolute_gripper(_one(steps["action/gripper_closedness_action"]))
    state = steps["observation/end_effector_cartesian_pos"]
    return {
        **steps,
        "action": _joined(moved, np.zeros_like(moved), gripper),
        PROPRIO: _hand(state[:, :6], state[:, -1:]),
        INSTRUCTION: steps[OXE_INSTRUCTION],
    }


def viola(steps: Steps) -> dict[str, Any]:
    """VIOLA: 1 closes; joints and gripper as proprio."""
    gripper = invert_gripper(np.clip(_one(steps["action/gripper_closedness_action"]), 0, 1))
    proprio = _joined(steps["observation/joint_states"], steps["observation/gripper_states"])
    return _with_action(steps, gripper) | {PROPRIO: proprio, INSTRUCTION: steps[OXE_INSTRUCTION]}


def berkeley_autolab_ur5(steps: Steps) -> dict[str, Any]:
    """UR5 of Berkeley's AUTOLab: relative gripper commands."""
    moved = _with_action(steps, absolute_gripper(_one(steps["action/gripper_closedness_action"])))
    return moved | {PROPRIO: _joined(steps["observation/robot_state"][:, 6:14]), INSTRUCTION: steps[OXE_INSTRUCTION]}


def toto(steps: Steps) -> dict[str, Any]:
    """TOTO: joints and a 0 as proprio."""
    state = steps[STATE]
    proprio = _joined(state, np.zeros_like(state[:, :1]))
    return _with_action(steps, steps["action/open_gripper"]) | {PROPRIO: proprio, INSTRUCTION: steps[OXE_INSTRUCTION]}


def austin(steps: Steps) -> dict[str, Any]:
    """The sets of UT Austin (BUDS, Sailor, Sirius, MUTEX): 1 closes; the first 8 numbers of the state as proprio."""
    action = steps["action"]
    closed = np.clip(action[:, -1:], 0, 1)
    return {
        **steps,
        "action": _joined(action[:, :6], invert_gripper(closed)),
        PROPRIO: _joined(steps[STATE][:, :8]),
    }


TRANSFORMS: dict[str, Transform] = {
    "bridge_orig": bridge_orig,
    "bridge_dataset": bridge_orig,
    "bridge_oxe": bridge_oxe,
    "fractal20220817_data": fractal,
    "libero_spatial_no_noops": libero,
    "libero_object_no_noops": libero,
    "libero_goal_no_noops": libero,
    "libero_10_no_noops": libero,
    "libero_90_no_noops": libero,
    "taco_play": taco_play,
    "jaco_play": jaco_play,
    "viola": viola,
    "berkeley_autolab_ur5": berkeley_autolab_ur5,
    "toto": toto,
    "austin_buds_dataset_converted_externally_to_rlds": austin,
    "austin_sailor_dataset_converted_externally_to_rlds": austin,
    "austin_sirius_dataset_converted_externally_to_rlds": austin,
    "utaustin_mutex": austin,
}


def _one(values: np.ndarray) -> np.ndarray:
    """A number a step, [n], whether it was recorded as [n] or [n, 1]."""
    return values.reshape(len(values))


def _joined(*parts: np.ndarray) -> np.ndarray:
    """Vectors, and numbers, of each step side by side, [n, dims], float32."""
    return np.concatenate([part[:, None] if part.ndim == 1 else part for part in parts], axis=1, dtype=np.float32)


def _with_action(steps: Steps, gripper: np.ndarray) -> dict[str, Any]:
    """The steps with the action that Open X-Embodiment stores in three features."""
    moved = _joined(steps["action/world_vector"], steps["action/rotation_delta"], gripper.astype(np.float32))
    return {**steps, "action": moved}


def _hand(pose: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Pose (6), a 0 as padding, gripper (1)."""
    return _joined(pose, np.zeros_like(gripper), gripper)
