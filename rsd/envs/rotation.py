"""Quaternion → axis-angle, as the LIBERO data sets and OpenVLA-OFT's evaluation compute it.

The sign of the quaternion is not made canonical: angles run up to 2 pi, and q and -q give different vectors.
"""

from __future__ import annotations

import numpy as np


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector of a unit quaternion.

    Args:
        quaternion: [4], float, order x, y, z, w.

    Returns:
        [3], float64, axis times angle in radians; zeros when w is exactly +1 or -1.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    length = np.sqrt(1.0 - w * w)
    if length == 0.0:
        return np.zeros(3)
    return np.asarray(quaternion[:3], dtype=np.float64) * 2.0 * np.arccos(w) / length
