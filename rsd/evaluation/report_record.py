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
class Report:
    """Attributes:
    schema: This layout's version.
    complete: Whether each planned episode is there; null when plan.json is missing, and nobody knows.
    caveats: What to know before reading the rates; see caveats.py.
    stopped: Of a run that was stopped early, else null.
    stamps: "protocol" or a version's name to the values in the episodes; one each in a proper run.
    success: Over all episodes.
    retried: Crashed episodes that were run again, crash by crash.
    decoding: statistics.summarize_decoding.
    work: statistics.summarize_work.
    delay: statistics.summarize_delay.
    bound: statistics.summarize_bounds, or null.
    busy: Null, or why milliseconds are those of a busy machine.
    latency: Milliseconds a chunk.
    time: time_shares.summarize_time, or null.
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
    decoding: dict[str, Any]
    work: dict[str, Any]
    delay: dict[str, Any]
    bound: dict[str, Any] | None
    busy: str | None
    latency: Latency
    time: dict[str, Any] | None
    plan: dict[str, Any] | None
    config: dict[str, Any] | None
    provenance: dict[str, Any] | None
