"""Which runs belong together, which pairs they form, and what is refused."""

import pytest

from rsd.comparison.candidates import (
    ANY_SEED,
    ComparisonError,
    check_comparable,
    group_by_seed,
    read_run,
    shared_episodes,
)
from rsd.evaluation.results import ResultsError
from tests.comparison.run_folders import planned, provenance, write_run

OUTCOMES = {0: "++-", 1: "+-+"}


def two(tmp_path, first: dict, second: dict):
    """Two candidates from arguments of write_run."""
    runs = [
        write_run(tmp_path / name, given.pop("outcomes", OUTCOMES), **given)
        for name, given in (("first", dict(first)), ("second", dict(second)))
    ]
    return group_by_seed([read_run(run) for run in runs])


def test_single_runs_are_paired_by_task_and_init_state_whatever_their_seeds(tmp_path):
    first, second = two(
        tmp_path,
        {"plan": planned(seed=7, num_tasks=3, policy={"decoding": "l1"})},
        {"plan": planned(seed=8, num_tasks=3, policy={"decoding": "speculative"}), "outcomes": {1: "--!", 2: "+"}},
    )
    check_comparable(first, second)
    pairs = shared_episodes(first, second)
    assert [key[1:] for key, _, _ in pairs] == [(1, 0, ANY_SEED), (1, 1, ANY_SEED), (1, 2, ANY_SEED)]
    assert [(a.success, b.success) for _, a, b in pairs] == [(True, False), (False, False), (True, False)]


def test_runs_that_differ_in_their_seed_only_become_one_candidate_paired_by_seed(tmp_path):
    def run(name, seed, decoding):
        return read_run(
            write_run(
                tmp_path / name, OUTCOMES, plan=planned(seed=seed, policy={"decoding": decoding}, num_workers=seed)
            )
        )

    runs = [run("a7", 7, "l1"), run("b8", 8, "parallel"), run("a8", 8, "l1"), run("b9", 9, "parallel")]
    first, second = group_by_seed(runs)
    assert (first.letter, first.name) == ("A", "a7 and 1 more seed") and [r.seed for r in first.runs] == [7, 8]
    assert (second.letter, second.name) == ("B", "b8 and 1 more seed")
    assert {key[3] for key, _, _ in shared_episodes(first, second)} == {8}


def test_seeds_alone_are_compared_with_each_other(tmp_path):
    first, second = two(tmp_path, {"plan": planned(seed=7)}, {"plan": planned(seed=8)})
    assert [first.name, second.name] == ["first", "second"] and len(shared_episodes(first, second)) == 6


def test_a_repetition_with_the_same_seed_and_runs_without_a_plan_stay_apart(tmp_path):
    assert len(two(tmp_path, {"plan": planned()}, {"plan": planned()})) == 2
    (tmp_path / "more").mkdir()
    first, second = two(tmp_path / "more", {}, {})
    assert first.runs[0].seed is None and first.runs[0].num_missing is None
    assert check_comparable(first, second) == []  # nothing is known to differ


def test_versions_come_from_results_and_from_every_start(tmp_path):
    made_with = provenance(mujoco="3.2.3")
    made_with["starts"].append({"packages": {"mujoco": "3.2.4"}, "simulator": {"mujoco": "3.2.5"}})
    run = read_run(write_run(tmp_path / "run", OUTCOMES, made_with=made_with, versions={"mujoco": "3.2.6"}))
    assert run.versions("mujoco") == ["3.2.3", "3.2.4", "3.2.5", "3.2.6"] and run.versions("robosuite") == []


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"suite": "libero_goal"}, {"suite": "libero_10"}, r"suite libero_goal and libero_10"),
        ({"protocol": "openvla-1"}, {"protocol": "lerobot-1"}, r"protocol openvla-1 and lerobot-1"),
        (
            {"plan": planned()},
            {"plan": planned(max_steps=80, environment={"image_size": 128})},
            r"their environments differ in protocol\.image_size: \(absent\) → 128; tasks\.0\.max_steps: 60 → 80; tasks",
        ),
        (
            {"made_with": provenance(mujoco="3.2.3")},
            {"made_with": provenance(mujoco="3.3.0")},
            r"mujoco version 3\.2\.3 and 3\.3\.0; scores are not comparable, --allow-version mujoco",
        ),
        ({"versions": {"robosuite": "1.4.0"}}, {"versions": {"robosuite": "1.5.1"}}, r"robosuite version 1\.4\.0 and"),
        (
            {},
            {"outcomes": {4: " ++"}},
            r"share no episode: A has tasks \[0, 1\], init states 0\.\.2, seeds \[None\]; "
            r"B has tasks \[4\], init states 1\.\.2",
        ),
    ],
)
def test_what_was_measured_differently_is_refused(tmp_path, first, second, message):
    with pytest.raises(ComparisonError, match=r"A \(first\) and B \(second\).*" + message):
        check_comparable(*two(tmp_path, first, second))


def test_a_version_can_be_allowed_by_name(tmp_path):
    pair = two(tmp_path, {"versions": {"mujoco": "3.2.3"}}, {"versions": {"mujoco": "3.3.0"}})
    assert check_comparable(*pair, allow=["mujoco"]) == [
        "A (first) and B (second): mujoco 3.2.3 and 3.3.0, allowed by name"
    ]
    with pytest.raises(ComparisonError, match="mujoco version"):
        check_comparable(*pair, allow=["robosuite"])
    with pytest.raises(ComparisonError, match=r"\['numpy'\] are allowed to differ, but change no score; known: \['muj"):
        check_comparable(*pair, allow=["mujoco", "numpy"])


def test_runs_of_other_tasks_are_compared_on_those_that_both_have(tmp_path):
    first, second = two(
        tmp_path, {"plan": planned(num_tasks=2)}, {"plan": planned(num_tasks=1), "outcomes": {0: "+++"}}
    )
    assert check_comparable(first, second) == [] and len(shared_episodes(first, second)) == 3


def test_allowing_a_version_that_is_equal_says_nothing(tmp_path):
    pair = two(tmp_path, {"versions": {"mujoco": "3.2.3"}}, {"versions": {"mujoco": "3.2.3"}})
    assert check_comparable(*pair, allow=["mujoco"]) == []


def test_one_run_is_not_a_comparison(tmp_path):
    run = read_run(write_run(tmp_path / "run", OUTCOMES))
    with pytest.raises(ComparisonError, match="got 1 run, expected two or more"):
        group_by_seed([run])
    with pytest.raises(ComparisonError, match="given twice"):
        group_by_seed([run, run])


def test_a_folder_without_episodes_is_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"results\.jsonl does not exist; give the folders of evaluations"):
        read_run(tmp_path)
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(ResultsError, match=r"results\.jsonl holds no episode yet"):
        read_run(tmp_path)
