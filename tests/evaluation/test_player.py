"""What the episode player is given."""

import json

import pytest

from rsd.evaluation import player
from rsd.evaluation.player import chunk_figures, recorded_episodes
from rsd.evaluation.report import write_report
from rsd.evaluation.results import ResultsError
from tests.evaluation.folders import make_run, plan_of
from tests.evaluation.policies import RaisingPolicy, SeeingPolicy, StillPolicy
from tests.fakes import point_mass_tasks

NAMES = point_mass_tasks(num_tasks=1)[0].action_names


def recorded(report, run_dir):
    return recorded_episodes(report, run_dir, plan_of(point_mass_tasks(num_tasks=3)))


def chunk(step, frame, num_executed, *, draft=None, stats=None):
    """A chunk of two steps: at rest, then gripper closed."""
    actions = [[0.0] * 6 + [-1.0], [0.0] * 6 + [1.0]]
    return {
        "step": step,
        "frame": frame,
        "num_executed": num_executed,
        "actions": actions,
        "draft_actions": draft,
        "stats": stats or {},
        "latency_ms": {"backbone": 3.0, "total": 4.0},
    }


def test_figures_of_a_speculative_trace():
    draft = [[0.1, -0.3, 0.2, 9.0, 9.0, 9.0, -1.0], [0.0] * 6 + [-1.0]]
    stats = {"target_passes": 2, "draft_passes": 1, "accept_counts": [0, 1, 0, 0]}
    trace = {"every_step": False, "chunks": [chunk(0, 0, 2, draft=draft, stats=stats), chunk(2, 1, 1)]}
    first, second = chunk_figures(trace, NAMES)
    assert first == {
        "step": 0,
        "num_steps": 2,
        "frame": 0,
        "num_frames": 1,
        "accepted": 1,
        "target_passes": 2,
        "draft_passes": 1,
        "ended": None,  # the trace does not say
        "base_layers": None,
        "depth": None,
        "bound": None,
        "difference": 0.3,  # rotations do not count
        "gripper_steps": 1,
        "latency_ms": {"backbone": 3.0, "total": 4.0},
    }
    for name in ("accepted", "target_passes", "draft_passes", "difference", "gripper_steps"):
        assert second[name] is None
    assert second["num_frames"] == 1 and second["num_steps"] == 1


def test_without_the_names_of_action_dims_nothing_is_held_against_the_draft():
    only_chunk = chunk(0, 0, 2, draft=[[0.1] * 7, [0.0] * 7])
    (only,) = chunk_figures({"every_step": False, "chunks": [only_chunk]}, ())
    assert (only["difference"], only["gripper_steps"]) == (None, None)


def test_a_chunk_that_ended_at_the_draft_is_not_held_against_itself():
    counters = {"target_passes": 0, "draft_passes": 2, "accept_counts": [0, 0, 0, 0]}
    early = chunk(0, 0, 2, draft=chunk(0, 0, 2)["actions"], stats=counters | {"early_exits": 1, "base_layers": 3})
    whole = chunk(2, 1, 2, draft=[[0.1] * 7] * 2, stats=counters | {"early_exits": 0, "base_layers": 6})
    first, second = chunk_figures({"every_step": False, "chunks": [early | {"depth": 2}, whole | {"depth": 0}]}, NAMES)
    names = ("ended", "base_layers", "depth", "difference", "gripper_steps", "draft_passes", "accepted")
    assert [first[name] for name in names] == ["draft", 3, 2, None, None, 2, None]
    assert [second[name] for name in names] == ["whole", 6, 0, 0.1, 1, 2, None]


def test_idle_counters_are_no_passes():
    stats = {"target_passes": 0, "draft_passes": 0, "accept_counts": [], "base_layers": 6}
    (only,) = chunk_figures({"every_step": False, "chunks": [chunk(0, 0, 2, stats=stats)]}, NAMES)
    assert only["target_passes"] is None and only["draft_passes"] is None


def test_a_decoding_with_stages_but_no_draft_accepts_nothing():
    stats = {"target_passes": 3, "draft_passes": 0, "accept_counts": [0, 0, 0, 0]}
    (only,) = chunk_figures({"every_step": False, "chunks": [chunk(0, 0, 2, stats=stats)]}, NAMES)
    assert only["accepted"] is None and only["target_passes"] == 3


def test_of_a_bound_the_largest_over_action_dims_is_shown():
    bounded = chunk(0, 0, 2) | {"bound": [0.02, 0.05, 0.0]}
    figures = chunk_figures({"every_step": False, "chunks": [bounded, chunk(2, 1, 1) | {"bound": None}]}, NAMES)
    assert [figure["bound"] for figure in figures] == [0.05, None]


def test_frames_of_a_video_of_every_step():
    figures = chunk_figures({"every_step": True, "chunks": [chunk(0, 0, 2), chunk(2, 2, 1)]}, NAMES)
    assert [figure["num_frames"] for figure in figures] == [2, 1]


def run(tmp_path, policy, **options):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, policy, **options)
    return write_report(tmp_path)


def test_recorded_episodes_have_the_chunks_that_were_predicted(tmp_path):
    report = run(tmp_path, SeeingPolicy(), num_trials=2, save_videos=1)
    episodes = recorded(report, tmp_path)
    assert [(episode["task_id"], episode["init_state_id"]) for episode in episodes] == [(0, 0), (1, 0), (2, 0)]
    for episode in episodes:
        trace = episode["trace"]
        assert trace["fps"] == 2.5 and trace["parts"] == ["vision", "llm", "total"] and episode["note"] is None
        chunks = [dict(zip(trace["columns"], row, strict=True)) for row in trace["rows"]]
        assert sum(chunk["num_steps"] for chunk in chunks) == episode["num_steps"]
        assert [chunk["frame"] for chunk in chunks] == list(range(len(chunks)))
        assert all(chunk["latency_ms"][2] > chunk["latency_ms"][0] > 0 for chunk in chunks)
        assert all(chunk["accepted"] in (0, 1, 2) and 0 < chunk["difference"] < 0.3 for chunk in chunks)


def test_outcomes(tmp_path):
    report = run(tmp_path, RaisingPolicy(), num_trials=2, save_videos=2)
    assert {episode["outcome"] for episode in recorded(report, tmp_path)} == {"success", "crashed"}
    (tmp_path / "still").mkdir()
    report = run(tmp_path / "still", StillPolicy(), num_trials=1, save_videos=1)
    assert {episode["outcome"] for episode in recorded(report, tmp_path / "still")} == {"failure"}


def test_files_that_have_gone(tmp_path):
    report = run(tmp_path, SeeingPolicy(), num_trials=1, save_videos=1)
    (tmp_path / report["episodes"][0]["video"]).unlink()
    (tmp_path / report["episodes"][1]["trace"]).unlink()
    without_trace, whole = recorded(report, tmp_path)
    assert without_trace["task_id"] == 1 and without_trace["trace"] is None and whole["trace"] is not None
    assert without_trace["note"].startswith("No trace of this episode's chunks is there") and whole["note"] is None


def embedded(report, run_dir):
    """(task, init state) to whether (trace, video) are in the page."""
    return {
        (e["task_id"], e["init_state_id"]): (e["trace"] is not None, e["source"].startswith("data:video/mp4;base64,"))
        for e in recorded(report, run_dir)
    }


def test_what_does_not_fit_is_linked_second_trials_first(tmp_path, monkeypatch):
    report = run(tmp_path, SeeingPolicy(), num_trials=2, save_videos=2)
    both = recorded(report, tmp_path)
    traces = {(e["task_id"], e["init_state_id"]): len(json.dumps(e["trace"])) for e in both}
    videos = {(e["task_id"], e["init_state_id"]): len(e["source"]) for e in both}  # not less than the file in base64
    first_trials = sum(videos[task, 0] for task in range(3))
    monkeypatch.setattr(player, "EMBEDDED_TOTAL_BYTES", sum(traces.values()) + first_trials)
    assert embedded(report, tmp_path) == {(task, trial): (True, trial == 0) for task in range(3) for trial in range(2)}
    monkeypatch.setattr(player, "EMBEDDED_TOTAL_BYTES", sum(traces[task, 0] for task in range(3)))
    assert embedded(report, tmp_path) == {(task, trial): (trial == 0, False) for task in range(3) for trial in range(2)}
    second = recorded(report, tmp_path)[1]
    assert second["note"] == "The page is full; the chunks are in traces/task00_init01.json."
    assert second["source"] == "videos/task00_init01.mp4"


def test_a_large_video_is_linked(tmp_path, monkeypatch):
    report = run(tmp_path, SeeingPolicy(), num_trials=1, save_videos=1)
    monkeypatch.setattr(player, "EMBEDDED_VIDEO_BYTES", 10)
    assert embedded(report, tmp_path) == {(task, 0): (True, False) for task in range(3)}


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"fps": 2.5, "every_step": False, "chunks": [{}]})])
def test_a_damaged_trace(tmp_path, text):
    report = run(tmp_path, SeeingPolicy(), num_trials=1, save_videos=1)
    (tmp_path / report["episodes"][0]["trace"]).write_text(text)
    with pytest.raises(ResultsError, match=r"task00_init00\.json is not a trace of an episode: .*; remove the file"):
        recorded(report, tmp_path)


def test_failures_come_first_in_the_player(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, SeeingPolicy(num_open_loop_steps=3), num_trials=1, save_videos=1)
    report = write_report(tmp_path)
    report["episodes"][1] |= {"success": False}
    report["episodes"][2] |= {"success": False, "error": "RuntimeError: made up"}
    outcomes = [(one["task_id"], one["outcome"]) for one in recorded(report, tmp_path)]
    assert outcomes == [(2, "crashed"), (1, "failure"), (0, "success")]
