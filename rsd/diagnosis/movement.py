"""How much a chunk moves the robot: does the policy stay where it starts, or say the same everywhere?

What surprises first: an action of 0 only means "stay" where actions are changes of the pose. Dims that are positions
(their values are those of a dim of proprio) move by what they differ from the chunk's first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAME_AS_PROPRIO = 0.98  # correlation from which on an action dim is a position that proprio reports
NEAR_ZERO = 0.1  # of what the demonstrations' chunks move on average: a chunk below it stays


def absolute_dims(actions: np.ndarray, proprio: np.ndarray) -> np.ndarray:
    """Which dims of actions [n, A] are positions: some dim of proprio [n, P] has nearly the same values. [A], bool."""
    found = np.zeros(actions.shape[1], dtype=bool)
    for dim, values in enumerate(actions.T):
        for felt in proprio.T:
            if values.std() > 0 and felt.std() > 0 and np.corrcoef(values, felt)[0, 1] > SAME_AS_PROPRIO:
                found[dim] = True
    return found


def movement(chunks: np.ndarray, dims: Sequence[int], scale: np.ndarray, absolute: np.ndarray) -> np.ndarray:
    """Mean size of a step of each chunk, [N].

    Args:
        chunks: Standard, [N, T, A].
        dims: Those that move the arm.
        scale: What a dim usually moves by, standard, [A].
        absolute: Dims that are positions, [A], bool.
    """
    start = np.where(absolute, chunks[:, :1], 0.0)  # [N, 1, A]
    return np.abs((chunks - start)[..., dims] / scale[dims]).mean(axis=(1, 2))
