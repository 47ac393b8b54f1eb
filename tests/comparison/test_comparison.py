"""comparison.json and comparison.html from run folders."""

import json
import re

import pytest

from rsd.comparison.candidates import ComparisonError, group_by_seed, read_run
from rsd.comparison.comparison import build_comparison
from rsd.comparison.comparison_page import render_comparison, side_by_side, trial_grid
from rsd.comparison.published import load_published
from rsd.evaluation.plan import Stopping
from tests.comparison.run_folders import planned, provenance, write_run
from tests.evaluation.folders import make_run
from tests.evaluation.policies import SeeingPolicy, StillPolicy

PUBLISHED = load_published()
STATS = {
    "num_chunks": 3, "target_passes": 6, "draft_passes": 3, "proposed_stages": 6, "accepted_stages": 3,
    "accept_counts": [1, 1, 1, 0], "accepted_tokens": [8, 4, 0], "checked_tokens": [9, 6, 0],
}  # fmt: skip


@pytest.fixture
def pair(tmp_path):
    """A solves 7 of 9 and B 6 of 8; on the 8 pairs A alone solves two, B alone one, and one pair has a crash."""
    first = write_run(
        tmp_path / "l1", {0: "+++-+", 1: "++-+"},
        plan=planned(policy={"decoding": "l1"}, num_tasks=3), made_with=provenance(),
        latency_ms={"llm": [4.0], "total": [5.0]}, stats={"num_chunks": 3},
    )  # fmt: skip
    second = write_run(
        tmp_path / "speculative", {0: "++-++", 1: "!+--", 2: "+"},
        plan=planned(policy={"decoding": "speculative"}, num_tasks=3), made_with=provenance(decoding="speculative"),
        latency_ms={"llm": [4.0], "verify": [2.0], "total": [6.5]}, stats=STATS,
    )  # fmt: skip
    return group_by_seed([read_run(first), read_run(second)])


def build(candidates, **arguments):
    return build_comparison(candidates, **{"margin": 0.02, "allow": (), "published": PUBLISHED} | arguments)


def test_pairs_are_counted_and_crashed_ones_left_out(pair):
    comparison = build(pair)
    assert json.loads(json.dumps(comparison)) == comparison
    (found,) = comparison["comparisons"]
    assert (found["reference"], found["other"]) == ("A", "B")
    names = ("both", "only_reference", "only_other", "neither", "num_pairs", "num_crashed", "num_unpaired")
    assert [found[name] for name in names] == [4, 2, 1, 1, 8, 1, [0, 1]]
    assert found["difference"] == -1 / 8 and found["low"] < -1 / 8 < found["high"]
    assert found["p_value"] == 1.0 and found["verdict"] == "undecided"
    assert [(task["task_id"], task["num_pairs"], task["only_reference"]) for task in found["tasks"]] == [
        (0, 5, 1),
        (1, 3, 1),
    ]
    assert [(e["task_id"], e["init_state_id"], e["solved_by"]) for e in found["discordant"]] == [
        (0, 2, "A"),
        (0, 3, "B"),
        (1, 3, "A"),
    ]
    assert [c["success"]["num_success"] for c in comparison["candidates"]] == [7, 6]
    assert [c["num_missing"] for c in comparison["candidates"]] == [6, 5]


def test_differences_of_configuration_and_provenance(pair):
    comparison = build(pair)
    assert comparison["configuration"] == [{"key": "policy.decoding", "values": ["l1", "speculative"]}]
    assert comparison["provenance"] == [{"key": "choices.decoding", "values": ["l1", "speculative"]}]


def test_the_page_needs_nothing_from_elsewhere_and_shows_every_part(pair):
    page = render_comparison(build(pair), pair)
    assert not re.search(r"https?://", page) and not re.search(r"<(script|link|img|iframe)\b", page)
    assert "reach &lt;goal&gt; 0" in page and "<goal>" not in page
    for words in (
        "undecided", "2 only A, 1 only B", "1 pair left out because an episode crashed", "0 episodes of A and 1 of B",
        "3 episodes that only one of A and B solved", "no tokens", "A is incomplete", "6.50", "88.9 · 66.7",
    ):  # fmt: skip
        assert words in page, words
    assert page.count("unit discordant") == 3
    assert "published" not in page  # a model without a published rate has no such section


def test_the_grid_stacks_the_candidates(pair):
    grid = trial_grid(pair)
    assert [row["task_id"] for row in grid] == [0, 1, 2]
    assert grid[1]["cells"][0] == {
        "title": "init state 0: A success, B error", "outcomes": ["success", "error"], "discordant": False
    }  # fmt: skip
    assert grid[0]["cells"][2]["discordant"] and grid[2]["cells"][0]["outcomes"] == ["missing", "success"]
    assert [len(row["cells"]) for row in grid] == [5, 5, 5] and grid[2]["cells"][4]["outcomes"] == ["missing"] * 2


def test_pairs_of_which_every_one_crashed_decide_nothing(tmp_path):
    runs = [write_run(tmp_path / name, {0: row}) for name, row in (("a", "+!"), ("b", "!+"))]
    candidates = group_by_seed([read_run(run) for run in runs])
    comparison = build(candidates)
    (found,) = comparison["comparisons"]
    assert (found["num_pairs"], found["num_crashed"], found["difference"]) == (0, 2, None)
    assert (found["verdict"], found["p_value"], found["tasks"]) == ("undecided", 1.0, [])
    assert "2 pairs left out" in render_comparison(comparison, candidates)


def test_latencies_of_different_devices_are_not_shown(tmp_path):
    runs = [
        write_run(tmp_path / name, {0: "+"}, made_with=provenance(device=device), latency_ms={"total": [7.25]})
        for name, device in (("a", "NVIDIA H200"), ("b", "cpu (2 threads)"))
    ]
    candidates = group_by_seed([read_run(run) for run in runs])
    comparison = build(candidates)
    assert comparison["latency_note"] == (
        "Latencies are not comparable: the devices are not the same (A: NVIDIA H200; B: cpu (2 threads))."
    )
    assert "7.25" not in render_comparison(comparison, candidates)


def test_latencies_of_different_numbers_of_workers_are_not_shown(tmp_path):
    runs = [write_run(tmp_path / str(n), {0: "+"}, plan=planned(num_workers=n), made_with=provenance()) for n in (1, 4)]
    comparison = build(group_by_seed([read_run(run) for run in runs]))
    assert comparison["latency_note"] == "Latencies are not comparable: numbers of worker processes differ ([1, 4])."


def test_runs_without_plan_and_provenance_say_so(tmp_path):
    candidates = group_by_seed([read_run(write_run(tmp_path / name, {0: "+-"})) for name in "ab"])
    comparison = build(candidates)
    assert comparison["configuration"] is None and comparison["provenance"] is None
    page = render_comparison(comparison, candidates)
    assert page.count("Not recorded for every run") == 2 and "unknown" in comparison["latency_note"]
    assert "B and A agree on every episode" in page


def test_seeds_are_summarised_and_shown(tmp_path):
    def run(decoding, seed, row):
        folder = tmp_path / f"{decoding}{seed}"
        return read_run(write_run(folder, {0: row}, plan=planned(seed=seed, policy={"decoding": decoding})))

    candidates = group_by_seed(
        [run("l1", 7, "++++"), run("l1", 8, "+++-"), run("parallel", 7, "+++-"), run("parallel", 8, "+++-")]
    )
    comparison = build(candidates)
    assert comparison["candidates"][0]["seeds"]["mean"] == 0.875
    assert comparison["comparisons"][0]["num_pairs"] == 8
    assert [e["seed"] for e in comparison["comparisons"][0]["discordant"]] == [7]
    page = render_comparison(comparison, candidates)
    assert "<h2>Seeds</h2>" in page and "init state 3, seed 8: A failure, B failure" in page


def test_a_published_model_has_its_verdict_and_the_settings_to_check(tmp_path):
    made_with = provenance(mujoco="3.3.0")
    plan = planned(policy={"model": "oft_spatial"}, suite="libero_spatial", num_trials=40)
    runs = [
        write_run(tmp_path / name, {0: row}, suite="libero_spatial", plan=plan, made_with=made_with)
        for name, row in (("good", "+" * 40), ("bad", "+-" * 20))
    ]
    candidates = group_by_seed([read_run(run) for run in runs])
    comparison = build(candidates)
    good, bad = (candidate["published"] for candidate in comparison["candidates"])
    assert (good["verdict"], bad["verdict"]) == ("inside", "below")
    differing = {check["setting"] for check in bad["checks"] if check["status"] == "differs"}
    assert differing == {"versions.mujoco", "protocol.name", "max_steps", "num_trials", "num_tasks"}
    page = render_comparison(comparison, candidates)
    assert (
        "arXiv 2502.19645" in page
        and f"5 of {len(bad['checks'])} settings differ" in page
        and "Look at a video" in page
    )


def test_a_run_with_a_stopping_rule_is_marked(tmp_path):
    rules = (None, Stopping("StopWhenDecided", {"rate": 0.9}))
    runs = [write_run(tmp_path / str(n), {0: "+"}, plan=planned(stopping=rule)) for n, rule in enumerate(rules)]
    (note,) = build(group_by_seed([read_run(run) for run in runs]))["notes"]
    assert note.startswith("B ran with a stopping rule: intervals and p-values")


def test_every_other_candidate_is_held_against_the_first(tmp_path):
    runs = [read_run(write_run(tmp_path / name, {0: row})) for name, row in (("a", "++"), ("b", "+-"), ("c", "--"))]
    comparison = build(group_by_seed(runs))
    assert [(pair["reference"], pair["other"]) for pair in comparison["comparisons"]] == [("A", "B"), ("A", "C")]
    with pytest.raises(ComparisonError, match=r"A \(a\) and D \(d\)"):
        build(group_by_seed([*runs, read_run(write_run(tmp_path / "d", {5: "+"}))]))


def test_a_margin_in_points_is_refused(pair):
    with pytest.raises(ValueError, match=r"the margin is 2, expected a share"):
        build(pair, margin=2)


def test_videos_of_the_same_episode_stand_side_by_side_those_that_one_failed_first(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path / "a", SeeingPolicy(num_open_loop_steps=3), num_trials=2, save_videos=2)
    make_run(tmp_path / "b", StillPolicy(), num_trials=2, save_videos=1)
    candidates = group_by_seed([read_run(tmp_path / name) for name in "ab"])
    (first, *_) = filmed = side_by_side(candidates)
    assert len(filmed) == 3  # of each task the episode that both have a video of
    assert [(video["letter"], video["outcome"]) for video in first["videos"]] == [("A", "success"), ("B", "failure")]
    page = render_comparison(build(candidates), candidates)
    assert page.count('src="data:video/mp4;base64,') == 6 and page.count("play both</button>") == 3
    (tmp_path / "b" / "videos").rename(tmp_path / "b" / "gone")
    assert side_by_side(candidates) == []


def test_the_page_says_that_both_saw_the_same(tmp_path):
    for name, policy in (("a", SeeingPolicy(num_open_loop_steps=3)), ("b", StillPolicy())):
        make_run(tmp_path / name, policy, num_trials=1)
    notes = build(group_by_seed([read_run(tmp_path / name) for name in "ab"]))["notes"]
    assert "A and B began with the same init states, first pictures and proprio in 3 pairs." in notes
