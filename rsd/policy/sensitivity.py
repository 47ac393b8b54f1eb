"""What a policy's chunks depend on: pictures, instruction and proprio of frames are exchanged for another task's.

What surprises first: the measure is the policy's own error. When another task's pictures move the chunks less than the
policy is wrong by on the same frames, whatever it sees is lost in its error: it ignores its pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rsd.finding import OK, Finding, judged
from rsd.policy.policy import VLAPolicy
from rsd.types import Frame, Observation, Request

BATCH_SIZE = 16  # frames that a policy is shown at once
NUM_FRAMES = 8  # to look at; a policy of 7 billion weights takes minutes for them on a CPU, seconds on a GPU
PICTURES, INSTRUCTION, PROPRIO = (f"another task's {one}" for one in ("pictures", "instruction", "proprio"))
ZEROS = "proprio of zeros"
IGNORED_REMEDY = (
    "train it for longer or on more demonstrations, or make proprio tell it less (phase=oft_gpu has proprio_dropout); "
    "eval.py ablation=black_pictures shows what it does blindfolded"
)


@dataclass(frozen=True)
class Sensitivity:
    """Mean absolute differences of chunks, in model space.

    Attributes:
        error: Between the policy's chunks and the demonstrations'.
        moved: What was exchanged → how far the policy's chunks moved.
        num_frames: Frames that were measured.
    """

    error: float
    moved: Mapping[str, float]
    num_frames: int


def exchanged(own: Observation, other: Observation) -> dict[str, Observation]:
    """What is exchanged → the observation with that of another one in its place."""
    return {
        PICTURES: replace(own, images=other.images, stored=other.stored),
        INSTRUCTION: replace(own, instruction=other.instruction),
        PROPRIO: replace(own, proprio=other.proprio),
        ZEROS: replace(own, proprio=np.zeros_like(own.proprio)),
    }


def sensitivity(policy: VLAPolicy, pairs: Sequence[tuple[Frame, Frame]]) -> Sensitivity:
    """Show frames to a policy as they are, and with one input of another task's at a time.

    Args:
        pairs: Frames, each with one of another task.

    Raises:
        PolicyError or NotFiniteError: a part says NaN.
    """
    seen = [own["observation"] for own, _ in pairs]
    chunks = chunks_of(policy, seen)  # [N, T, A]
    shown = np.stack([policy.base.spec.space.to_model(own["actions"].numpy()) for own, _ in pairs])  # [N, T, A]
    others = [exchanged(own["observation"], other["observation"]) for own, other in pairs]
    names = [name for name in others[0] if policy.base.spec.proprio_dim is not None or name in (PICTURES, INSTRUCTION)]
    moved = {name: _distance(chunks_of(policy, [one[name] for one in others]), chunks) for name in names}
    return Sensitivity(_distance(chunks, shown), moved, len(pairs))


def findings(found: Sensitivity, where: str) -> Iterator[Finding]:
    """A row for the error and one for each input; that of the pictures fails where they are ignored.

    Args:
        where: Which frames they were, for people.
    """
    error = f"{found.error:.3g}"
    yield Finding("held-out error", OK, f"{error}, mean of |chunk - demonstration| in model space, on {where}")
    for name, moved in found.moved.items():
        ignored = name == PICTURES and moved < found.error
        said = f"{moved:.3g} is how far the chunk moves"
        if ignored:
            said = f"{said}, less than the held-out error of {error}: the policy ignores its pictures"
        yield judged(name, not ignored, said, IGNORED_REMEDY)


def chunks_of(policy: VLAPolicy, observations: Sequence[Observation], batch_size: int = BATCH_SIZE) -> np.ndarray:
    """The policy's chunks in model space, [N, T, A]; each with the seed of its place."""
    requests = [Request(observation, seed) for seed, observation in enumerate(observations)]
    batches = (requests[start : start + batch_size] for start in range(0, len(requests), batch_size))
    answers = [answer for batch in batches for answer in policy.predict(batch)]
    return np.stack([answer.memory.chunk for answer in answers if answer.memory is not None])


def _distance(chunks: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(chunks - others).mean(dtype=np.float64))
