"""What a number means: from a data set's statistics and a robot's conventions to [-1, 1] and back, written down once.

Three spaces, and nothing else is called by these names:
    recorded   as a data set stores it (LIBERO: robosuite's command, gripper -1 open, +1 close)
    standard   one convention for all data sets: gripper 1 open, 0 close; poses as recorded
    model      standard, with -1 and 1 for the bounds of each dim; what base model and tokenizer speak
The robot executes *robot commands*: un-normalised and with the gripper as the robot wants it (LIBERO: as recorded).

Statistics of one data set are the published JSON layout: {"action": {q01, q99, min, max, mean, std, mask}, "proprio":
{...}, "num_transitions", "num_trajectories"}. A file of statistics maps data set names (unnorm keys) to such entries.
Which two of its numbers stand for -1 and 1 is part of an entry, as "bounds": a name in BOUNDS. So is, as "gripper", how
a data set records it where that is not LIBERO's way. Published entries do not
say it, and mean "quantiles" unless their robot says otherwise (conf/robot). Source of all formulas: openvla-oft @
213c5ff (prismatic/vla/datasets/rlds, experiments/robot).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar, cast

import numpy as np

from rsd.errors import RSDError
from rsd.record import EntryError, conform

if TYPE_CHECKING:
    from torch import Tensor  # simulator workers need no torch

EPSILON = 1e-8  # openvla-oft's guard against an empty range, in normalising and un-normalising alike
QUANTILES = "quantiles"  # "bounds_q99" of the reference: the LIBERO policies
EXTREMES = "extremes"  # "bounds" of the reference: nothing that was demonstrated is cut off
BOUNDS = {QUANTILES: ("q01", "q99"), EXTREMES: ("min", "max")}
NO_NOOPS = "_no_noops"
LIBERO_GRIPPER = "inverted_sign"
RECORDED = "recorded"  # as the data set does; its statistics say how
SAME = 0.01  # ranges that differ by less than this part of their width mean the same: statistics of the same data

Statistics = Mapping[str, Any]  # JSON in the published layout, of one data set
Entry = Mapping[str, Any]  # its "action" or "proprio"
Array = TypeVar("Array", np.ndarray, "Tensor")


class Gripper(TypedDict):
    """How a data set records its grippers, the dims that are not normalised; without it, as LIBERO's do.

    Attributes:
        open, closed: Recorded where it is open, and where it is closed.
        between: Whether positions between the two are commands, too.
    """

    open: float
    closed: float
    between: bool


class Bounds(TypedDict):
    """What every entry of stored statistics must hold, "action" or "proprio"; the others are for people."""

    q01: list[float]
    q99: list[float]
    min: list[float]
    max: list[float]
    mask: NotRequired[list[bool] | None]
    bounds: NotRequired[str]
    gripper: NotRequired[Gripper]


class SpaceError(RSDError, ValueError):
    """Numbers of two parts do not mean the same, or statistics do not say what theirs mean."""


class UnknownKeyError(RSDError, KeyError):
    """An unnorm_key that the statistics do not hold."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return str(self.args[0])


@dataclass(frozen=True)
class Range:
    """What -1 and 1 stand for in each dim of a vector.

    Attributes:
        low, high: In standard units, [dims] each.
        mask: Which dims are normalised at all; the others pass unchanged.
        constant: Dims that never move in the data; normalised to 0 in training.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]
    constant: tuple[bool, ...]

    @classmethod
    def from_entry(cls, entry: Entry) -> Range:
        """Of one entry ("action" or "proprio"); without a mask every dim is normalised.

        Raises:
            SpaceError: no such bounds, entries of different lengths or none, or a range that ends before it begins.
        """
        name = bounds_of(entry)
        if name not in BOUNDS:
            raise SpaceError(f"bounds {name!r} of the statistics, expected one of {sorted(BOUNDS)}")
        counts = {
            name: len(entry[name]) for name in (*BOUNDS[name], "min", "max", "mask") if entry.get(name) is not None
        }
        if len({*counts.values()}) != 1 or 0 in counts.values():
            raise SpaceError(f"statistics have {counts} dims, expected as many in each, and one or more")
        low, high = (tuple(map(float, entry[bound])) for bound in BOUNDS[name])
        mask = tuple(bool(used) for used in entry.get("mask") or [True] * len(low))
        extremes = zip(entry.get("min", low), entry.get("max", high), strict=True)
        constant = tuple(bool(lowest == highest) for lowest, highest in extremes)
        for dim, (lowest, highest, used) in enumerate(zip(low, high, mask, strict=True)):
            if used and not (lowest <= highest and math.isfinite(highest - lowest)):
                raise SpaceError(f"statistics have {lowest:g}..{highest:g} in dim {dim} of {BOUNDS[name]}, no range")
        return cls(low, high, mask, constant)

    def __len__(self) -> int:
        return len(self.low)

    @property
    def grippers(self) -> tuple[int, ...]:
        """Dims of actions that are not normalised: 1 open, 0 closed."""
        return tuple(dim for dim, used in enumerate(self.mask) if not used)

    def normalize(self, values: Array, zero_constant: bool = True) -> Array:
        """Standard [..., dims] → model [..., dims], float32, clipped to [-1, 1]; an array or a tensor on any device.

        Args:
            zero_constant: Set dims that never move to 0, as training does; the reference's evaluation does not.
        """
        xp, constants = _arithmetic(values)
        low, high, mask = constants(self.low), constants(self.high), constants(self.mask)
        scaled = xp.clip(2 * (values - low) / (high - low + EPSILON) - 1, -1, 1)
        result = xp.where(mask, scaled, values)
        if zero_constant:
            result = xp.where(constants(self.constant), 0.0, result)
        return cast("Array", result.astype(np.float32) if isinstance(result, np.ndarray) else result.float())

    def unnormalize(self, values: Any) -> np.ndarray:
        """Inverse of `normalize` inside the bounds; values are not clipped. [..., dims], float64."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        values = np.asarray(values, dtype=np.float64)
        return np.where(self.mask, 0.5 * (values + 1) * (high - low + EPSILON) + low, values)

    def difference(self, other: Range) -> str | None:
        """How another range means something else, in words; None when it does not (see SAME)."""
        if len(self) != len(other) or self.mask != other.mask:
            return f"{len(self)} dims with mask {list(self.mask)} against {len(other)} with {list(other.mask)}"
        bounds = zip(self.low, self.high, other.low, other.high, self.mask, strict=True)
        for dim, (low, high, low_2, high_2, used) in enumerate(bounds):
            if used and max(abs(low - low_2), abs(high - high_2)) > SAME * max(high - low, high_2 - low_2):
                return f"dim {dim} spans {low:.4g}..{high:.4g} against {low_2:.4g}..{high_2:.4g}"
        return None


@dataclass(frozen=True)
class Space:
    """What the numbers of one data set and its robot mean. Data, tokenizer, base model and policy each hold one.

    Attributes:
        name: The unnorm_key.
        action: Range of the A action dims.
        proprio: Range of the P proprio dims; None when nothing is told.
        gripper: Name in GRIPPERS: what turns the model's gripper into the robot's, or RECORDED where the statistics
            say it.
        limits: Lowest and highest robot command that is executed; the Queue clips to it, or refuses. Data sets with a
            gripper of their own have units of their own, too, and none.
        units: Of each action dim, for people.
        statistics: What it was made from, as files store it.
    """

    name: str
    action: Range
    proprio: Range | None
    gripper: str = LIBERO_GRIPPER
    limits: tuple[float, float] = (-1.0, 1.0)
    units: tuple[str, ...] = ()
    statistics: Statistics = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_statistics(cls, name: str, statistics: Statistics, *, gripper: str = LIBERO_GRIPPER) -> Space:
        """Of one data set's entry.

        Raises:
            SpaceError: no such bounds or gripper rule, or entries of different lengths.
        """
        if gripper not in GRIPPERS:
            raise SpaceError(f"gripper {gripper!r}, expected one of {sorted(GRIPPERS)}")
        own = "gripper" in statistics["action"]
        proprio = Range.from_entry(statistics["proprio"]) if "proprio" in statistics else None
        return cls(
            name,
            Range.from_entry(statistics["action"]),
            proprio,
            RECORDED if own else gripper,
            limits=(-math.inf, math.inf) if own else (-1.0, 1.0),
            statistics=statistics,
        )

    @property
    def bounds(self) -> str:
        """Which of the statistics' numbers -1 and 1 stand for: a name in BOUNDS."""
        return bounds_of(self.statistics["action"])

    @property
    def between(self) -> bool:
        """Whether grippers stand anywhere between open and closed, too."""
        return self.gripper == RECORDED and bool(self.statistics["action"]["gripper"]["between"])

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits that change when a number would come to mean something else."""
        parts = [self.name, self.action.__dict__, self.proprio and self.proprio.__dict__, self.gripper]
        parts += [self.statistics["action"]["gripper"]] if self.gripper == RECORDED else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def to_model(self, actions: Array) -> Array:
        """Standard actions [..., A] → model space, float32; an array or a tensor on any device."""
        return self.action.normalize(actions)

    def to_robot(self, actions: Any) -> np.ndarray:
        """Model space [..., A] → robot commands, float64; not clipped to `limits`."""
        commands = self.action.unnormalize(actions)
        if self.gripper != RECORDED:
            return GRIPPERS[self.gripper](commands)
        rule, dims = self.statistics["action"]["gripper"], list(self.action.grippers)
        opening = commands[..., dims].clip(0, 1)
        opening = opening if rule["between"] else (opening > 0.5).astype(np.float64)
        commands[..., dims] = rule["closed"] + opening * (rule["open"] - rule["closed"])
        return commands

    def proprio_to_model(self, proprio: Array) -> Array:
        """Standard proprio [..., P] → model space, float32, with the evaluation's formula (SPEC §9)."""
        if self.proprio is None:
            raise SpaceError(f"statistics {self.name!r} say nothing about proprio")
        return self.proprio.normalize(proprio, zero_constant=False)

    def quantile_units(self) -> np.ndarray:
        """Factors that turn differences of model-space actions into parts of half of q01..q99, [A], float32.

        Ones where the bounds are the quantiles, in dims that are not normalised, and in those whose quantiles are
        equal.
        """
        low, high = np.asarray(self.action.low), np.asarray(self.action.high)
        width = np.asarray(self.statistics["action"]["q99"]) - np.asarray(self.statistics["action"]["q01"])
        scaled = np.asarray(self.action.mask) & (width > EPSILON)
        return np.where(scaled, (high - low) / np.where(scaled, width, 1.0), 1.0).astype(np.float32)

    def difference(self, other: Space) -> str | None:
        """How actions of another space mean something else than those of this one, in words; None when they do not."""
        if self.name != other.name:
            return f"statistics (unnorm_key) {self.name!r} against {other.name!r}"
        if self.bounds != other.bounds:
            return f"data.bounds {self.bounds!r} against {other.bounds!r}"
        return None if self.digest == other.digest else self.action.difference(other.action)


def _arithmetic(values: np.ndarray | Tensor) -> tuple[Any, Callable[[Any], Any]]:
    """The array library of `values`, and what makes a tuple of floats (float64) or bools one of its arrays."""
    if isinstance(values, np.ndarray):
        return np, np.asarray
    import torch  # here, because simulator workers need none

    def constant(numbers: tuple[float, ...] | tuple[bool, ...]) -> Tensor:
        dtype = torch.bool if isinstance(numbers[0], bool) else torch.float64
        return torch.tensor(numbers, dtype=dtype, device=values.device)

    return torch, constant


def check_statistics(statistics: Any, where: str, parts: tuple[str, ...] = ("action",)) -> dict[str, Any]:
    """Stored statistics of one data set, checked: what they must hold, its types, and that it makes a space.

    Args:
        where: File and entry, for messages.
        parts: Of which something must be said; the other one is checked where it is there.

    Returns:
        The statistics.

    Raises:
        EntryError: an entry is missing, mistyped, of another length than the others, or no range.
    """
    record: dict[str, Any] = conform(statistics, dict[str, Any], where)
    for part in ("action", "proprio"):
        if part in parts or part in record:
            conform(record, {part: Bounds}, where)
            own = record[part].get("gripper", {"open": -1.0, "closed": 1.0})
            if own["open"] == own["closed"] or not (math.isfinite(own["open"]) and math.isfinite(own["closed"])):
                raise EntryError(f"{where}: entry {part!r}: gripper {own}, expected two different, finite values")
            try:
                bounds = Range.from_entry(record[part])
            except SpaceError as error:
                raise EntryError(f"{where}: entry {part!r}: {error}") from error
            if part == "action" and not any(
                used and low < high for low, high, used in zip(bounds.low, bounds.high, bounds.mask, strict=True)
            ):
                raise EntryError(f"{where}: entry {part!r}: no dim that is normalised has a width")
    return record


def resolve_unnorm_key(norm_stats: Mapping[str, Any], key: str | None) -> str:
    """Name of the statistics to use: `key` itself, or with or without "_no_noops", or the only one when key is None.

    The reference asks for the suite's name and takes "<suite>_no_noops" where that is not there: published checkpoints
    have the one or the other. Our data sets carry the longer name, so it works both ways here.

    Raises:
        UnknownKeyError: no such entry; the message lists the available ones.
    """
    if key is None and len(norm_stats) == 1:
        return next(iter(norm_stats))
    if key is not None:
        for candidate in (key, f"{key}{NO_NOOPS}", key.removesuffix(NO_NOOPS)):
            if candidate in norm_stats:
                return candidate
    raise UnknownKeyError(
        f"unnorm_key {key!r} not in norm_stats; available: {sorted(norm_stats)}; set data.unnorm_key to one of them"
    )


def with_bounds(norm_stats: Statistics, bounds: str) -> dict[str, Any]:
    """The same statistics, to be normalised with these bounds; "quantiles" are not written down.

    Args:
        norm_stats: {"action", "proprio", ...} of one data set.
        bounds: A name in BOUNDS.

    Raises:
        SpaceError: no such bounds.
    """
    if bounds not in BOUNDS:
        raise SpaceError(f"bounds {bounds!r}, expected one of {sorted(BOUNDS)}")
    said = {} if bounds == QUANTILES else {"bounds": bounds}
    parts = {
        part: {name: value for name, value in norm_stats[part].items() if name != "bounds"} | said
        for part in ("action", "proprio")
        if part in norm_stats
    }
    return {**norm_stats, **parts}


def bounds_of(entry: Entry) -> str:
    """Name of the bounds that one entry ("action" or "proprio") is normalised with."""
    return str(entry.get("bounds", QUANTILES))


def standardize_gripper(recorded: np.ndarray) -> np.ndarray:
    """RLDS gripper command (-1 open, +1 close) → 1 open, 0 close."""
    return 1 - np.clip(recorded, 0, 1)


def _inverted_sign(actions: np.ndarray) -> np.ndarray:
    """Gripper in [0, 1], 1 open → robosuite's ±1, +1 close; exactly 0.5 becomes 0, as in the reference."""
    actions[..., -1] = -np.sign(2 * actions[..., -1] - 1)
    return actions


def _unchanged(actions: np.ndarray) -> np.ndarray:
    """WidowX and ALOHA: the reference hands the model's actions to the robot as they are."""
    return actions


GRIPPERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {LIBERO_GRIPPER: _inverted_sign, "unchanged": _unchanged}
