"""What report.json holds. `write_report` holds it to these types, and its JSON schema is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rsd.evaluation.sequential import Verdict
from rsd.settings import Measured, Seed, Share, Total


@dataclass(frozen=True)
class Caveat:
    """What to know before reading the rates; see caveats.py."""

    severity: Literal["bad", "warn"]
    title: str
    text: str


@dataclass(frozen=True)
class Success:
    """Counts, rate and interval of some episodes.

    Attributes:
        num_episodes: All of them, crashed ones too.
        num_errors: Crashed ones.
        success_rate: Of the episodes that did not crash; null when there is none.
        success_low, success_high: 95 % Wilson interval.
    """

    num_episodes: Total
    num_errors: Total
    num_success: Total
    success_rate: Share | None
    success_low: Share | None
    success_high: Share | None


@dataclass(frozen=True, kw_only=True)
class TaskSuccess(Success):
    """Attributes:
    instruction: The task in words.
    mean_steps_of_successes: Control steps; null without a success.
    """

    suite: str
    task_id: Total
    instruction: str
    mean_steps_of_successes: float | None


@dataclass(frozen=True)
class ReportedEpisode:
    """An episode, as far as tables show it; results.jsonl has all of it.

    Attributes:
        error: "ExceptionType: message" of a crashed one, else null.
        num_steps: Control steps.
        wall_s: Seconds, reset included.
        video, trace: Paths relative to the run's folder, or null.
    """

    task_id: Total
    init_state_id: Total
    seed: Seed
    success: bool
    error: str | None
    num_steps: Total
    wall_s: Measured
    video: str | None
    trace: str | None


@dataclass(frozen=True)
class Retried:
    """A crashed episode of an earlier start, which was run again; "ExceptionType: message"."""

    task_id: Total
    init_state_id: Total
    error: str


@dataclass(frozen=True)
class Part:
    """Milliseconds of a part of a chunk's computation.

    Attributes:
        part: Its name; "total" is around all of them.
        mean, p50, p90, p99: Milliseconds a chunk.
        share: Of all time; null where nobody measured the whole.
    """

    part: str
    num_chunks: Total
    mean: float
    p50: float
    p90: float
    p99: float
    share: float | None


@dataclass(frozen=True)
class Latency:
    """Percentiles by part, and throughput of the policy alone.

    Attributes:
        parts_sum_ratio: Time in all parts, divided by the whole.
        parts_explain_total: Whether the two are within 5 % of each other.
    """

    unit: str
    num_chunks: Total
    parts: list[Part]
    total: Part | None
    parts_sum_ratio: float | None
    parts_explain_total: bool | None
    chunks_per_s: float | None
    actions_per_s: float | None


@dataclass(frozen=True)
class Stage:
    """What became of a drafted stage, over all proposals.

    Attributes:
        stage: Its number, from 1.
        reached: How often all stages before it were accepted.
        accepted: How often it was, too.
        rate: accepted ÷ reached; null where it was never reached.
        token_rate: Share of its checked tokens that were kept; null where tokens were not counted.
    """

    stage: Total
    reached: Total
    accepted: Total
    rate: float | None
    token_rate: float | None


@dataclass(frozen=True)
class InNumbers:
    """Of a decoding without tokens, for example `l1`.

    Attributes:
        has_tokens: False.
    """

    has_tokens: Literal[False]
    num_chunks: Total


@dataclass(frozen=True)
class InTokens:
    """What a decoding asked for, and what was accepted.

    Attributes:
        has_tokens: True.
        target_passes_per_chunk, draft_passes_per_chunk: Calls of the target and of the draft ÷ chunks.
        proposed_stages, accepted_stages: Stages that the draft proposed to a target, and those that were accepted.
        acceptance_rate: accepted ÷ proposed stages; null when nothing was proposed.
        accept_counts: Entry n: first proposals with exactly n leading stages accepted.
        stages: Drafted stages, the coarsest first.
    """

    has_tokens: Literal[True]
    num_chunks: Total
    target_passes_per_chunk: float
    draft_passes_per_chunk: float
    proposed_stages: Total
    accepted_stages: Total
    acceptance_rate: float | None
    accept_counts: list[Total]
    stages: list[Stage]


@dataclass(frozen=True)
class Counter:
    """One account of what was run; null where an episode did not record it, or there is nothing to divide by.

    Attributes:
        counter: Its name in the episodes' `stats`, or "model_ms".
        label: The name in words.
        total: Over all chunks.
        per_chunk: total ÷ chunks.
        per_solved_episode: total, failures included, ÷ solved episodes.
    """

    counter: str
    label: str
    total: float | None
    per_chunk: float | None
    per_solved_episode: float | None


@dataclass(frozen=True)
class WorkDone:
    """What was run for the chunks, crashed episodes included; null where an episode did not record it.

    Attributes:
        num_success: Solved episodes.
        early_exit_share: Chunks that were decided before the base model's end ÷ chunks.
        drafted_steps_per_chunk: Steps of a chunk that are the draft's, since they fell due before the target was done.
        late_steps_per_chunk: Those of them that fell due before even the draft was known.
        counters: One for each counter.
    """

    num_chunks: Total
    num_success: Total
    early_exit_share: float | None
    drafted_steps_per_chunk: float | None
    late_steps_per_chunk: float | None
    counters: list[Counter]


@dataclass(frozen=True)
class Lateness:
    """How late actions were, in control steps, crashed episodes included.

    Attributes:
        num_steps: Control steps.
        num_still: Those in which the robot stood still, because no chunk was there.
        still_share: num_still ÷ num_steps; null without steps.
        age_mean, age_max: Steps from a picture to an action that came of it; null where that was not recorded.
    """

    num_steps: Total
    num_still: Total
    still_share: Share | None
    age_mean: float | None
    age_max: Total | None


@dataclass(frozen=True)
class DimBound:
    """How far an action dim can be off, in model space, over the chunks with a bound.

    Attributes:
        dim: Name of the action dim, or its number where nobody knows names.
    """

    dim: str
    mean: Measured
    max: Measured


@dataclass(frozen=True)
class Bounds:
    """What was certified of the chunks; see `rsd.types.Code.bound`.

    Attributes:
        num_bounded: Chunks that have a bound.
        bounded_share: num_bounded ÷ num_chunks.
        max: The largest, over action dims and chunks.
        dims: One for each action dim.
    """

    num_chunks: Total
    num_bounded: Total
    bounded_share: Share
    max: Measured
    dims: list[DimBound]


@dataclass(frozen=True)
class TimePart:
    """Attributes:
    part: "policy", "physics", "rendering", "reset", or "idle", which is what no part accounts for.
    seconds: Summed over episodes.
    share: seconds ÷ all of them.
    """

    part: str
    seconds: Measured
    share: float


@dataclass(frozen=True)
class TimeSpent:
    """Where the wall-clock time of the episodes went.

    Attributes:
        num_episodes: Those that recorded it.
        wall_s: Seconds, summed over them; several workers make that more than the run took.
        parts: By kind of work.
    """

    num_episodes: Total
    wall_s: Measured
    parts: list[TimePart]


@dataclass(frozen=True)
class Report:
    """Attributes:
    schema: This layout's version.
    complete: Whether each planned episode is there; null when plan.json is missing, and nobody knows.
    caveats: What to know before reading the rates; see caveats.py.
    stopped: Of a run that was stopped early, else null.
    stamps: "protocol" or a version's name to the values in the episodes; one each in a proper run.
    success: Over all episodes.
    retried: Crashed episodes that were run again, crash by crash.
    decoding: What was proposed and accepted.
    work: What was run.
    delay: How late actions were.
    bound: What was certified; null where nothing was.
    busy: Null, or why milliseconds are those of a busy machine.
    latency: Milliseconds a chunk.
    time: Null where no episode recorded it.
    plan: plan.Plan.settings, or null.
    config: The resolved configuration, or null.
    provenance: The choices of groups, and every start; or null.
    """

    schema: int
    suite: str | None
    complete: bool | None
    num_planned: Total | None
    caveats: list[Caveat]
    stopped: Verdict | None
    stamps: dict[str, list[str]]
    success: Success
    tasks: list[TaskSuccess]
    episodes: list[ReportedEpisode]
    retried: list[Retried]
    decoding: InTokens | InNumbers
    work: WorkDone
    delay: Lateness
    bound: Bounds | None
    busy: str | None
    latency: Latency
    time: TimeSpent | None
    plan: dict[str, Any] | None
    config: dict[str, Any] | None
    provenance: dict[str, Any] | None
