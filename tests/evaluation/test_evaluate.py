"""The loop: plan, crashes, kill -9 at random points, full disk."""

import json
import os

import numpy as np
import pytest

from rsd.evaluation.evaluate import ERRORS_FILE, Recording, evaluate, resume_results
from rsd.evaluation.plan import PlanError, plan_episodes
from rsd.evaluation.results import CRASHED_FILE, RESULTS_FILE, ResultsError, episode_id, read_results
from rsd.evaluation.video import VideoError
from tests.evaluation.policies import RaisingPolicy, SeeingPolicy, StillPolicy
from tests.fakes import PointMassEnv, point_mass_tasks


def plan(**values):
    request = {"num_tasks": 3, "num_init_states": 5, "tasks": None, "num_trials": 4, "seed": 7, "save_videos": 0}
    return plan_episodes(**(request | values))


def make_env(task_id: int) -> PointMassEnv:
    return PointMassEnv(task_id=task_id, image_size=64)


def run(run_dir, policy, episodes, **options):
    done = resume_results(run_dir, episodes, point_mass_tasks(num_tasks=3))
    recording = Recording(run_dir, **options)
    return list(evaluate(make_env=make_env, policy=policy, plan=episodes, done=done, recording=recording))


def test_plan():
    episodes = plan(tasks=[2, 0], num_trials=2, save_videos=1)
    assert [(one.task_id, one.init_state_id, one.record) for one in episodes] == [
        (2, 0, True), (2, 1, False), (0, 0, True), (0, 1, False)
    ]  # fmt: skip
    assert len({one.seed for one in plan()}) == 12
    by_place = {(one.task_id, one.init_state_id): one.seed for one in plan()}
    assert all(by_place[one.task_id, one.init_state_id] == one.seed for one in episodes)  # whatever else is run


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": [0, 3]}, r"tasks \[3\] do not exist; the suite has task ids 0\.\.2"),
        ({"tasks": [1, 1]}, "names a task twice"),
        ({"num_trials": 6}, r"num_trials is 6, expected 1\.\.5"),
        ({"num_trials": 0}, r"num_trials is 0, expected 1\.\.5"),
    ],
)
def test_a_plan_that_cannot_be(values, message):
    with pytest.raises(PlanError, match=message):
        plan(**values)


def test_a_policy_that_sees_succeeds_and_one_that_stands_still_fails(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert all(result.success for result in run(tmp_path / "a", SeeingPolicy(), plan()))
    still = run(tmp_path / "b", StillPolicy(), plan(num_trials=1))
    assert [(result.success, result.num_steps, result.error) for result in still] == [(False, 60, None)] * 3


def test_crashes_are_errors_and_the_run_goes_on(tmp_path):
    results = run(tmp_path, RaisingPolicy(), plan())
    crashed = [result for result in results if result.error]
    assert len(results) == 12 and len(crashed) == 6
    assert crashed[0].error == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert not any(result.success for result in crashed) and all(r.success for r in results if not r.error)
    log = (tmp_path / ERRORS_FILE).read_text()
    assert log.count("Traceback") == 6 and "task 0, init state 1\n" in log and "policies.py" in log


def test_a_resume_runs_crashed_episodes_again(tmp_path):
    run(tmp_path, RaisingPolicy(), plan())
    again = run(tmp_path, SeeingPolicy(), plan())
    assert len(again) == 6 and all(result.success for result in again)
    results, _ = read_results(tmp_path / RESULTS_FILE)
    assert len({episode_id(result) for result in results}) == 12 and not any(result.error for result in results)
    assert len(read_results(tmp_path / CRASHED_FILE)[0]) == 6


def test_ctrl_c_ends_the_run_and_resume_completes_it(tmp_path):
    class Interrupted(SeeingPolicy):
        def predict(self, requests):
            if len(read_results(tmp_path / RESULTS_FILE)[0]) == 5:
                raise KeyboardInterrupt
            return super().predict(requests)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(), plan())
    assert len(read_results(tmp_path / RESULTS_FILE)[0]) == 5
    assert len(run(tmp_path, SeeingPolicy(), plan())) == 7
    assert run(tmp_path, SeeingPolicy(), plan()) == []


def test_a_torn_last_line_is_run_again(tmp_path, caplog):
    run(tmp_path, SeeingPolicy(), plan())
    path = tmp_path / RESULTS_FILE
    os.truncate(path, path.stat().st_size - 20)
    assert [episode_id(result) for result in run(tmp_path, SeeingPolicy(), plan())] == [(2, 3)]
    assert "kept aside as" in caplog.text and (tmp_path / "results.jsonl.torn-1").exists()


def test_results_of_another_plan_are_refused(tmp_path):
    run(tmp_path, SeeingPolicy(), plan(num_trials=2))
    with pytest.raises(PlanError, match=r"does not plan: \(task, init state\) \[\(0, 1\), \(1, 1\), \(2, 1\)\]"):
        resume_results(tmp_path, plan(num_trials=1), point_mass_tasks(num_tasks=3))


def test_a_full_disk_ends_the_run_with_the_earlier_episodes_intact(tmp_path, monkeypatch):
    real = os.fsync
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResultsError, match="No space left"):
        run(tmp_path, SeeingPolicy(), plan())
    assert len(read_results(tmp_path / RESULTS_FILE)[0]) == 2
    assert len(run(tmp_path, SeeingPolicy(), plan())) == 10


def test_videos_of_the_first_trials(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    results = run(tmp_path, SeeingPolicy(), plan(num_trials=2, save_videos=1))
    assert [result.video is not None for result in results] == [True, False] * 3
    assert all((tmp_path / result.video).read_bytes()[4:8] == b"ftyp" for result in results if result.video)


def test_an_episode_whose_video_cannot_be_written_keeps_its_outcome(tmp_path, caplog):
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "videos").touch()  # a file where the folder should be
    (result,) = run(tmp_path, SeeingPolicy(), plan(tasks=[0], num_trials=1, save_videos=1))
    assert result.success and result.error is None and (result.video, result.trace) == (None, None)
    assert "task00_init00 cannot be looked at later: " in caplog.text


def test_recorded_episodes_have_a_trace_beside_their_video(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    (result,) = run(tmp_path, SeeingPolicy(), plan(tasks=[0], num_trials=1, save_videos=1))
    trace = json.loads((tmp_path / result.trace).read_text())
    assert (trace["success"], trace["num_steps"], trace["fps"]) == (True, result.num_steps, 2.5)
    assert sum(chunk["num_executed"] for chunk in trace["chunks"]) == result.num_steps
    assert len(trace["chunks"]) == result.stats["num_chunks"]
    assert np.shape(trace["chunks"][0]["draft_actions"]) == (8, 7)


def test_missing_ffmpeg_is_named_before_the_first_episode(tmp_path, monkeypatch):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(VideoError, match=r"no ffmpeg program was found; install it with: pip install .* save_videos=0"):
        run(tmp_path, SeeingPolicy(), plan(save_videos=1))
    assert read_results(tmp_path / RESULTS_FILE) == ([], b"")
