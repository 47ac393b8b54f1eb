"""Two trials of the simulator on a scene whose right outcome is known: do objects come to rest, and is it drawn right?

The scene is task 5 of LIBERO-Spatial, where a bowl is dropped onto a ramekin. With MuJoCo 3.2.3 it lands there and
rests; with 3.4.0 it slips off, and is still sliding when the policy takes over. In all init states of the task the fall
is the same, so one is enough.

Pictures are equal bit for bit where Mesa draws (OSMesa, and EGL without a GPU); other drivers differ in single pixels.
So a picture with another hash is compared coarsely: mean colours of 4 x 4 blocks catch a black or mirrored picture,
missing textures and other lights, and no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from rsd.envs.gl import MUJOCO_VERSION
from rsd.envs.libero import LiberoEnv
from rsd.envs.placements import FREE_JOINT, TIME, object_columns
from rsd.finding import Finding, judged
from rsd.types import Observation

SUITE, TASK_ID, INIT_STATE_ID = "libero_spatial", 5, 0
MAX_DRIFT_M = (
    0.02  # horizontally, from the init state to the end of the waiting steps; 0.0146 with 3.2.3, 0.034 with 3.4.0
)
MAX_SPEED_M_S = 0.005  # then; 0.0001 with 3.2.3, 0.059 with 3.4.0
BLOCKS = 4  # a side
MAX_COLOUR_DIFFERENCE = 12.0  # levels of 0..255, of any block and colour
# View to (SHA-256 of the picture, means of the blocks as [4, 4, 3] bytes), MuJoCo 3.2.3, OSMesa 8, 256 x 256
REFERENCE = {
    "image": (
        "e3b7656ecbf624933af00104e32ff57792b15a796450496916fdc006d644c9c1",
        "6f6d6a72716f6c6a696e6c69867d73766f6857534f47433fb0a1919a9085897e721f1c19bfae9dbbaa9abaaa988a7e71",
    ),
    "wrist_image": (
        "d2f4c75dad4cdeb22d9ef77e04152a57ea081ebdad49c686f0657ca8294e12c5",
        "474139c3b29fac9c90c7b7ab8d8276b8a998c1b09fb4a69664615e78736ebaaa9a9891883b3a394744425e5953474442",
    ),
}


def run_scene_trials(allow_mujoco_version: str | None = None) -> Iterator[Finding]:
    """Build the scene, wait, look at it; about ten seconds."""
    env = LiberoEnv(suite=SUITE, task_id=TASK_ID, max_steps=1, allow_mujoco_version=allow_mujoco_version)
    try:
        observation = env.reset(INIT_STATE_ID)
        model = env.simulator.sim.model
        speeds = [
            TIME + model.nq + int(model.jnt_dofadr[j]) for j in range(model.njnt) if model.jnt_type[j] == FREE_JOINT
        ]
        before, after = env.init_state(INIT_STATE_ID), env.simulator.get_sim_state()
        yield judge_rest(before, after, object_columns(model), speeds)
        yield judge_pictures(observation)
    finally:
        env.close()


def judge_rest(before: np.ndarray, after: np.ndarray, positions: list[int], velocities: list[int]) -> Finding:
    """Whether objects have stayed where they fell, and have come to rest.

    Args:
        before, after: States before and after the waiting steps, [state].
        positions, velocities: Where in a state the x, and the speed along x, of each object is; y and z follow.
    """
    drift = max(float(np.abs(after[i : i + 2] - before[i : i + 2]).max()) for i in positions)
    speed = max(float(np.linalg.norm(after[i : i + 3])) for i in velocities)
    found = f"objects drifted {1000 * drift:.1f} mm and move at {1000 * speed:.2g} mm/s after the waiting steps"
    if drift <= MAX_DRIFT_M and speed <= MAX_SPEED_M_S:
        return judged("objects come to rest", True, found)
    expected = f"expected at most {1000 * MAX_DRIFT_M:g} mm and {1000 * MAX_SPEED_M_S:g} mm/s"
    return judged(
        "objects come to rest",
        False,
        f"{found}, {expected}: other contacts, scores are not comparable",
        f"pip install mujoco=={MUJOCO_VERSION}",
    )


def judge_pictures(observation: Observation) -> Finding:
    """Whether the pictures are the reference's, or coarsely so."""
    same, farthest = True, 0.0
    for view, (digest, blocks) in REFERENCE.items():
        picture = observation.images[view]
        same &= hashlib.sha256(picture.tobytes()).hexdigest() == digest
        expected = np.frombuffer(bytes.fromhex(blocks), dtype=np.uint8).reshape(BLOCKS, BLOCKS, 3)
        farthest = max(farthest, float(np.abs(block_means(picture) - expected).max()))
    if same:
        return judged("pictures drawn", True, "equal to the reference's, bit for bit")
    found = f"not the reference's; block means differ by up to {farthest:.1f} of 255 levels"
    if farthest <= MAX_COLOUR_DIFFERENCE:
        return judged("pictures drawn", True, f"{found}, as other drivers' do")
    return judged(
        "pictures drawn",
        False,
        f"{found}, expected at most {MAX_COLOUR_DIFFERENCE:g}: black, mirrored or lit otherwise",
        "try MUJOCO_GL=osmesa",
    )


def block_means(picture: np.ndarray) -> np.ndarray:
    """Mean colours of BLOCKS x BLOCKS equal parts of a picture [H, W, 3], [BLOCKS, BLOCKS, 3]."""
    height, width, _ = picture.shape
    return picture.reshape(BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS, 3).mean(axis=(1, 3))
