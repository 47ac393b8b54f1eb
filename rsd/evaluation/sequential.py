"""Stopping an evaluation early by a rule that keeps its error rate, however often one looks.

The evidence against "the rate is at most r" after k successes in n episodes is the likelihood of the outcomes averaged
over all rates above r, divided by their likelihood at r (a beta-binomial mixture). While the rate is at most r that
quotient is a non-negative supermartingale with start 1, so by Ville's inequality it ever reaches 1/a with probability
a at most. Sources: Robbins, Ann. Math. Statist. 41 (1970) 1397; Ramdas et al., Statist. Sci. 38 (2023) 576.

What surprises:
* The order of episodes matters. Run task by task, the first successes speak of the first tasks only, and no rule is
  valid: reorder the plan with `in_random_order`. Episodes are then drawn without replacement, which makes extreme
  counts rarer than the rule allows for.
* Successes end sooner than failures. With several workers the first results to arrive are too good, so what counts is
  the finished beginning of the plan (`count_finished`), not whatever has arrived.
* A Wilson interval, too, assumes a number of episodes fixed beforehand; after an early stop use `anytime_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, xlog1py, xlogy

from rsd.errors import SettingError
from rsd.evaluation.plan import PlanError, PlannedEpisode, Stopping
from rsd.record import read, write
from rsd.settings import Count, Natural, checked
from rsd.types import EpisodeResult

VERDICT_FILE = "verdict.json"


class StopWhenDecided:
    """Stop once the success rate is known to lie above or below a threshold.

    The probability of a wrong verdict is at most alpha for any rate: alpha / 2 for each side.

    Args:
        rate: The threshold, between 0 and 1.
        alpha: Largest probability of a wrong verdict.
        min_episodes: No verdict before this many episodes; looking later costs nothing.

    Raises:
        SettingError: rate or alpha is not between 0 and 1, or min_episodes is negative.
    """

    @checked
    def __init__(self, *, rate: float, alpha: float = 0.05, min_episodes: int = 0) -> None:
        for name, value in (("rate", rate), ("alpha", alpha)):
            if not 0 < value < 1:
                raise SettingError(f"stopping.{name} is {value}, expected a share between 0 and 1: 0.9 is 90 %")
        if min_episodes < 0:
            raise SettingError(f"stopping.min_episodes is {min_episodes}, expected 0 or more")
        self.rate = rate
        self.alpha = alpha
        self.min_episodes = min_episodes

    def verdict(self, num_success: int, num_trials: int) -> Literal["above", "below"] | None:
        """What is decided after `num_trials` episodes in random order; None: go on.

        Raises:
            ValueError: more successes than trials, or fewer than none.
        """
        if not 0 <= num_success <= num_trials:
            raise ValueError(f"num_success is {num_success}, expected 0..{num_trials}, the number of trials")
        if num_trials < self.min_episodes:
            return None
        threshold = math.log(2 / self.alpha)
        if log_evidence_above(num_success, num_trials, self.rate) >= threshold:
            return "above"
        if log_evidence_above(num_trials - num_success, num_trials, 1 - self.rate) >= threshold:
            return "below"
        return None


def describe_rule(rule: StopWhenDecided) -> Stopping:
    """The rule as a plan holds it."""
    return Stopping(type(rule).__name__, dict(vars(rule)))


def log_evidence_above(num_success: ArrayLike, num_trials: ArrayLike, rate: float) -> np.ndarray:
    """Log of the evidence against "the success rate is at most `rate`"; works on arrays.

    The mixture is uniform over the rates above `rate`. Evidence for a low rate is that for many failures:
    `log_evidence_above(n - k, n, 1 - rate)`.
    """
    from scipy.stats import beta  # a second to import, which --help does not wait for

    k, n = np.asarray(num_success, dtype=float), np.asarray(num_trials, dtype=float)
    mixture = betaln(k + 1, n - k + 1) + beta.logsf(rate, k + 1, n - k + 1) - math.log1p(-rate)
    return mixture - (xlogy(k, rate) + xlog1py(n - k, -rate))


def anytime_interval(num_success: int, num_trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Interval of the success rate that holds at all numbers of episodes at once, with probability 1 - alpha.

    The rates against which a uniform mixture has gathered evidence below 1 / alpha; wider than Wilson's, and right
    after an early stop.
    """
    if num_trials == 0:
        return 0.0, 1.0
    from scipy.optimize import brentq

    k, n = num_success, num_trials

    def excess(rate: float) -> float:
        return float(betaln(k + 1, n - k + 1) - xlogy(k, rate) - xlog1py(n - k, -rate)) + math.log(alpha)

    tiny, mean = 1e-12, k / n
    low = brentq(excess, tiny, mean) if k and excess(tiny) > 0 else 0.0
    high = brentq(excess, mean, 1 - tiny) if k < n and excess(1 - tiny) > 0 else 1.0
    return low, high


def in_random_order(plan: Sequence[PlannedEpisode], seed: int) -> list[PlannedEpisode]:
    """The same episodes in rounds: every round has one random episode of each task that has some left, tasks shuffled.

    Every beginning of the plan is then spread evenly over the tasks. Reorder the whole plan, before episodes that are
    already done are left out, so that a continued run goes on in the same order.
    """
    random = np.random.default_rng(seed)
    waiting: dict[int, list[PlannedEpisode]] = {}
    for episode in plan:
        waiting.setdefault(episode.task_id, []).append(episode)
    shuffled = [[own[i] for i in random.permutation(len(own))] for own in waiting.values()]
    rounds = [
        [own[number] for own in shuffled if number < len(own)] for number in range(max(map(len, shuffled), default=0))
    ]
    return [episodes[i] for episodes in rounds for i in random.permutation(len(episodes))]


def in_order_for(rule: StopWhenDecided | None, plan: Sequence[PlannedEpisode], seed: int) -> list[PlannedEpisode]:
    """The plan in the order that a stopping rule needs, which is random; as it is without a rule."""
    return list(plan) if rule is None else in_random_order(plan, seed)


def count_finished(plan: Sequence[PlannedEpisode], results: Sequence[EpisodeResult]) -> tuple[int, int]:
    """(num_success, num_trials) of the plan's episodes before the first one without a result.

    Later episodes that have already ended do not count yet; crashed ones are passed over.
    """
    found = {(result.task_id, result.init_state_id): result for result in results}
    num_success = num_trials = 0
    for planned in plan:
        result = found.get((planned.task_id, planned.init_state_id))
        if result is None:
            break
        if result.error is None:
            num_trials += 1
            num_success += result.success
    return num_success, num_trials


class Verdict(TypedDict):
    """verdict.json: on which side of the rule's rate the success rate is, and after how many episodes."""

    verdict: Literal["above", "below"]
    num_success: Natural
    num_trials: Count


def read_verdict(run_dir: Path) -> dict[str, Any] | None:
    """verdict.json of a run; None where no rule ended it.

    Raises:
        PlanError: it is damaged, or counts more successes than episodes.
    """
    path = run_dir / VERDICT_FILE
    if not path.is_file():
        return None
    verdict = read(path, Verdict, error=PlanError, remedy="remove it and resume the run")
    if verdict["num_success"] > verdict["num_trials"]:
        raise PlanError(
            f"{path}: entry 'num_success' is {verdict['num_success']}, expected at most 'num_trials', "
            f"{verdict['num_trials']}; remove it and resume the run"
        )
    return dict(verdict)


def until_decided(
    episodes: Generator[EpisodeResult],
    rule: StopWhenDecided | None,
    plan: Sequence[PlannedEpisode],
    done: Sequence[EpisodeResult],
    run_dir: Path,
) -> Iterator[EpisodeResult]:
    """Pass on results until the rule has its verdict; then write it to verdict.json and end the evaluation.

    Args:
        episodes: The running evaluation of `plan`; it is closed in the end.
        rule: None never ends it early; with a rule the plan has to be in random order.
        done: Episodes of earlier starts of the run.
        run_dir: Where verdict.json goes: {verdict, num_success, num_trials}, of the finished beginning of the plan.
    """
    results = list(done)
    with closing(episodes):
        while True:
            num_success, num_trials = count_finished(plan, results)
            verdict = None if rule is None else rule.verdict(num_success, num_trials)
            if verdict is not None:
                record = {"verdict": verdict, "num_success": num_success, "num_trials": num_trials}
                write(run_dir / VERDICT_FILE, record)
                return
            result = next(episodes, None)
            if result is None:
                return
            results.append(result)
            yield result
