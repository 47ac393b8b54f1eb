"""eval.py as a user runs it, on PointMassEnv."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsd.commands import entry_point
from rsd.evaluation.plan import Plan
from tests.callbacks import KEEP_RETURNED, RETURNED_FILE

ROOT = Path(__file__).parents[1]
CONFIG = ["-cp", str(ROOT / "tests" / "evaluation" / "conf"), "-cn", "point_mass"]


@pytest.fixture
def run_eval(monkeypatch, capfd):
    """Run eval.py's main in this process with the given arguments; returns (exit code, stdout, stderr)."""
    monkeypatch.syspath_prepend(ROOT)
    evaluation = importlib.import_module("eval")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.py", *CONFIG, *arguments])
        code = 0
        try:
            entry_point.run(evaluation.main, evaluation.CONFIG)
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return (1, out, err + code) if isinstance(code, str) else (code, out, err)  # sys.exit(message) is code 1

    return run


def num_results(run_dir: Path) -> int:
    path = run_dir / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_after_two_episodes(run_dir: Path, stop: signal.Signals, *arguments: str) -> tuple[int, str]:
    """Start eval.py as a process of its own, send the signal after two new episodes; (exit code, stderr)."""
    before = num_results(run_dir)
    command = [sys.executable, "eval.py", *CONFIG, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while num_results(run_dir) < before + 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(stop)
        _, stderr = process.communicate()
    return process.returncode, stderr


@pytest.mark.slow
def test_ctrl_c_then_kill_then_resume(tmp_path, run_eval):
    run_dir = tmp_path / "run"
    code, stderr = stop_after_two_episodes(run_dir, signal.SIGINT, f"hydra.run.dir={run_dir}", "policy.delay_s=0.1")
    assert code == 130 and f"resume={run_dir}" in stderr and "Traceback" not in stderr
    assert f"Incomplete: {num_results(run_dir)} of 12 episodes" in (run_dir / "report.html").read_text()
    assert stop_after_two_episodes(run_dir, signal.SIGKILL, f"resume={run_dir}")[0] == -signal.SIGKILL

    before = num_results(run_dir)
    assert 4 <= before < 12
    code, _, stderr = run_eval(f"resume={run_dir}", "seed=8")
    assert code == 1 and "seed: 7 → 8" in stderr and num_results(run_dir) == before
    code, _, stderr = run_eval(f"hydra.run.dir={run_dir}")
    assert code == 1 and "already holds a run" in stderr and num_results(run_dir) == before

    code, stdout, _ = run_eval(f"resume={run_dir}")
    assert code == 0 and f"[{before + 1}/12]" in stdout and "success 12/12" in stdout
    lines = [json.loads(line) for line in (run_dir / "results.jsonl").read_text().splitlines()]
    places = sorted((line["task_id"], line["init_state_id"]) for line in lines)
    assert places == [(task, trial) for task in range(3) for trial in range(4)]
    assert json.loads((run_dir / "report.json").read_text())["complete"]


def test_a_run_keeps_its_plan_and_a_resume_is_held_to_it(tmp_path, run_eval):
    run_dir = tmp_path / "run"
    code, _, stderr = run_eval(f"hydra.run.dir={run_dir}", "num_trials=1", "tasks=[2,0]")
    assert code == 0, stderr
    plan = Plan.from_json(json.loads((run_dir / "plan.json").read_text()))
    assert [(one.task_id, one.init_state_id) for one in plan.episodes] == [(2, 0), (0, 0)]
    assert [task.instruction for task in plan.tasks] == ["move the point to goal 0", "move the point to goal 2"]
    assert plan.protocol.name == "point_mass-1" and plan.protocol.values == {"image_size": 64, "clip_actions": True}
    assert run_eval(f"resume={run_dir}", "num_workers=2")[0] == 0

    record = plan.to_json() | {"allowed_versions": {"point_mass": "2"}}
    (run_dir / "plan.json").write_text(json.dumps(record))
    code, _, stderr = run_eval(f"resume={run_dir}")
    assert code == 1 and "it was planned otherwise: allowed_versions.point_mass: 2 → (absent)" in stderr


def test_a_run_with_a_delay_says_so_and_is_not_continued_with_another(tmp_path, run_eval):
    run_dir = tmp_path / "run"
    naive = "async._target_=rsd.clock.Naive"
    code, stdout, stderr = run_eval(f"hydra.run.dir={run_dir}", "num_trials=1", "tasks=[0]", "delay=2", naive)
    assert code == 0, stderr
    assert "note: Delay: 2 control steps, async=naive." in stdout
    report = json.loads((run_dir / "report.json").read_text())
    assert report["plan"]["policy"]["clock"] == {"delay": 2, "async": "naive"}
    assert report["delay"]["num_still"] == 2 and report["delay"]["age_max"] == 9  # the first chunk is waited for
    assert "stood still in 2 of" in (run_dir / "report.html").read_text()
    code, _, stderr = run_eval(f"resume={run_dir}", naive, "delay=1")
    assert code == 1 and "delay: 2 → 1" in stderr
    code, _, stderr = run_eval(f"hydra.run.dir={tmp_path}/other", "delay=8", naive, "num_trials=1", "tasks=[0]")
    assert code == 1  # a policy of one's own tells its chunk's length with its first chunk
    assert "DelayError: delay=8 with async=naive, but a chunk has 8" in (tmp_path / "other/results.jsonl").read_text()


@pytest.mark.parametrize("command", [["eval.py", *CONFIG], ["train.py", "phase=rfsq"]])
def test_a_run_begun_by_an_earlier_version_is_not_continued(command):
    run_dir = "tests/evaluation/runs_of_7eff0a3/point_mass"
    done = subprocess.run(
        [sys.executable, *command, f"resume={run_dir}"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: cannot resume {run_dir}: it was begun by an earlier version of rsd, 7eff0a3dbc71; "
        "finish it with that version, or start anew without resume\n"
    )


def test_workers_do_the_same_episodes(tmp_path, run_eval):
    for name, workers in (("alone", 1), ("together", 2)):
        code, _, stderr = run_eval(f"hydra.run.dir={tmp_path}/{name}", f"num_workers={workers}", "num_trials=2")
        assert code == 0, stderr
    outcomes = []
    for name in ("alone", "together"):
        lines = [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        fields = ("task_id", "init_state_id", "seed", "success", "num_steps", "stats")
        outcomes.append(sorted(([line[field] for field in fields] for line in lines), key=str))
    assert outcomes[0] == outcomes[1] and len(outcomes[0]) == 6


def test_main_returns_the_success_rate(tmp_path, run_eval):
    code, _, stderr = run_eval(f"hydra.run.dir={tmp_path}/run", "num_trials=1", KEEP_RETURNED)
    assert code == 0, stderr
    assert json.loads((tmp_path / "run" / RETURNED_FILE).read_text()) == 1.0


def test_workers_change_no_outcome(tmp_path, run_eval):
    for num_workers in (1, 2):
        code, *_ = run_eval(f"hydra.run.dir={tmp_path}/{num_workers}", f"num_workers={num_workers}")
        assert code == 0
    first, second = (json.loads((tmp_path / str(count) / "report.json").read_text()) for count in (1, 2))
    for one, other in zip(first["episodes"], second["episodes"], strict=True):
        assert one | {"wall_s": 0} == other | {"wall_s": 0}
    assert first["decoding"] == second["decoding"]


def test_a_backbone_that_raises_is_reported_and_the_exit_code_says_so(tmp_path, run_eval):
    target = "policy._target_=tests.evaluation.policies.RaisingPolicy"
    code, _, stderr = run_eval(f"hydra.run.dir={tmp_path}/run", target, "~policy.delay_s")
    assert code == 1 and "6 of 12 episodes crashed; see" in stderr and "crashed_episodes.log" in stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["success"]["num_errors"] == 6 and report["success"]["success_rate"] == 1.0


def test_a_multirun_ends_in_a_table_with_failed_runs_in_it(tmp_path, run_eval):
    code, _, stderr = run_eval("-m", f"hydra.sweep.dir={tmp_path}/sweep", "num_trials=1,9")
    assert code == 1 and "num_trials is 9, expected 1..5" in stderr
    header, good, bad = (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()
    assert header.startswith("run,num_trials,status,success_rate")
    assert good.startswith("0,1,done,1.0") and bad.startswith("1,9,failed,,")
    assert (tmp_path / "sweep" / "sweep.html").is_file()


@pytest.mark.slow
def test_a_stopped_simulator_does_not_hold_the_command(tmp_path):
    run_dir, marks = tmp_path / "run", tmp_path / "marks"
    marks.mkdir()
    command = [sys.executable, "eval.py", *CONFIG, f"hydra.run.dir={run_dir}", "num_workers=2"]
    command += ["+simulator_timeout_s=5", "env.make._target_=tests.scripts.point_mass.RandomPointMassEnv"]
    command += [f"+env.make.marks={marks}", "+env.make.silent=true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    stopped = int((marks / "stopped").read_text())
    assert num_results(run_dir) == 12 and not Path(f"/proc/{stopped}").exists()


@pytest.mark.long
def test_of_two_resumes_at_once_the_second_is_refused(tmp_path):
    run_dir = tmp_path / "run"
    slow = "policy.delay_s=0.1"
    code, stderr = stop_after_two_episodes(run_dir, signal.SIGKILL, f"hydra.run.dir={run_dir}", slow)
    assert code == -signal.SIGKILL, stderr
    command = [sys.executable, "eval.py", *CONFIG, f"resume={run_dir}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for _ in range(2)]
    ends = {process.wait(120): process.communicate()[1] for process in both}
    assert set(ends) == {0, 1} and "Traceback" not in ends[1]
    assert f"error: {run_dir} is being written by another process; wait for its end or stop it" in ends[1]
    assert not (run_dir / "error.log").exists()
    lines = [json.loads(line) for line in (run_dir / "results.jsonl").read_text().splitlines()]
    assert len({(line["task_id"], line["init_state_id"]) for line in lines}) == len(lines) == 12


def rows(sweep_dir: Path) -> list[list[str]]:
    return [row.split(",")[:4] for row in (sweep_dir / "sweep.csv").read_text().splitlines()]


@pytest.mark.parametrize("values", ["1,2", "3,4"])
def test_a_sweep_in_the_folder_of_a_finished_one_changes_nothing_of_its_table(tmp_path, run_eval, values):
    folder = f"hydra.sweep.dir={tmp_path}/sweep"
    assert run_eval("-m", folder, "num_trials=1,2")[0] == 0
    finished = rows(tmp_path / "sweep")
    assert finished[1:] == [["0", "1", "done", "1.0"], ["1", "2", "done", "1.0"]]
    job = (tmp_path / "sweep" / "0" / "job.json").read_text()
    code, stdout, stderr = run_eval("-m", folder, f"num_trials={values}")
    told = ["done already: job 0, 1" in stdout, "sweep/0 holds another job, num_trials=1, than num_trials=3" in stderr]
    assert (code, told) == ((0, [True, False]) if values == "1,2" else (1, [False, True]))
    assert rows(tmp_path / "sweep") == finished
    assert (tmp_path / "sweep" / "0" / "job.json").read_text() == job


def test_a_job_that_resume_completes_is_done_in_the_sweeps_table(tmp_path, run_eval):
    sweep_dir, mark = tmp_path / "sweep", tmp_path / "mark"
    mark.touch()
    policy = ["policy._target_=tests.evaluation.policies.MarkedPolicy", "~policy.delay_s", f"+policy.mark={mark}"]
    assert run_eval("-m", f"hydra.sweep.dir={sweep_dir}", "num_trials=1,2", *policy)[0] == 1
    assert [row[2] for row in rows(sweep_dir)] == ["status", "failed", "failed"]
    mark.unlink()
    for job in ("1", "0"):
        code, stdout, _ = run_eval(policy[0], f"resume={sweep_dir / job}")  # a target is typed again
        assert code == 0 and "Table of the runs" in stdout
    assert rows(sweep_dir)[1:] == [["0", "1", "done", "1.0"], ["1", "2", "done", "1.0"]]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tasks=[5]", "tasks [5] do not exist; the suite has task ids 0..2"),
        ("num_trails=5", "num_trails"),
        ("resume=/nowhere", "cannot resume"),
    ],
)
def test_bad_input(tmp_path, run_eval, argument, message):
    code, _, stderr = run_eval(f"hydra.run.dir={tmp_path}/run", argument)
    assert code == 1 and message in stderr
    assert not (tmp_path / "run" / "results.jsonl").exists()
