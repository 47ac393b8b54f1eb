"""The vocabulary of the project: axes, the few records that travel between rooms, and their protocols.

Axis legend, used in every shape comment:
    B batch · T steps of the action chunk · A action dims · P proprio dims · D latent dims · Q residual stages ·
    L levels per scalar · S tokens of the language model · K = T*A action tokens · H hidden width

What surprises first: the *code* of a chunk is a rectangular block of integers [T, D, Q], but not every entry of the
block has to exist. `CodeShape.levels` says how many values each entry can take; 1 means "nothing is stored here".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np

from rsd.errors import RSDError
from rsd.settings import Count, Finite, Measured, Natural, Positive, Seed, Total
from rsd.space import Space
from rsd.work import Counts, Stopwatch, Work

if TYPE_CHECKING:
    from torch import Tensor  # simulator workers and readers of records need no torch

ALL_TOKENS = "all"  # of the pictures
IN_NUMBERS = -1  # in the place of a depth: the code is no tokens, but a chunk
IMAGE_VIEWS = ("image", "wrist_image")  # RLDS names: third person first, then wrist (OpenVLA-OFT's order)


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one environment step.

    Attributes:
        images: View name to picture, each [H, W, 3], uint8, RGB, already rotated by 180 degrees as in the RLDS sets.
        proprio: [P], float; end-effector position (m), axis-angle (rad), gripper joint positions (m). Not normalised.
        instruction: The task in words.
        stored: Whether the pictures come from a data set, and have been through its JPEG. A camera's have not: the base
            model sends them through first.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: str
    stored: bool = False


@dataclass(frozen=True)
class CodeShape:
    """Shape of a chunk's code: which integers exist, and how many values each can take.

    Attributes:
        chunk_length: T, time steps of the action chunk that the code stands for.
        action_dim: A, action dims of that chunk.
        num_levels: L, the largest number of values of any entry.
        levels: Values of each entry, nested tuples `[T][D][Q]` of ints in 1..L. An entry with 1 level carries nothing
            and its index is always 0. T here is the tokenizer's step axis (time, or DCT frequency).
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
class Code:
    """What a decoding returns: integers of a chunk, and how many of their stages count.

    Attributes:
        indices: [B, T, D, Q], int64.
        depth: Leading stages that count, [B], int64, in 0..Q. 0: the base model's own chunk is executed instead;
            IN_NUMBERS: `chunk` is.
        work: What the decoding did.
        proposal: The draft's first proposal, [B, T, D, m], int64; None without a draft.
        bound: Largest error of each action dim, model space, [B, A] or [B, 1], float32; inf where nobody certifies one.
            A decoding says it of codes that are only near the target's: against the target's chunk. Where it says
            none, None or NaN, the policy fills in what the stages beyond `depth` can make, from the tokenizer.
        num_steps: Steps of the chunk to execute, [B], int64; more than T repeats the last action; 0, and None for all
            rows, leaves it to the policy.
        chunk: What a draft in numbers says, model space, [B, T, A], float32; of rows of depth IN_NUMBERS alone it
            means something. None where no row is.
        ahead: What is executed until this code is known; None for nothing.
    """

    indices: Tensor
    depth: Tensor
    work: Work
    proposal: Tensor | None = None
    bound: Tensor | None = None
    num_steps: Tensor | None = None
    chunk: Tensor | None = None
    ahead: Ahead | None = None

    def put(self, rows: Tensor, other: Code) -> None:
        """Let these rows, [n] int64, be what `other` says of them, and charge them with its work, too."""
        self.indices[rows], self.depth[rows] = other.indices, other.depth
        self.work.add_rows(rows, other.work)
        if other.num_steps is not None:
            if self.num_steps is None:
                self.num_steps = self.depth.new_zeros(len(self.depth))
            self.num_steps[rows] = other.num_steps
        if other.chunk is not None:
            if self.chunk is None:
                self.chunk = other.chunk.new_zeros(len(self.depth), *other.chunk.shape[1:])
            self.chunk[rows] = other.chunk
        if other.bound is not None:
            if self.bound is None:
                self.bound = other.bound.new_full((len(self.depth), other.bound.shape[1]), float("nan"))
            self.bound[rows] = other.bound


@dataclass(frozen=True)
class Ahead:
    """A draft's code, whose steps are executed as long as the chunk's own code is not known.

    Attributes:
        code: The draft's.
        budget: What can be computed in a control step, in passes or milliseconds; above 0.
        passes: Passes until the chunk's own code was known, [B], int64; None where milliseconds count.
        ready_s: When the draft's code was known, as `time.perf_counter` says it.
    """

    code: Code
    budget: float
    passes: Tensor | None
    ready_s: float

    def steps(self, chunk_length: int, elapsed_ms: float, draft_ms: float) -> tuple[Tensor, Tensor]:
        """Steps that fall due before the chunk's own code is known, and before the draft's is, [B] each, int64.

        Args:
            elapsed_ms, draft_ms: From the picture to either, where milliseconds count.
        """
        if self.passes is not None:
            spent, draft = self.passes, self.passes * 0
        else:
            spent, draft = (self.code.depth * 0 + 1.0 * one for one in (elapsed_ms, draft_ms))
        return self._due_before(spent, chunk_length), self._due_before(draft, chunk_length)

    def _due_before(self, spent: Tensor, chunk_length: int) -> Tensor:
        """Of the steps t = 0, 1, …, which fall due t + 1 budgets after the picture, those before so much is spent."""
        return (spent.double() / self.budget).clamp_max(chunk_length + 1).ceil().long().sub(1).clamp_min(0)


@dataclass(frozen=True)
class Memory:
    """What a policy wants to be told of at the next observation of the same episode; travels with the requests.

    Attributes:
        chunk: The last chunk, model space, [T, A], float32.
        num_executed: How many of its steps are over: executed, or dropped because they came too late.
        num_unverified: Chunks in a row, this one the last, that were decided before the base model's end.
    """

    chunk: np.ndarray
    num_executed: int = 0
    num_unverified: int = 0


@dataclass(frozen=True)
class Request:
    """A question to a policy: what to do next?

    Attributes:
        observation: What is seen.
        seed: Of everything random in the answer, 0..2**63-1; the same seed gives the same chunk in any batch.
        memory: From the last chunk of this episode; None at its beginning.
        explain: Whether the answer should say what the draft proposed, for people who look at it later.
        corrects: Whether no new chunk is asked for, but what is left of memory.chunk behind its first
            memory.num_executed steps, corrected by this observation; see `Corrects`.
    """

    observation: Observation
    seed: int
    memory: Memory | None = None
    explain: bool = False
    corrects: bool = False


@dataclass
class Chunk:
    """A policy's answer to one request.

    Attributes:
        actions: [T, A], float64, robot commands as `Env.step` takes them: end-effector deltas, gripper -1 open, +1
            close. Not clipped: the Queue does. Longer than T where a decoding holds the last one.
        num_steps: How many of them to execute before asking again, 1 or more, at most all.
        work: Counters of `rsd.work.Work` for this observation.
        latency_ms: Part name to milliseconds of the call that produced the chunk; "total" is measured around all parts.
        model_ms: This observation's share of the call: total divided by the number of observations in it.
        depth: Stages of the code that count; None for a policy without tokens.
        bound: Code.bound of this chunk, model space, [A]; None where nobody certifies one.
        memory: To be handed back with the next request of this episode.
        draft_actions: What the draft's first proposal alone decodes to, as `actions`; None unless asked for.
    """

    actions: np.ndarray
    num_steps: int
    work: Counts = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    model_ms: float = 0.0
    depth: int | None = None
    bound: np.ndarray | None = None
    memory: Memory | None = None
    draft_actions: np.ndarray | None = None


class Frame(TypedDict):
    """One frame of a demonstration.

    Attributes:
        observation: What was seen; pictures as they are stored.
        actions: The demonstration's chunk that starts here, standard, [T, A], float32.
        episode, step: Where it stands.
    """

    observation: Observation
    actions: Tensor
    episode: int
    step: int


class CachedRows(TypedDict):
    """Rows of a hidden-state cache, [B, ...]; those of one frame lack the batch axis.

    Attributes:
        hidden: States by point, [B, K or T, H], bfloat16.
        actions: The demonstration's chunks, standard, [B, T, A], float32.
        base_actions: The base model's own chunks, model space, [B, T, A], float32.
        episode, step: Where each frame stands, [B], int64.
    """

    hidden: dict[str, Tensor]
    actions: Tensor
    base_actions: Tensor
    episode: Tensor
    step: Tensor


class ChunkBatch(TypedDict):
    """Action chunks to train on.

    Attributes:
        actions: Standard (gripper 1 open, 0 close; not normalised), [B, T, A], float32.
        space: Of a mixture: which of the datamodule's spaces each is of, [B], int64.
    """

    actions: Tensor
    space: NotRequired[Tensor]


class HiddenStateBatch(TypedDict):
    """What a frozen base model has seen in some frames; all float32.

    Attributes:
        hidden: States by point, [B, K or T, H]; K states a chunk at a layer, T in the L1 head (rsd/points.py).
        actions: The demonstration's chunks, standard, [B, T, A].
        base_actions: The base model's own chunks, model space, [B, T, A].
    """

    hidden: dict[str, Tensor]
    actions: Tensor
    base_actions: Tensor


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
        stats: Sums of Chunk.work over the episode, plus "num_chunks".
        latency_ms: Part name to the list of measured values, one per chunk.
        wall_s: Wall-clock seconds of the episode, reset included.
        video: Path of the video relative to the run directory, or None.
        protocol: Name and version of the evaluation protocol.
        versions: What the simulator consists of ("mujoco", "gl_backend", …).
        time_s: Seconds of the episode spent in "reset", "physics", "rendering" and "policy"; the rest is waiting.
        trace: Path of the episode's chunks as JSON, relative to the run directory, or None; see rsd.evaluation.trace.
        jerk: Mean absolute second difference of the executed motions (all action dims but the gripper), in units of an
            action per control step squared; None of fewer than three steps, or where it was not measured.
        chunk_steps: Control step at which each chunk was asked for; empty where it was not kept.
        exit_steps: Those of them at which the chunk was decided before the base model's end.
        num_still: Control steps in which the robot stood still because no chunk was there; see `rsd.clock`.
        action_ages: Executed actions by age, entry n: those of n control steps after the picture that they came of.
        bounds: Chunk.bound of every chunk, [A] each, or None where nobody certified one; empty when nobody ever did.
        model_ms: Milliseconds of the policy for this episode: of each chunk the time of its call, divided by the number
            of observations in that call. 0 when it was not measured.
        seen: Digests of what the episode began with: "init_state", each view's first picture, "proprio"; empty where it
            was not recorded. Equal digests prove that two runs saw the same; see rsd.evaluation.seen.
    """

    suite: str
    task_id: Total
    instruction: str
    init_state_id: Total
    seed: Seed
    success: bool
    num_steps: Total
    error: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    latency_ms: dict[str, list[Measured]] = field(default_factory=dict)
    wall_s: Measured = 0.0
    video: str | None = None
    protocol: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    time_s: dict[str, Measured] = field(default_factory=dict)
    trace: str | None = None
    jerk: Measured | None = None
    chunk_steps: list[Total] = field(default_factory=list)
    exit_steps: list[Total] = field(default_factory=list)
    num_still: Total = 0
    action_ages: list[Total] = field(default_factory=list)
    bounds: list[list[Measured] | None] = field(default_factory=list)
    model_ms: Measured = 0.0
    seen: dict[str, str] = field(default_factory=dict)


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
    task_id: Natural
    instruction: str
    num_init_states: Natural
    max_steps: Count
    views: tuple[str, ...]
    proprio_dim: Natural
    action_names: tuple[str, ...]
    control_hz: Positive
    limits: tuple[Finite, Finite]
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


@dataclass(frozen=True)
class BaseSpec:
    """What a base model takes and gives, and which one it is.

    Attributes:
        views: Names of the pictures, in the model's order.
        proprio_dim: P; None for a model that is not told the proprio.
        chunk_length, action_dim: T and A of its chunk.
        space: What the numbers of actions and proprio mean.
        points: Where its states can be read: name → (states a chunk, H). "layer.N" is the output of the language
            model's layer N (1-based; the last one after the final norm) at the K = T*A action positions; "head" is what
            the last linear layer of an L1 head reads, T states.
        action_head: How its own chunk is made, for people: l1, diffusion, discrete, autoregressive.
        continuous: Whether that chunk consists of numbers rather than of tokens.
        identify: Makes the fingerprint; it may have to read every weight.
        visual_tokens: Which of its picture tokens it reads, for people; the fingerprint holds it exactly.
    """

    views: tuple[str, ...]
    proprio_dim: int | None
    chunk_length: int
    action_dim: int
    space: Space
    points: Mapping[str, tuple[int, int]]
    action_head: str
    continuous: bool
    identify: Callable[[], Mapping[str, Any]]
    visual_tokens: str = ALL_TOKENS

    @cached_property
    def fingerprint(self) -> Mapping[str, Any]:
        """What identifies the model and its image pipeline, as JSON; caches and heads are held to it."""
        return self.identify()


class Pass(Protocol):
    """Observations shown to a base model, computed as far as somebody has asked, and no further."""

    @property
    def work(self) -> Work:
        """What was run for each row, [B]; a part's work is in the account of the pass that it is a part of."""

    @property
    def clock(self) -> Stopwatch:
        """Where the time is booked: "preprocess" and "base_model" here, more by whoever goes on."""

    def __len__(self) -> int:
        """B."""

    def at(self, point: str) -> Tensor:
        """States at a point of `BaseSpec.points`, [B, n, H]; runs the model up to there.

        Raises:
            ValueError: no such point.
        """

    def chunk(self) -> Tensor:
        """The base model's own chunk, model space, gripper in [0, 1], not clipped: [B, T, A], float32."""

    def of(self, rows: Tensor) -> Pass:
        """The same for some rows, [n] int64, ascending: what goes on is computed for these alone."""


Inputs = Mapping[str, "Tensor"]  # observations as a base model's tensors, on the CPU


class BaseModel(Protocol):
    """A frozen base model. Caching and evaluation ask the same two questions, so that there is one image path."""

    @property
    def spec(self) -> BaseSpec: ...

    def prepare(self, observations: Sequence[Observation]) -> Inputs:
        """The part of `look` that needs no model: a data loader's workers may do it ahead.

        Raises:
            ObservationError or ImageError: an observation does not fit the model.
        """

    def look(self, observations: Sequence[Observation] | Inputs) -> Pass:
        """Observations, or what `prepare` has made of them, to be computed when asked for."""


class InstructionError(RSDError, ValueError):
    """An instruction that tells the base model nothing, or the same as another one."""


@runtime_checkable
class ReadsInstructions(Protocol):
    """A base model or policy that can say beforehand whether it understands instructions."""

    def check_instructions(self, instructions: Sequence[str], where: Mapping[str, str] | None = None) -> None:
        """See that each is understood, and that no two mean the same to it.

        Args:
            where: Of each instruction, for messages.

        Raises:
            InstructionError: one has unknown words or none, or two encode alike.
        """


@runtime_checkable
class Corrects(Protocol):
    """A policy that answers requests that correct; the actions of such an answer are what is left, corrected."""

    def check_delay(self, delay: int) -> None:
        """See that it was made for chunks that are so many control steps late.

        Raises:
            RSDError: it was not.
        """


class Policy(Protocol):
    """Observations in, chunks of robot commands out; remembers nothing between two calls."""

    num_open_loop_steps: int

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """One chunk a request; what is random in it comes from its own seed, whatever the batch."""
