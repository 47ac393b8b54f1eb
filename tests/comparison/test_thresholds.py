"""Thresholds by acceleration-induced failures: the bound, the choice, and what is refused."""

import pytest
from scipy.stats import binom

from rsd.comparison.candidates import ComparisonError, read_run
from rsd.comparison.thresholds import Arm, arms, enough, in_json, loosest, threshold_of
from rsd.errors import SettingError
from tests.comparison.run_folders import planned, provenance, write_run

CHUNKS = 10  # of an episode


def a_run(folder, row, threshold=None, exits=0, suite="point_mass", **plan):
    policy = {"decoding": "l1"}
    if threshold is not None:
        policy = {"decoding": "temporal", "options": {"gate": {"kind": "MeanLogProb", "threshold": threshold}}}
    plan = planned(num_tasks=1, num_trials=len(row), suite=suite, policy=policy, **plan)
    stats = {"num_chunks": CHUNKS, "early_exits": exits}
    return read_run(write_run(folder, {0: row}, plan=plan, made_with=provenance(), suite=suite, stats=stats))


@pytest.fixture
def runs(tmp_path):
    """Sixty episodes; the stricter threshold loses one that l1 solves, the looser one six, and it wins one."""
    return [
        a_run(tmp_path / "l1", "+" * 59 + "-"),
        a_run(tmp_path / "loose", "-" * 6 + "+" * 54, threshold=-0.5, exits=6),
        a_run(tmp_path / "strict", "-" + "+" * 59, threshold=-0.1, exits=2),
    ]


def test_each_threshold_has_its_failures_and_their_bound_the_strictest_first(runs):
    strict, loose = arms(runs, delta=0.1)
    assert (strict.threshold, strict.coverage, strict.num_failures, strict.num_episodes) == (-0.1, 0.2, 1, 60)
    assert (loose.threshold, loose.coverage, loose.num_failures, loose.num_episodes) == (-0.5, 0.6, 6, 60)
    assert binom.cdf(1, 60, strict.bound) == pytest.approx(0.1) and binom.cdf(6, 60, loose.bound) == pytest.approx(0.1)


def test_the_loosest_that_keeps_the_promise_is_taken_and_none_behind_one_that_fails(runs):
    found = arms(runs, delta=0.1)
    assert loosest(found, risk=0.1, delta=0.1).threshold == -0.1
    assert loosest(found, risk=0.2, delta=0.1).threshold == -0.5
    lucky = [Arm(-0.1, 0.1, 1, 60, 0.06), Arm(-0.2, 0.2, 9, 60, 0.3), Arm(-0.3, 0.3, 0, 60, 0.04)]
    assert loosest(lucky, risk=0.1, delta=0.1).threshold == -0.1
    told = in_json(found, found[0], runs, risk=0.1, delta=0.1)
    assert told["num_failures"] == 1 and told["suites"] == ["point_mass"] and told["init_states"] == [0, 59]
    assert told["curve"][1] == [-0.5, 0.6, 0.1, found[1].bound] and told["runs"] == ["l1", "loose", "strict"]


def test_suites_are_counted_together(runs, tmp_path):
    more = [
        a_run(tmp_path / f"other {name}", row, threshold, suite="other")
        for name, row, threshold in (("l1", "+" * 40, None), ("loose", "+" * 40, -0.5), ("strict", "+" * 40, -0.1))
    ]
    assert [(arm.num_failures, arm.num_episodes) for arm in arms([*runs, *more], delta=0.1)] == [(1, 100), (6, 100)]
    with pytest.raises(ComparisonError, match=r"threshold -0.5 and decoding l1 were not run on the same suites: other"):
        arms([*runs, more[0]], delta=0.1)


def test_it_says_how_many_episodes_would_do(runs):
    assert enough(0.05, 0.1) == 45 and 0.95**45 < 0.1 < 0.95**44  # when nothing fails
    with pytest.raises(
        SettingError, match=r"60 episodes are too few: a risk of 0.01 with delta 0.1 takes 230 at least"
    ):
        loosest(arms(runs, delta=0.1), risk=0.01, delta=0.1)
    number = enough(0.05, 0.1, share=1 / 60)
    assert binom.cdf(-(-number // 60), number, 0.05) <= 0.1
    with pytest.raises(SettingError, match=rf"strictest, -0.1, loses 1, so up to 6.3%; at this rate {number} episodes"):
        loosest(arms(runs, delta=0.1), risk=0.05, delta=0.1)
    with pytest.raises(SettingError, match=r"loses 6, .*; no number of episodes shows a risk of 0.08"):
        loosest(arms(runs[:2], delta=0.1), risk=0.08, delta=0.1)


def test_runs_that_show_nothing_are_refused(runs, tmp_path):
    def refused(match, *given):
        with pytest.raises(ComparisonError, match=match):
            arms(given, delta=0.1)

    refused("expected one of each at least", runs[0])
    refused(r"l1 and .*again are both of decoding l1 on point_mass", *runs, a_run(tmp_path / "again", "+"))
    refused(r"are not of the same episodes", runs[0], a_run(tmp_path / "few", "+" * 30, threshold=-0.1))
    refused(r"lacks 0 episodes and 1 crashed; finish", runs[0], a_run(tmp_path / "crash", "!" + "+" * 59, -0.1))
    refused(r"lacks 3 episodes and 0 crashed", runs[0], a_run(tmp_path / "gap", "+" * 57 + "   ", -0.1))
    blind = a_run(tmp_path / "blind", "+" * 60, -0.1, ablation="BlackPictures")
    refused(r"blind was run with BlackPictures", runs[0], blind)
    other = write_run(tmp_path / "x", {0: "+"}, plan=planned(num_tasks=1, num_trials=1, policy={"decoding": "exit"}))
    refused(r"x has no gate with a threshold and is not of decoding l1", runs[0], read_run(other))
    refused(r"old has no plan.json", runs[0], read_run(write_run(tmp_path / "old", {0: "+"})))
    assert threshold_of(a_run(tmp_path / "all", "+", threshold="-inf")) == float("-inf")
