"""What the action records of the gripper, as data.gripper declares it, and whether the data set agrees.

What surprises first: nothing can be guessed here. 0 and 1 mean open and closed in one data set and the contrary in
another, and metres, counts or increments give a model that trains well on a gripper which never closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd.data import DataError
from rsd.errors import SettingError
from rsd.space import standardize_gripper

NEAR = 0.05  # of the way from closed to open: as near to one of them as the reference wants it (binarize_gripper)
RESTS = 0.5  # share of the steps at 0, between movements of both signs, from which on the values are increments


@dataclass(frozen=True)
class GripperRule:
    """The recorded values of the two positions; without arguments LIBERO's, robosuite's command.

    Args:
        open, closed: What is recorded where the gripper is open, and where it is closed.
        between: Whether positions between the two are recorded as well.
        moves: False for a data set in which the gripper always stays as it is.
        dims: Of the action, those that are grippers: None for the last one, two for two arms, [] for none.

    Raises:
        SettingError: the two are no different, finite numbers.
    """

    open: float = -1.0
    closed: float = 1.0
    between: bool = False
    moves: bool = True
    dims: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.dims is not None:
            is_list = isinstance(self.dims, Sequence) and not isinstance(self.dims, str)
            if not is_list or not all(type(dim) is int for dim in self.dims):
                raise SettingError(f"data.gripper.dims is {self.dims!r}, expected dims of the action, [] for none")
            object.__setattr__(self, "dims", tuple(self.dims))
        for name, wanted in (("open", (int, float)), ("closed", (int, float)), ("between", bool), ("moves", bool)):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
            if not (isinstance(value, bool) if wanted is bool else is_number):
                kind = "true or false" if wanted is bool else "a finite number"
                raise SettingError(f"data.gripper.{name} is {value!r}, expected {kind}")
        if self.open == self.closed:
            raise SettingError(
                f"data.gripper.open and data.gripper.closed are both {self.open:g}, expected two recorded values"
            )

    @property
    def is_libero(self) -> bool:
        """Whether the values are robosuite's."""
        return (self.open, self.closed, self.between) == (-1, 1, False)

    def entry(self, grippers: Sequence[int], dims: int) -> dict[str, Any]:
        """What the statistics of actions say of it: nothing where it is LIBERO's, in the last dim alone."""
        if self.is_libero and tuple(grippers) == (dims - 1,):
            return {}
        return {"gripper": {"open": float(self.open), "closed": float(self.closed), "between": self.between}}

    def __str__(self) -> str:
        return f"{self.open:g} open, {self.closed:g} closed{', and between' if self.between else ''}"

    def standardize(self, recorded: np.ndarray) -> np.ndarray:
        """Recorded values → 1 open, 0 closed."""
        if self.is_libero:
            return standardize_gripper(recorded)
        return 1 - np.clip((recorded - self.open) / (self.closed - self.open), 0, 1)

    def check(self, recorded: Sequence[np.ndarray], where: str, which: str = "last dim of action") -> None:
        """Hold all values of one gripper of a data set, an array an episode, to the rule.

        Raises:
            DataError: they are something else; the message has their range and what to declare instead.
        """
        values = np.concatenate([np.asarray(one, dtype=np.float64).ravel() for one in recorded] or [np.zeros(0)])
        if not len(values):
            return
        wrong = self._wrong(values)
        if wrong is not None:
            different = np.unique(values)
            count = (
                f"{len(different)} different values"
                if len(different) > 2
                else "only " + " and ".join(f"{value:g}" for value in different)
            )
            raise DataError(
                f"{where}: the gripper ({which}) is {values.min():g}..{values.max():g} ({count}),"
                f" and data.gripper declares {self}: {wrong}"
            )

    def _wrong(self, values: np.ndarray) -> str | None:
        """What is wrong with all values, [n], and the remedy; None if nothing is."""
        low, high = values.min(), values.max()
        if low == high:
            near = abs((low - self.closed) / (self.open - self.closed) - np.array([0, 1])).min() <= NEAR
            if not self.moves and near:
                return None
            return (
                "it never moves; record its commands, or set data.gripper.moves=false if it is meant to stay"
                if near
                else "it never moves, and is neither; record its commands, or declare that value and "
                "data.gripper.moves=false"
            )
        if not self.moves:
            return "data.gripper.moves is false, and it does move; set data.gripper.moves=true"
        sides = NEAR * (high - low)
        if low < -sides and high > sides and (np.abs(values) <= sides).mean() >= RESTS:
            return (
                f"{100 * (np.abs(values) <= sides).mean():.0f} % of the steps stand at 0 between both signs, as "
                "increments do; rsd needs absolute positions or commands: sum them up when you write the data set"
            )
        opening = (values - self.closed) / (self.open - self.closed)  # 1 open, 0 closed
        declare = f"data.gripper.open={high:g} data.gripper.closed={low:g}"
        declared = f"set {declare}, or the other way round: only you know which is open"
        between = "; if it stands anywhere between, set its real ends and data.gripper.between=true"
        other = declared + between * (len(np.unique(values)) > 2 and not self.between)
        if opening.min() < -NEAR or opening.max() > 1 + NEAR:
            return f"values lie outside; {other}"
        if opening.min() > 0.5 - NEAR or opening.max() < 0.5 + NEAR:
            return f"they never cross the middle; {other}"
        inside = (opening > NEAR) & (opening < 1 - NEAR)
        if inside.any() and not self.between:
            return f"{100 * inside.mean():.3g} % of the steps are neither; {declared}{between}"
        return None
