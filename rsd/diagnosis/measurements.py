"""What a diagnosis measures, as records: figures with intervals, in JSON types, which verdict and page read alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsd.diagnosis.bootstrap import Estimate


@dataclass(frozen=True)
class Moved:
    """One intervention.

    Attributes:
        name, input, kind: See `interventions.Intervention`.
        views: Cameras that it changes.
        alone: Whether it is about one of several cameras.
        moved: L1 between the chunks with and without it, model space.
        of_spread: The same as a share of the L1 between demonstrations of other tasks.
        of_error: The same as a share of the held-out error.
        cost: How much larger the error becomes.
        gain: What the right input takes off the error that the wrong one has: `cost` over that error, at most 1.
        dims: `moved` of each action dim, model space.
        robot_dims: The same in robot units.
    """

    name: str
    input: str
    kind: str
    views: list[str]
    alone: bool
    moved: Estimate
    of_spread: Estimate
    of_error: Estimate
    cost: Estimate
    gain: Estimate
    dims: list[float]
    robot_dims: list[float]


@dataclass(frozen=True)
class ProprioAlone:
    """R² of a ridge regression on proprio, held out by episode.

    Attributes:
        policy: Of the policy's chunks.
        demonstrations: Of the demonstrations' chunks at the same places.
        dims: Of the policy's chunks, by action dim; None where it says always the same.
    """

    policy: Estimate
    demonstrations: Estimate
    dims: list[float | None]


@dataclass(frozen=True)
class Gripper:
    """One gripper over the replayed episodes.

    Attributes:
        dim: Its action dim.
        num_closings: Demonstrated closings.
        missed: Share of them at which the policy is not closed within the window; None without any.
        delays: Of the others, in steps; below 0: early.
        executed_closings: The policy's.
        open_share, closed_share: Share of the steps with a demonstrated open (closed) gripper at which the policy
            agrees; None where there is none.
        agreement: Mean of the two: 0.5 for a gripper that never moves, 0 for an inverted one.
        window: Steps around a closing in which the policy's counts.
        begins_closed: Share of demonstrations that begin with a closed gripper.
        fingers: Correlation of the demonstrated command with the fingers' distance; None where proprio has none.
    """

    dim: int
    num_closings: int
    missed: Estimate | None
    delays: list[int]
    executed_closings: int
    open_share: float | None
    closed_share: float | None
    agreement: Estimate | None
    window: int
    begins_closed: float
    fingers: float | None


@dataclass(frozen=True)
class Idle:
    """Movement in the first steps of an episode, and of chunks at all.

    Attributes:
        start: The policy's movement in the first chunks over the demonstrations'.
        still: Share of the policy's chunks that move next to nothing.
        still_demonstrated: The same of the demonstrations' chunks.
        start_still_demonstrated: The same of demonstrations, in their first chunks alone.
        bias: Of each action dim: how much more the policy moves than the demonstrations on average, as a share of the
            dim's standard deviation.
        mean: The policy's mean action, standard, by dim.
        mean_demonstrated: The demonstrations'.
    """

    start: Estimate
    still: Estimate
    still_demonstrated: Estimate
    start_still_demonstrated: Estimate
    bias: list[Estimate]
    mean: list[float]
    mean_demonstrated: list[float]


@dataclass(frozen=True)
class Continuity:
    """From chunk to chunk, and from frame to frame.

    Attributes:
        jump: Mean jump between chunks, model space; None where no chunk follows another.
        of_step: The same over how far a demonstration moves in one step and the error of the chunks together.
        turned: How far the states turn from a frame to the next (1 - cosine).
        of_task: The same over how far they turn to another task's frame.
        pictures: How far the pictures change from a frame to the next, over how far they differ from another task's.
        correlation: Rank correlation of the two changes over frames.
    """

    jump: Estimate | None
    of_step: Estimate | None
    turned: Estimate
    of_task: Estimate
    pictures: Estimate
    correlation: float | None


@dataclass(frozen=True)
class TokenAccuracy:
    """Of one stage of the code, or of the base model's own tokens.

    Attributes:
        policy: Share of tokens that are the demonstration's.
        majority: The same of always saying the most frequent one of the demonstrations.
        better: Difference of the two.
    """

    policy: Estimate
    majority: Estimate
    better: Estimate


@dataclass(frozen=True)
class Measurements:
    """A diagnosis without its judgement.

    Attributes:
        num_frames, num_episodes: Moments, and episodes that they are of.
        num_replayed: Episodes that were seen through from end to end.
        tasks: The data set's instructions.
        views: The policy's cameras.
        dims: Names of the action dims, for people.
        error: Held-out error, L1 in model space.
        error_dims: Of each action dim, model space; `robot_error_dims` in robot units.
        explained: R² of the policy's chunks for the demonstrations'.
        explained_dims: Of each action dim; None where the demonstrations do not move it.
        spread_tasks: L1 between demonstrations of other tasks at comparable moments (with one task: of other moments).
        spread_episodes: L1 between those of the same task; None where no task has two episodes.
        same_over_other: The second over the first, on the moments that have both.
        variety: How different the policy's chunks are from each other, over how different the demonstrations' are.
        moved: The interventions.
        refused: Interventions that the policy refuses, with its words.
        dark: View → share of frames that show one colour.
        proprio: What proprio alone explains; None for a policy that is not told it.
        saliency: Input → mean share of gradient × input; empty where it was not asked for.
    """

    num_frames: int
    num_episodes: int
    num_replayed: int
    tasks: list[str]
    views: list[str]
    dims: list[str]
    error: Estimate
    error_dims: list[float]
    robot_error_dims: list[float]
    explained: Estimate
    explained_dims: list[float | None]
    spread_tasks: Estimate
    spread_episodes: Estimate | None
    same_over_other: Estimate | None
    variety: Estimate
    moved: list[Moved]
    refused: dict[str, str]
    dark: dict[str, float]
    proprio: ProprioAlone | None
    grippers: list[Gripper]
    idle: Idle
    continuity: Continuity
    tokens: list[TokenAccuracy] = field(default_factory=list)
    saliency: dict[str, float] = field(default_factory=dict)

    def of(self, what: str, kind: str) -> Moved | None:
        """The intervention on all of an input; None where there was none."""
        found = [one for one in self.moved if one.input == what and one.kind == kind and not one.alone]
        return found[0] if found else None
