"""A gate's threshold with a promise: of episodes like those that were held out, the risk is at most so much.

The risk of an episode is the share of its chunks that the gate lets through although they are wrong: in some executed
step some motion dim lies further than `tau` from the base model's own chunk, or the gripper is another. Thresholds are
tested from the strictest on, each by the Hoeffding-Bentkus bound, until one does not pass (Learn then Test,
Angelopoulos et al. 2021, arXiv 2110.01052, with fixed-sequence testing). With probability 1 - delta the threshold that
comes out keeps the risk. The promise about episodes that are lost is another one (rsd/comparison/thresholds.py); the
canaries here, black pictures and a frozen camera, are for both. What surprises first: episodes are what is drawn at
random, not frames, so hundreds of frames of 20 episodes promise nothing. Nor does the promise hold in states that only
the skipping policy gets into.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from rsd.decoding import MeanLogProb
from rsd.errors import SettingError
from rsd.policy.contract import PolicyError
from rsd.policy.policy import VLAPolicy
from rsd.settings import Positive, Range, checked
from rsd.types import Observation, Request

GRID = tuple(-0.005 * 1.1**k for k in range(72))  # nats a token, -0.005 … -4.3; chosen before any data are seen
BATCH = 32  # frames at a time
MODEL, ROBOT = "model", "robot"  # units of a distance: normalised actions, where 2 is a dim's range, or commands
BLACK, FROZEN = "black pictures", "a frozen camera"

Small = Annotated[float, Range(0, 0.5, above=True)]


@dataclass(kw_only=True)
class Listening:
    """A gate that lets everything through, and keeps what another one goes by."""

    gate: MeanLogProb
    heard: list[Tensor] = field(default_factory=list)

    def __call__(self, log_probs: Tensor, levels: Tensor) -> Tensor:
        score = self.gate.score(log_probs, levels)  # [B]
        self.heard.append(score)
        return torch.ones_like(score, dtype=torch.bool)


@dataclass(frozen=True)
class Measured:
    """Frames at which a chunk is asked for.

    Attributes:
        score: What the gate goes by, [N], float64.
        wrong: Distance of the draft's chunk from the base model's, [N], float64, in MODEL or ROBOT units; inf where the
            gripper differs.
        episode: Number of each frame's episode, [N], int64.
        blind: Name of a canary (BLACK, FROZEN, those of a single camera) → score of the same frames with such
            pictures, [N].
    """

    score: np.ndarray
    wrong: np.ndarray
    episode: np.ndarray
    blind: Mapping[str, np.ndarray]


@checked
@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a threshold is to keep.

    Attributes:
        tau: Largest distance from the base model's chunk that is not wrong, in the units of the measurement.
        risk: Largest expected share of an episode's chunks that pass and are wrong.
        delta: Largest probability that the threshold does not keep it.
    """

    tau: Positive
    risk: Small
    delta: Small

    @property
    def min_episodes(self) -> int:
        """With fewer no threshold passes, even when nothing is ever wrong."""
        return math.ceil(math.log(self.delta) / math.log1p(-self.risk))

    def enough(self, mean: float) -> int | None:
        """Episodes that do when their mean risk is this one (Hoeffding); None where no number does."""
        return math.ceil(-math.log(self.delta) / divergence(mean, self.risk)) if mean < self.risk else None

    def check_episodes(self, count: int) -> None:
        """Raise SettingError when so few episodes promise nothing of the kind."""
        if count < self.min_episodes:
            raise SettingError(
                f"{count} episodes are too few: a risk of {self.risk:g} with delta {self.delta:g} takes "
                f"{self.min_episodes} at least, when nothing is wrong in any; collect more, or promise less"
            )


@dataclass(frozen=True)
class Point:
    """One threshold: share of frames that pass, mean risk of the episodes, and the p-value of "its risk is larger"."""

    threshold: float
    coverage: float
    risk: float
    p: float


def measure(
    draft: VLAPolicy,
    base: VLAPolicy,
    listening: Listening,
    episodes: Sequence[Sequence[Observation]],
    units: str = MODEL,
) -> Measured:
    """Show frames to the draft and to the base model, and to the draft with pictures that it should not trust.

    Args:
        draft: Executes what the draft says; its gate is `listening`.
        base: Executes the base model's own chunk.
        episodes: The frames of each episode, in their order.
        units: Of the distances: MODEL or ROBOT.
    """
    frames = [frame for episode in episodes for frame in episode]
    first = [episode[0] for episode in episodes for _ in episode]
    (proposed, commands), score = _listen(draft, listening, frames)
    chunks, base_commands = _chunks(base, frames)
    steps = draft.num_open_loop_steps
    apart = np.abs(commands - base_commands if units == ROBOT else proposed - chunks)[:, :steps]  # [N, steps, A]
    grippers = list(base.base.spec.space.action.grippers)
    wrong = np.delete(apart, grippers, axis=2).max(axis=(1, 2))
    threshold = 0.5  # between the gripper's two values in model space
    grips = (proposed[:, :steps, grippers] > threshold) != (chunks[:, :steps, grippers] > threshold)  # [N, steps, G]
    blind = {name: _listen(draft, listening, shown)[1] for name, shown in broken(frames, first).items()}
    episode = np.repeat(np.arange(len(episodes)), [len(one) for one in episodes])
    return Measured(score, np.where(grips.any(axis=(1, 2)), np.inf, wrong), episode, blind)


def broken(frames: Sequence[Observation], first: Sequence[Observation]) -> dict[str, list[Observation]]:
    """What the canaries see: the frames with all pictures black, with all frozen, and with one camera of several so.

    Args:
        first: Of each frame the first one of its episode, whose pictures a frozen camera goes on showing.
    """
    views = list(frames[0].images)
    several = {f" ({view})": [view] for view in views} if len(views) > 1 else {}
    shown = {}
    for which, failing in {"": views, **several}.items():
        black = [{view: np.zeros_like(frame.images[view]) for view in failing} for frame in frames]
        frozen = [{view: one.images[view] for view in failing} for one in first]
        for name, pictures in ((BLACK + which, black), (FROZEN + which, frozen)):
            changed = zip(frames, pictures, strict=True)
            shown[name] = [replace(frame, images={**frame.images, **others}) for frame, others in changed]
    return shown


def curve(measured: Measured, promise: Promise) -> list[Point]:
    """Risk and coverage of every threshold of the grid, the strictest first."""
    num_episodes = len(np.unique(measured.episode))
    frames = np.bincount(measured.episode)  # of each episode
    points = []
    for threshold in GRID:
        passed = measured.score >= threshold
        bad = np.bincount(measured.episode, passed & (measured.wrong > promise.tau)) / frames
        risk = float(bad.mean())
        points.append(Point(threshold, float(passed.mean()), risk, p_value(risk, num_episodes, promise.risk)))
    return points


def p_value(mean: float, count: int, bound: float) -> float:
    """Hoeffding-Bentkus: at most the probability of a mean so small, were the expected risk above `bound`.

    Args:
        mean: Of `count` independent risks in [0, 1].
    """
    from scipy.stats import binom  # a second to import, which loading a policy does not wait for

    low = min(mean, bound)
    hoeffding = math.exp(-count * divergence(low, bound))
    bentkus = math.e * float(binom.cdf(math.ceil(count * mean), count, bound))
    return min(1.0, hoeffding, bentkus)


def divergence(mean: float, bound: float) -> float:
    """Kullback-Leibler divergence of two coins, of which the first shows heads with probability `mean` < 1."""
    return (0.0 if mean == 0 else mean * math.log(mean / bound)) + (1 - mean) * math.log((1 - mean) / (1 - bound))


def calibrate(measured: Measured, promise: Promise) -> tuple[Point, list[Point]]:
    """The loosest threshold that keeps the promise, and the whole curve.

    Raises:
        SettingError: there are too few episodes for any promise of the kind.
        PolicyError: no threshold keeps it, or the gate lets more through with black or frozen pictures.
    """
    num_episodes = len(np.unique(measured.episode))
    promise.check_episodes(num_episodes)
    points = curve(measured, promise)
    kept = None
    for point in points:
        if point.p > promise.delta:
            break
        kept = point
    if kept is None or kept.coverage == 0:
        first = next((point for point in points if point.coverage > 0), None)
        if first is None:
            raise PolicyError(
                f"no chunk passes even the loosest threshold, {points[-1].threshold:.4g}: this draft is never sure; "
                "train it longer"
            )
        more = promise.enough(first.risk)
        raise PolicyError(
            f"no threshold keeps a risk of {promise.risk:g} at tau {promise.tau:g}: this draft is wrong too often "
            f"where it is sure, {first.risk:.2%} in {num_episodes} episodes already at {first.threshold:.4g}"
            + (f", for which {more} episodes would do; collect them" if more else "; train it longer")
            + ", or promise less"
        )
    check_blind(measured, kept.threshold)
    return kept, points


def coverage(score: np.ndarray, threshold: float) -> float:
    """Share of frames that a threshold lets through."""
    return float((score >= threshold).mean())


def check_blind(measured: Measured, threshold: float) -> None:
    """See that a gate is not surer where it cannot see.

    Raises:
        PolicyError: it lets more through with black or frozen pictures than with the real ones.
    """
    real = coverage(measured.score, threshold)
    for name, score in measured.blind.items():
        if (share := coverage(score, threshold)) > real:
            raise PolicyError(
                f"with {name} the gate lets {share:.1%} of the chunks through, with the real ones {real:.1%}: "
                "it is surer of what it cannot see; train the draft with such pictures, or use another gate"
            )


def blind_coverage(measured: Measured, threshold: float) -> dict[str, float]:
    """What the canaries have measured: share of chunks that pass with black pictures and with a frozen camera."""
    return {name: coverage(score, threshold) for name, score in measured.blind.items()}


def evidence(measured: Measured, promise: Promise, kept: Point, points: Sequence[Point]) -> dict[str, Any]:
    """What is written beside a threshold, in JSON types."""
    return {
        "rule": "Learn then Test, Hoeffding-Bentkus, fixed sequence",
        **asdict(promise),
        "num_episodes": len(np.unique(measured.episode)),
        "num_frames": len(measured.score),
        **{name: getattr(kept, name) for name in ("threshold", "coverage", "p")},
        "mean_risk": kept.risk,
        "coverage_blind": blind_coverage(measured, kept.threshold),
        "curve": [[one.threshold, one.coverage, one.risk, one.p] for one in points],
    }


def _listen(
    policy: VLAPolicy, listening: Listening, frames: Sequence[Observation]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    listening.heard.clear()
    chunks = _chunks(policy, frames)
    return chunks, torch.cat(listening.heard).double().cpu().numpy()


def _chunks(policy: VLAPolicy, frames: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray]:
    """Chunks in model space and as robot commands, [N, T, A] each; each chunk with the seed of its place."""
    found, commands = [], []
    for start in range(0, len(frames), BATCH):
        answers = policy.predict([Request(f, seed) for seed, f in enumerate(frames[start : start + BATCH], start)])
        found += [answer.memory.chunk for answer in answers if answer.memory is not None]
        commands += [answer.actions for answer in answers]
    return np.stack(found), np.stack(commands)
