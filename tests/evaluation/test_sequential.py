"""The stopping rule keeps its error rate when one looks after every episode; seeded simulations of whole runs."""

import functools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.integrate import quad

from rsd.evaluation.evaluate import Recording, evaluate, resume_results
from rsd.evaluation.plan import PlannedEpisode, plan_episodes
from rsd.evaluation.sequential import (
    VERDICT_FILE,
    StopWhenDecided,
    anytime_interval,
    count_finished,
    in_random_order,
    log_evidence_above,
    until_decided,
)
from rsd.record import read_json
from rsd.types import EpisodeResult
from tests.evaluation.policies import SeeingPolicy
from tests.fakes import PointMassEnv, point_mass_tasks

CONF = Path(__file__).parents[2] / "conf"
RUNS, EPISODES, ALPHA = 4000, 500, 0.05
THRESHOLD = np.log(2 / ALPHA)


@functools.cache
def evidence(rate: float) -> np.ndarray:
    """[successes, trials]: a table, because simulations ask for the same counts again and again."""
    count = np.arange(EPISODES + 1)
    return log_evidence_above(np.minimum(count[:, None], count), count, rate)


def verdicts(outcomes: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """First look that says "above", and "below", [runs]; the number of episodes when none does.

    Args:
        outcomes: [runs, episodes], bool.
    """
    successes = outcomes.cumsum(axis=1)
    trials = np.arange(1, outcomes.shape[1] + 1)[None]
    above = evidence(rate)[successes, trials] >= THRESHOLD
    below = evidence(1 - rate)[trials - successes, trials] >= THRESHOLD
    return tuple(np.where(hit.any(1), hit.argmax(1), outcomes.shape[1]) for hit in (above, below))


def coins(rate: float, seed: int = 0, runs: int = RUNS) -> np.ndarray:
    return np.random.default_rng(seed).random((runs, EPISODES)) < rate


def test_evidence_is_the_averaged_likelihood_over_the_likelihood_at_the_threshold():
    integral, _ = quad(lambda p: p**17 * (1 - p) ** 3, 0.6, 1)
    expected = np.log(integral / 0.4 / (0.6**17 * 0.4**3))
    assert log_evidence_above(17, 20, 0.6) == pytest.approx(expected)
    assert log_evidence_above(0, 0, 0.6) == 0.0


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.97])
def test_looking_after_every_episode_errs_at_most_alpha_times_at_the_threshold(rate):
    above, below = verdicts(coins(rate), rate)
    wrong = np.mean((above < EPISODES) | (below < EPISODES))
    assert 0.002 < wrong <= ALPHA  # it does err, so the test can fail


def test_looking_at_a_fixed_sample_test_after_every_episode_errs_far_more_often():
    """Why the rule exists: Wilson's interval, consulted after each of 500 episodes."""
    outcomes = coins(0.9, runs=1000)
    n = np.arange(1, EPISODES + 1)[None]
    score = (outcomes.cumsum(1) - 0.9 * n) / np.sqrt(n * 0.9 * 0.1)
    assert np.mean((np.abs(score) > 1.96)[:, 20:].any(axis=1)) > 0.25


def test_it_stops_early_when_the_rate_is_clearly_on_one_side():
    above, below = verdicts(coins(0.97), 0.9)
    assert np.mean(above < EPISODES) > 0.98 and np.mean(below < above) < 0.01
    assert np.median(above) < 200
    above, below = verdicts(coins(0.8), 0.9)
    assert np.mean(below < EPISODES) > 0.97 and np.median(below) < 120


def task_by_task(rates: np.ndarray, seed: int) -> np.ndarray:
    """Outcomes of runs of the tasks in their order, EPISODES / tasks episodes each, [runs, episodes]."""
    random = np.random.default_rng(seed)
    return random.random((RUNS // 4, EPISODES)) < np.repeat(rates, EPISODES // len(rates))[None]


def test_tasks_of_very_different_difficulty_need_the_random_order():
    rates = np.array([1.0] * 5 + [0.5] * 2 + [0.0] * 3)  # mean 0.6
    outcomes = task_by_task(rates, seed=1)
    above, _ = verdicts(outcomes, 0.6)
    assert np.mean(above < EPISODES) > 0.99  # the first five tasks decide, wrongly
    plan = [PlannedEpisode(task, trial, 0, False) for task in range(10) for trial in range(50)]
    for run, row in enumerate(outcomes):
        order = in_random_order(plan, seed=run)
        outcomes[run] = row[[episode.task_id * 50 + episode.init_state_id for episode in order]]
    above, below = verdicts(outcomes, 0.6)
    assert np.mean((above < EPISODES) | (below < EPISODES)) <= ALPHA


def test_verdicts():
    rule = StopWhenDecided(rate=0.9, alpha=0.05, min_episodes=20)
    assert rule.verdict(60, 60) == "above" and rule.verdict(40, 40) is None
    assert rule.verdict(10, 20) == "below" and rule.verdict(0, 19) is None and rule.verdict(0, 0) is None


def test_the_configuration_group_makes_the_rule():
    rule = instantiate(OmegaConf.load(CONF / "stopping" / "decided.yaml"), rate=0.5)
    assert (rule.rate, rule.alpha, rule.min_episodes) == (0.5, 0.05, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 90}, r"stopping\.rate is 90, expected a share between 0 and 1"),
        ({"rate": 0.9, "alpha": 5}, r"stopping\.alpha is 5, expected a share"),
        ({"rate": 0.9, "min_episodes": -1}, r"stopping\.min_episodes is -1, expected 0 or more"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StopWhenDecided(**arguments)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match=r"num_success is 3, expected 0\.\.2"):
        StopWhenDecided(rate=0.9).verdict(3, 2)


def test_equal_policies_are_told_apart_at_most_alpha_times():
    above, below = verdicts(coins(0.5, seed=3)[:, :100], 0.5)
    assert 0.002 < np.mean((above < 100) | (below < 100)) <= ALPHA


def test_the_anytime_interval_covers_the_rate_at_all_looks_at_once():
    interval = functools.cache(anytime_interval)
    outcomes = coins(0.8, seed=5, runs=1000)[:, :120].cumsum(axis=1)
    misses = 0
    for run in outcomes.tolist():
        bounds = [interval(k, n) for n, k in enumerate(run, start=1)]
        misses += any(not low <= 0.8 <= high for low, high in bounds)
    assert 0 < misses <= ALPHA * len(outcomes)


def test_the_anytime_interval_at_the_edges():
    assert anytime_interval(0, 0) == (0.0, 1.0)
    low, high = anytime_interval(10, 10)
    assert high == 1.0 and low == pytest.approx((0.05 / 11) ** 0.1)  # B(11, 1) = 1/11 = 0.05 / low^10, the other way
    assert anytime_interval(0, 10) == pytest.approx((0.0, 1 - low))


def test_the_random_order_has_every_episode_once_and_every_task_in_every_round():
    plan = [PlannedEpisode(task, trial, 7, record=trial == 0) for task in range(4) for trial in range(5)]
    order = in_random_order(plan, seed=3)
    assert sorted(order, key=lambda e: (e.task_id, e.init_state_id)) == plan and order != plan
    for start in range(0, 20, 4):
        assert {episode.task_id for episode in order[start : start + 4]} == set(range(4))
    assert in_random_order(plan, seed=3) == order != in_random_order(plan, seed=4)
    assert in_random_order([], seed=0) == []


def test_only_the_finished_beginning_of_the_plan_counts():
    plan = [PlannedEpisode(0, trial, 0, False) for trial in range(5)]

    def result(trial: int, success: bool, error: str | None = None) -> EpisodeResult:
        return EpisodeResult("s", 0, "do it", trial, 0, success, 10, error=error)

    assert count_finished(plan, []) == (0, 0)
    found = [result(3, True), result(0, True), result(1, False, error="E: x"), result(2, False)]
    assert count_finished(plan, found[:2]) == (1, 1)  # episode 3 has overtaken 1 and 2: it would count too soon
    assert count_finished(plan, found) == (2, 3)


def test_a_run_ends_when_the_rule_has_its_verdict_and_a_resume_does_not_go_on(tmp_path):
    plan = in_random_order(
        plan_episodes(num_tasks=3, num_init_states=5, tasks=None, num_trials=5, seed=7, save_videos=0), seed=7
    )
    rule = StopWhenDecided(rate=0.3, alpha=0.2)  # five successes in a row are enough
    recording = Recording(tmp_path)

    def start():
        done = resume_results(tmp_path, plan, point_mass_tasks(num_tasks=3))
        episodes = evaluate(
            make_env=partial(PointMassEnv, image_size=64),
            policy=SeeingPolicy(),
            plan=plan,
            done=done,
            recording=recording,
        )
        return list(until_decided(episodes, rule, plan, done, tmp_path))

    results = start()
    assert rule.verdict(len(results), len(results)) == "above" and len(results) < 15
    assert rule.verdict(len(results) - 1, len(results) - 1) is None
    count = len(results)
    expected = {"verdict": "above", "num_success": count, "num_trials": count}
    assert read_json(tmp_path / VERDICT_FILE) == expected
    assert start() == []
