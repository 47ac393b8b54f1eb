"""Open and close a drawer by the bar in front of it.

What surprises first: the hand is level to pull a drawer, and steep, a fist before the bar, to push it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from rsd.demos.articulated import OperationExpert, OperationPlan, PartState
from rsd.demos.expert import UP
from rsd.demos.grips import SIDEWAYS
from rsd.demos.hand import fingers_open, hand_pose

DRAWER_OPEN_M = 0.145  # LIBERO calls a drawer open above 0.14; it stops at 0.16
PULL_TILT_RAD = 1.35  # nearly level, into the cabinet; the fingers close above and below the bar
PUSH_TILT_RAD = 0.6  # the hand stays clear of the bars above
HANDLE_OFFSET_M = 0.004  # grip point in front of the bar's centre
DRAWER_CLOSED_M = -0.004  # LIBERO calls a drawer closed below 0; it stops at -0.01
FIST_OFFSET_M = 0.025  # grip point before the bar's centre; the closed fingers then nearly touch it


class Drawer:
    """A drawer as the simulator has it.

    Args:
        domain: See skill_for.
        region: The space in the drawer, whose joint is the drawer's.
    """

    def __init__(self, domain: Any, region: str) -> None:
        self._domain = domain
        self._joint = domain.sim.model.joint_name2id(domain.object_sites_dict[region].joints[0])

    @property
    def way_out(self) -> np.ndarray:
        """Unit vector along which it opens, [3]."""
        return self._sign * np.array(self._domain.sim.data.xaxis[self._joint])

    @property
    def opening(self) -> float:
        """How far it is open, m."""
        model, data = self._domain.sim.model, self._domain.sim.data
        return self._sign * float(data.qpos[model.jnt_qposadr[self._joint]])

    @property
    def bar(self) -> np.ndarray:
        """Centre of its handle's bar, its foremost geom, [3], m."""
        model, data = self._domain.sim.model, self._domain.sim.data
        solid = model.geom_contype + model.geom_conaffinity > 0
        geoms = np.flatnonzero((model.geom_bodyid == model.jnt_bodyid[self._joint]) & solid)
        return np.array(data.geom_xpos[geoms[np.argmax(data.geom_xpos[geoms] @ self.way_out)]])

    @property
    def _sign(self) -> float:
        low, high = self._domain.sim.model.jnt_range[self._joint]
        return 1.0 if high > -low else -1.0


class SlideDrawer:
    """Pull a drawer open, or push it shut.

    Args:
        domain, region: See Drawer.
        relation: What is to hold: "open" or "close".
    """

    _expert: OperationExpert

    def __init__(self, domain: Any, region: str, relation: str) -> None:
        self._domain, self._drawer, self._opens = domain, Drawer(domain, region), relation == "open"

    def begin(self) -> None:
        out = self._drawer.way_out
        inwards = np.cross(-out, UP)  # a hand that turns about this axis points into the cabinet
        if self._opens:
            plan = OperationPlan(travel=DRAWER_OPEN_M, slide=tuple(out), tilt=tuple(PULL_TILT_RAD * inwards))
        else:
            flat = Rotation.from_rotvec(PUSH_TILT_RAD * inwards) * Rotation.from_euler("z", SIDEWAYS)
            plan = OperationPlan(travel=-DRAWER_CLOSED_M, slide=tuple(-out), tilt=tuple(flat.as_rotvec()), pushes=True)
        self._expert = OperationExpert(plan)

    def act(self) -> tuple[np.ndarray, bool]:
        drawer, (eef_pos, eef_quat) = self._drawer, hand_pose(self._domain)
        grip_pos = drawer.bar + (HANDLE_OFFSET_M if self._opens else FIST_OFFSET_M) * drawer.way_out
        travel = drawer.opening if self._opens else -drawer.opening
        action = self._expert.act(PartState(eef_pos, eef_quat, grip_pos, travel, fingers_open(self._domain)))
        return action, self._expert.phase.in_free_space

    @property
    def hand_is_free(self) -> bool:
        return self._expert.phase.hand_is_free
