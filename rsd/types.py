"""The vocabulary of the project: axes, the few records that travel between rooms, and their protocols.

Axis legend, used in every shape comment:
    B batch · T steps of the action chunk · A action dims · P proprio dims · D latent dims · Q residual stages ·
    L levels per scalar · S backbone tokens · K = T*A action tokens · H hidden width

What surprises first: the *code* of a chunk is a rectangular block of integers [T, D, Q], but not every entry of the
block has to exist. `CodeShape.levels` says how many values each entry can take; 1 means "nothing is stored here".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # simulator workers and readers of records need no torch

IMAGE_VIEWS = ("image", "wrist_image")  # RLDS names: third person first, then wrist (OpenVLA-OFT's order)


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one environment step.

    Attributes:
        images: View name to picture, each [H, W, 3], uint8, RGB, already rotated by 180 degrees as in the RLDS sets.
        proprio: [P], float; end-effector position (m), axis-angle (rad), gripper joint positions (m). Not normalised.
        instruction: The task in words.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: str


@dataclass(frozen=True)
class CodeShape:
    """Shape of a chunk's code: which integers exist, and how many values each can take.

    Attributes:
        chunk_length: T, time steps of the action chunk that the code stands for.
        action_dim: A, action dims of that chunk.
        num_levels: L, the largest number of values of any entry.
        levels: Values of each entry, nested tuples [T][D][Q] of ints in 1..L. An entry with 1 level carries nothing and
            its index is always 0. T here is the tokenizer's step axis (time, or DCT frequency).
    """

    chunk_length: int
    action_dim: int
    num_levels: int
    levels: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def full(cls, chunk_length: int, action_dim: int, latent_dim: int, num_stages: int, num_levels: int) -> CodeShape:
        """A code in which every one of the T*D*Q entries exists with the same number of levels."""
        entry = (num_levels,) * num_stages
        return cls(chunk_length, action_dim, num_levels, ((entry,) * latent_dim,) * chunk_length)

    @property
    def num_stages(self) -> int:
        return len(self.levels[0][0])

    @property
    def latent_dim(self) -> int:
        return len(self.levels[0])

    @property
    def tokens_per_stage(self) -> list[int]:
        """Entries with more than one level, for each stage."""
        array = np.asarray(self.levels)
        return [int((array[:, :, q] > 1).sum()) for q in range(self.num_stages)]

    @property
    def bits_per_stage(self) -> list[float]:
        """log2 of the number of codes of each stage."""
        array = np.asarray(self.levels, dtype=np.float64)
        return [float(np.log2(array[:, :, q]).sum()) for q in range(self.num_stages)]


@dataclass
class BackboneOutput:
    """One forward pass of a base model.

    Attributes:
        hidden_states: Layer number to the states at the K action positions, [B, K, H]. Layer i is the output of decoder
            layer i (1-based); the last one is taken after the final norm.
        actions: The continuous head's chunk, [B, T, A], normalised, gripper in [0, 1]; not clipped.
    """

    hidden_states: dict[int, Tensor]
    actions: Tensor


@dataclass
class DecodingResult:
    """What a decoding returns: the code and an account of the work done for it.

    Attributes:
        indices: [B, T, D, Q], int64.
        target_passes: Calls of the target head that each sample needed, [B], int64.
        draft_passes: Calls of the draft model that each sample needed, [B], int64.
        proposed_stages: Stages that the draft proposed, [B], int64; those behind a wrong one count too, although they
            are void, and count again when they are proposed anew.
        accepted_stages: Those of them that were accepted whole, [B], int64, in 0..proposed_stages.
        accepted_tokens: (kept, checked), each [B, Q], int64: draft tokens of a stage that were checked under a true
            prefix, and those of them that were kept; zeros for stages never proposed.
        accept_counts: Histogram of the first proposal's accepted leading stages, [B, Q + 1], int64: one entry of a row
            is 1, all are 0 when nothing was proposed. Sum over samples and chunks to get the run's histogram.
        proposal: The draft's first proposal, [B, T, D, m], int64; None without a draft.
    """

    indices: Tensor
    target_passes: Tensor
    draft_passes: Tensor
    proposed_stages: Tensor
    accepted_stages: Tensor
    accepted_tokens: tuple[Tensor, Tensor]
    accept_counts: Tensor
    proposal: Tensor | None = None


@dataclass
class ChunkPrediction:
    """A policy's answer to one observation.

    Attributes:
        actions: [T, A], float64, robot units as `Env.step` takes them: end-effector deltas, gripper -1 open, +1 close.
        stats: Counters of the decoding for this chunk (JSON types): target_passes, draft_passes, proposed_stages,
            accepted_stages, accepted_tokens, checked_tokens, accept_counts (lists). Empty without tokens.
        latency_ms: Part name to milliseconds of the call that produced the chunk; "total" is measured around all parts.
        draft_actions: What the draft's first proposal alone decodes to, as `actions`; None without a draft.
    """

    actions: np.ndarray
    stats: dict[str, Any] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    draft_actions: np.ndarray | None = None


@dataclass
class EpisodeResult:
    """One evaluated episode; a line of results.jsonl.

    Attributes:
        suite, task_id, instruction: Which task.
        init_state_id: Index of the evaluation init state, so that runs can be paired.
        seed: Seed of the policy's sampling in this episode.
        success: Whether the environment reported success within the limit. False when error is set.
        num_steps: Control steps executed after the waiting steps.
        error: None, or "ExceptionType: message" when the episode crashed; that is not a failure of the policy.
        stats: Sums of ChunkPrediction.stats over the episode, plus "num_chunks".
        latency_ms: Part name to the list of measured values, one per chunk.
        wall_s: Wall-clock seconds of the episode, reset included.
        video: Path of the video relative to the run directory, or None.
        protocol: Name and version of the evaluation protocol.
        versions: What the simulator consists of ("mujoco", "gl_backend", …).
        time_s: Seconds of the episode spent in "reset", "physics", "rendering" and "policy"; the rest is waiting.
        trace: Path of the episode's chunks as JSON, relative to the run directory, or None; see rsd.evaluation.trace.
        model_ms: Milliseconds of the policy for this episode: of each chunk the time of its call, divided by the number
            of observations in that call. 0 when it was not measured.
    """

    suite: str
    task_id: int
    instruction: str
    init_state_id: int
    seed: int
    success: bool
    num_steps: int
    error: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    latency_ms: dict[str, list[float]] = field(default_factory=dict)
    wall_s: float = 0.0
    video: str | None = None
    protocol: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    time_s: dict[str, float] = field(default_factory=dict)
    trace: str | None = None
    model_ms: float = 0.0


@dataclass(frozen=True)
class Task:
    """What an environment says of itself: one manipulation task with a fixed list of initial states.

    Attributes:
        suite: Name of the suite, with its variant.
        task_id: Number of the task in the suite.
        instruction: The task in words.
        num_init_states: Evaluation init states, numbered from 0.
        max_steps: Step limit after the waiting steps; kept for the caller, not enforced by the environment.
        views: Names of the pictures in an observation.
        proprio_dim: P of an observation.
        action_names: Name of each action dim; "x", "y", "z" move the hand (positions), "gripper" opens and closes it.
        control_hz: Control steps in a second.
        limits: Smallest and largest value that an action's entries may have.
        protocol: Name and version of the evaluation protocol, "openvla_oft-1".
        versions: Of what the simulation consists of ("mujoco", "gl_backend", …), to be stored with results.
    """

    suite: str
    task_id: int
    instruction: str
    num_init_states: int
    max_steps: int
    views: tuple[str, ...]
    proprio_dim: int
    action_names: tuple[str, ...]
    control_hz: float
    limits: tuple[float, float]
    protocol: str
    versions: dict[str, str]

    @property
    def action_dim(self) -> int:
        """A of an action."""
        return len(self.action_names)


@dataclass(frozen=True)
class Step:
    """What one control step gave.

    Attributes:
        observation: What is seen after it; None when nobody looks.
        success: Whether the task is solved.
        rendering_s: Seconds of the step that were spent on pictures.
    """

    observation: Observation | None
    success: bool
    rendering_s: float = 0.0


class Env(Protocol):
    """One task in simulation.

    The life cycle is reset, step, step, ...; stepping before the first reset, or after success, raises RuntimeError.

    Attributes:
        task: Which one, and under which conditions.
        reset_rendering_s: Seconds that the last reset spent on pictures; `Step.rendering_s` for a reset.
    """

    @property
    def task(self) -> Task: ...

    @property
    def reset_rendering_s(self) -> float: ...

    def reset(self, init_state_id: int) -> Observation:
        """Put the scene into evaluation init state `init_state_id`, run the waiting steps, return what is seen then.

        Raises:
            IndexError: init_state_id is not in 0..num_init_states-1.
        """

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        """Execute one action [A], robot units.

        Args:
            observe: False when nobody will look: nothing is rendered and the observation is None. The physics is the
                same, bit for bit.

        Raises:
            ValueError: the action has another shape, or is not finite.
        """

    def close(self) -> None: ...


class Backbone(Protocol):
    """A frozen base model: observations in, hidden states at the action positions out.

    Caching and evaluation both call `prepare` and `forward`, so that there is one image path and one set of positions.
    """

    chunk_length: int
    action_dim: int
    hidden_dim: int
    num_layers: int
    state_shapes: dict[
        int, tuple[int, int]
    ]  # layer → (states a chunk, H): K at decoder layers 1..num_layers; T at layer
    # num_layers + 1, which is what the last linear layer of an L1 head reads
    views: tuple[str, ...]
    proprio_dim: int | None  # None for a model that is not told the proprio
    center_crop: bool
    decoder: str  # how its own chunk is made: l1, discrete, diffusion, autoregressive
    unnorm_key: str
    norm_stats: dict[str, Any]  # {"action": {...}, "proprio": {...}} of unnorm_key
    gripper: str  # name of the rule that turns the model's gripper into the robot's (rsd/normalization.py)

    def prepare(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """Pictures as stored in RLDS (after JPEG) → model pixels; instruction → ids; proprio → [-1, 1]."""

    def forward(self, inputs: dict[str, Tensor], layers: Sequence[int]) -> BackboneOutput: ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the model and its image pipeline (weights hash, sizes, crop): the cache's content key."""


class Policy(Protocol):
    """Raw observations in, chunks in robot units out; owns its normaliser, and remembers nothing between two calls."""

    num_open_loop_steps: int

    def predict(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ChunkPrediction]:
        """One chunk per observation; what is random in it comes from its own seed, 0..2**63-1, whatever the batch."""
