"""What the episode player is given."""

import json

import pytest

from rsd.evaluation import player
from rsd.evaluation.player import chunk_figures, recorded_episodes
from rsd.evaluation.report import write_report
from rsd.evaluation.results import ResultsError
from tests.evaluation.folders import make_run
from tests.evaluation.policies import RaisingPolicy, SeeingPolicy, StillPolicy


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
    first, second = chunk_figures(trace)
    assert first == {
        "step": 0,
        "num_steps": 2,
        "frame": 0,
        "num_frames": 1,
        "accepted": 1,
        "target_passes": 2,
        "draft_passes": 1,
        "difference": 0.3,  # rotations do not count
        "gripper_steps": 1,
        "latency_ms": {"backbone": 3.0, "total": 4.0},
    }
    for name in ("accepted", "target_passes", "draft_passes", "difference", "gripper_steps"):
        assert second[name] is None
    assert second["num_frames"] == 1 and second["num_steps"] == 1


def test_a_decoding_with_stages_but_no_draft_accepts_nothing():
    stats = {"target_passes": 3, "draft_passes": 0, "accept_counts": [0, 0, 0, 0]}
    (only,) = chunk_figures({"every_step": False, "chunks": [chunk(0, 0, 2, stats=stats)]})
    assert only["accepted"] is None and only["target_passes"] == 3


def test_frames_of_a_video_of_every_step():
    figures = chunk_figures({"every_step": True, "chunks": [chunk(0, 0, 2), chunk(2, 2, 1)]})
    assert [figure["num_frames"] for figure in figures] == [2, 1]


def run(tmp_path, policy, **options):
    pytest.importorskip("imageio_ffmpeg")
    make_run(tmp_path, policy, **options)
    return write_report(tmp_path)


def test_recorded_episodes_have_the_chunks_that_were_predicted(tmp_path):
    report = run(tmp_path, SeeingPolicy(), num_trials=2, save_videos=1)
    episodes = recorded_episodes(report, tmp_path)
    assert [(episode["task_id"], episode["init_state_id"]) for episode in episodes] == [(0, 0), (1, 0), (2, 0)]
    for episode in episodes:
        chunks = episode["chunks"]
        assert sum(chunk["num_steps"] for chunk in chunks) == episode["num_steps"]
        assert [chunk["frame"] for chunk in chunks] == list(range(len(chunks)))
        assert all(chunk["accepted"] in (0, 1, 2) and 0 < chunk["difference"] < 0.3 for chunk in chunks)


def test_outcomes(tmp_path):
    report = run(tmp_path, RaisingPolicy(), num_trials=2, save_videos=2)
    assert {episode["outcome"] for episode in recorded_episodes(report, tmp_path)} == {"success", "crashed"}
    (tmp_path / "still").mkdir()
    report = run(tmp_path / "still", StillPolicy(), num_trials=1, save_videos=1)
    assert {episode["outcome"] for episode in recorded_episodes(report, tmp_path / "still")} == {"failure"}


def test_files_that_have_gone(tmp_path):
    report = run(tmp_path, SeeingPolicy(), num_trials=1, save_videos=1)
    (tmp_path / report["episodes"][0]["video"]).unlink()
    (tmp_path / report["episodes"][1]["trace"]).unlink()
    without_trace, whole = recorded_episodes(report, tmp_path)
    assert without_trace["task_id"] == 1 and without_trace["chunks"] is None and whole["chunks"]


def test_videos_that_do_not_fit_are_linked_second_trials_first(tmp_path, monkeypatch):
    report = run(tmp_path, SeeingPolicy(), num_trials=2, save_videos=2)
    sizes = {(e["task_id"], e["init_state_id"]): (tmp_path / e["video"]).stat().st_size for e in report["episodes"]}
    monkeypatch.setattr(player, "EMBEDDED_TOTAL_BYTES", sum(sizes[task, 0] for task in range(3)))
    embedded = {
        (episode["task_id"], episode["init_state_id"]): episode["source"].startswith("data:video/mp4;base64,")
        for episode in recorded_episodes(report, tmp_path)
    }
    assert embedded == {(task, trial): trial == 0 for task in range(3) for trial in range(2)}
    monkeypatch.setattr(player, "EMBEDDED_VIDEO_BYTES", 10)
    assert recorded_episodes(report, tmp_path)[0]["source"] == "videos/task00_init00.mp4"


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"fps": 2.5, "every_step": False, "chunks": [{}]})])
def test_a_damaged_trace(tmp_path, text):
    report = run(tmp_path, SeeingPolicy(), num_trials=1, save_videos=1)
    (tmp_path / report["episodes"][0]["trace"]).write_text(text)
    with pytest.raises(ResultsError, match=r"task00_init00\.json is not a trace of an episode: .*; remove the file"):
        recorded_episodes(report, tmp_path)
