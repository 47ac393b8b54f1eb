"""Part (b): a policy folder with its real weights, decoding by decoding, over recorded closed loops.

Every arm sees one observation of an episode before any sees the next one, in an order drawn anew each time, and keeps
its own memory of the episode, so a decoding that skips calls skips them here. What surprises first: the episodes are
those of `l1`. What a gate says of states that its own decoding leads to is measured in closed loops only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

import rsd
from rsd.decoding import Decoding, Exit, Parallel
from rsd.queue import chunk_seed
from rsd.types import Chunk, Memory, Observation, Policy, Request
from scripts.benchmark_7b.clocks import summary
from scripts.recorded import SEED

Episodes = Sequence[Sequence[Observation]]
REFERENCE = "l1"
RESAMPLES, LEVEL = 2000, 95  # bootstrap, per cent
# Of robot commands (-1..1), and the share of chunks that has to be as near: a compiled model rounds elsewhere, and a
# token may fall to the other side
TOLERANCE, AGREEING = 0.01, {"eager": 1.0, "captured": 1.0, "compiled": 0.95}


@dataclass(frozen=True)
class Asked:
    """One question, ms, and the answer."""

    ms: float
    chunk: Chunk
    episode: int
    step: int


def ask(policy: Policy, observation: Observation, number: int, memory: Memory | None) -> tuple[float, Chunk]:
    """Milliseconds from observation to commands, and the chunk."""
    start = time.perf_counter()
    (chunk,) = policy.predict([Request(observation, chunk_seed(SEED, number), memory)])
    return 1000 * (time.perf_counter() - start), chunk


def after(chunk: Chunk) -> Memory | None:
    """What the policy is told of when all of a chunk's steps have been executed."""
    return None if chunk.memory is None else dataclasses.replace(chunk.memory, num_executed=chunk.num_steps)


def in_turn(
    policies: Mapping[str, Policy],
    episodes: Episodes,
    *,
    warmup: int,
    calls: int,
    left: Callable[[], float] = lambda: np.inf,
    seen: Callable[[dict[str, list[Asked]]], None] = lambda made: None,
) -> dict[str, list[Asked]]:
    """Name → what each arm was asked after the warm-up; see the head of this file.

    Args:
        warmup, calls: Of each arm; after the warm-up the first episode begins anew.
        left: Seconds; below 0 it ends early.
        seen: Told of all answers so far, after each round.
    """
    random = np.random.default_rng(0)
    made: dict[str, list[Asked]] = {name: [] for name in policies}
    places = [(episode, step) for episode, one in enumerate(episodes) for step in range(len(one))]
    for timed, count in ((False, warmup), (True, calls)):
        memories: dict[str, Memory | None] = {}
        for number, (episode, step) in enumerate(islice(cycle(places), count)):
            for name in random.permutation(list(policies)).tolist():
                memory = memories.get(name) if step else None
                ms, chunk = ask(policies[name], episodes[episode][step], number, memory)
                memories[name] = after(chunk)
                if timed:
                    made[name].append(Asked(ms, chunk, episode, step))
            if timed:
                seen(made)
            if left() < 0:
                return made
    return made


def mean_ratio(ms: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Mean of the reference over the mean of an arm (above 1: faster), both of the same [n] questions, and a paired
    bootstrap percentile interval.
    """
    drawn = np.random.default_rng(0).integers(0, len(ms), (RESAMPLES, len(ms)))
    ratios = reference[drawn].mean(axis=1) / ms[drawn].mean(axis=1)
    low, high = np.percentile(ratios, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return {"ratio": float(reference.mean() / ms.mean()), "interval": [float(low), float(high)]}


class Answers:
    """What each way of deciding says of every observation, untimed and eager: what timed chunks are held to."""

    def __init__(self, folder: Path, episodes: Episodes, **options: Any) -> None:
        self._folder, self._episodes, self._options = folder, episodes, options
        self._found: dict[tuple[str, str | None, int | None], list[list[np.ndarray]]] = {}

    def expected(self, decoding: Decoding, draft: str | None, asked: Asked) -> np.ndarray:
        """The chunk that is promised: the draft's own tokens where it decided, the target's code where a target was
        asked, the base model's chunk otherwise; [steps, A].
        """
        if asked.chunk.work["early_exits"]:
            key = ("draft", draft, decoding.num_draft_stages)
        elif asked.chunk.work["target_passes"]:
            key = ("parallel" if isinstance(decoding, Parallel) else "depth_ar", None, None)
        else:
            key = (REFERENCE, None, None)
        if key not in self._found:
            self._found[key] = self._answers(*key)
        return self._found[key][asked.episode][asked.step]

    def _answers(self, kind: str, draft: str | None, num_stages: int | None) -> list[list[np.ndarray]]:
        decoding = Exit(num_draft_stages=num_stages) if kind == "draft" else kind
        policy = rsd.load(self._folder, decoding=decoding, draft=draft, **self._options)
        return [[ask(policy, one, 0, None)[1].actions for one in episode] for episode in self._episodes]


def agreement(made: Sequence[Asked], answers: Answers, decoding: Decoding, draft: str | None) -> dict[str, Any]:
    """How many chunks are what is promised, and by how much the farthest is off."""
    off = []
    for asked in made:
        expected, got = answers.expected(decoding, draft, asked), asked.chunk.actions
        longer = np.concatenate([expected, np.repeat(expected[-1:], max(0, len(got) - len(expected)), axis=0)])
        off.append(float(np.abs(longer[: len(got)] - got).max()))
    return {"off": max(off), "agreeing": float(np.mean(np.array(off) <= TOLERANCE))}


def record(made: Sequence[Asked], reference: Sequence[Asked]) -> dict[str, Any]:
    """Times and counted work of one arm."""
    ms = np.array([one.ms for one in made])
    chunks = [one.chunk for one in made]
    early = np.array([bool(chunk.work["early_exits"]) for chunk in chunks])
    parts = {name for chunk in chunks for name in chunk.latency_ms} - {"total"}
    spent = {name: [chunk.latency_ms.get(name, 0.0) for chunk in chunks] for name in sorted(parts)}
    whole = float(np.sum([*spent.values()]) / ms.sum())
    kinds = {name: float(ms[rows].mean()) for name, rows in (("early_ms", early), ("whole_ms", ~early)) if rows.any()}
    counts = ("pictures_prepared", "vision_calls", "visual_tokens", "base_layers", "draft_passes", "target_passes")
    return {
        "wall_ms": {**summary(ms.tolist()), "mean": float(ms.mean())},
        "ms_a_step": float(ms.sum() / sum(chunk.num_steps for chunk in chunks)),
        "decided_early": {"share": float(early.mean()), **kinds},
        "work": {name: float(np.mean([chunk.work[name] for chunk in chunks])) for name in counts},
        "parts_ms": {name: {"mean": float(np.mean(values))} for name, values in spent.items()},
        "parts_over_whole": whole,
        "parts_sum": abs(whole - 1) <= 0.05,
        "over_l1": mean_ratio(ms, np.array([one.ms for one in reference])),
    }
