"""Runs inside of a scheduler's jobs, in this process: which go on, which are requeued, which are stopped for good."""

import os
import signal
import stat

import pytest

from rsd import requeue
from rsd.commands import requeued
from rsd.commands.requeued import NoProgressError, interrupted, is_own_run, job_id, note_job
from tests.commands.parabola import sweeps, table

SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SUBMITIT_LOCAL_JOB_ID")


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(requeued.LIMIT, "minutes", None)


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """Of a run that has begun, whose next start would find its folder."""
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(requeued, "_finds_its_folder", lambda: True)
    return tmp_path


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """A job of SLURM's, and commands that note what they are asked; returns what sets the job's state."""
    room = tmp_path_factory.mktemp("bin")
    for name, text in {"squeue": f"cat {room}/state", "scontrol": f'echo "$@" >> {room}/asked'}.items():
        (room / name).write_text(f"#!/bin/sh\n{text}\n")
        (room / name).chmod(stat.S_IRWXU)
    (room / "state").write_text("RUNNING\n")
    monkeypatch.setenv("PATH", f"{room}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    return room


def stopped(run_dir, *, done, before, number=signal.SIGUSR2):
    """The exit code of a start that got a signal."""
    with requeue.heeding(), pytest.raises((SystemExit, NoProgressError)) as end:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        interrupted(run_dir, what="episode", done=done, before=before)
    return end.value.code if isinstance(end.value, SystemExit) else end.value


def test_a_job_has_the_id_that_its_scheduler_requeues(monkeypatch):
    assert job_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    assert job_id() == "14"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert job_id() == "12_3"


def test_ctrl_c_is_none_of_a_scheduler(run_dir, capsys):
    with requeue.heeding(), pytest.raises(SystemExit) as end:
        interrupted(run_dir, what="step", done=3, before=0)
    assert end.value.code == 130 and "interrupted; continue with: " in capsys.readouterr().err


def test_only_the_job_itself_goes_on_with_its_run(run_dir, slurm, monkeypatch):
    assert not is_own_run(run_dir)
    note_job(run_dir)
    assert is_own_run(run_dir)
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert not is_own_run(run_dir)


def test_a_job_that_moves_on_is_requeued(run_dir, slurm, capsys):
    note_job(run_dir)
    assert [stopped(run_dir, done=n + 1, before=n) for n in range(4)] == [75] * 4
    assert (slurm / "asked").read_text() == "requeue 12\n" * 4
    assert "SIGUSR2: stopped, 1 episode done in this start" in capsys.readouterr().err


def test_processes_that_train_along_ask_for_nothing(run_dir, slurm, monkeypatch, capsys):
    note_job(run_dir)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert stopped(run_dir, done=1, before=0) == 130
    assert not (slurm / "asked").exists() and capsys.readouterr().err == ""


def test_a_job_that_was_cancelled_is_not(run_dir, slurm):
    (slurm / "state").write_text("COMPLETING\n")
    assert stopped(run_dir, done=1, before=0, number=signal.SIGTERM) == 75
    assert not (slurm / "asked").exists()


def test_a_job_without_progress_is_requeued_once(run_dir, slurm, monkeypatch, capsys):
    monkeypatch.setattr(requeued.LIMIT, "minutes", 5.0)
    note_job(run_dir)
    assert stopped(run_dir, done=2, before=2) == 75
    assert "the time limit of 5 min is shorter than the start and one episode; if the" in capsys.readouterr().err
    assert stopped(run_dir, done=3, before=2) == stopped(run_dir, done=3, before=3) == 75
    error = stopped(run_dir, done=3, before=3)
    assert isinstance(error, NoProgressError) and "2 times now, so job 12 is not requeued" in str(error)
    assert "hydra.launcher.timeout_min=" in str(error)
    assert (slurm / "asked").read_text() == "requeue 12\n" * 3


def test_what_was_cached_is_progress(run_dir, slurm):
    def start():
        with requeue.heeding(), pytest.raises(SystemExit):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGUSR1)
            requeue.move()
            interrupted(run_dir, what="step", done=0, before=0)

    for _ in range(4):
        start()
    assert (slurm / "asked").read_text() == "requeue 12\n" * 4


def test_a_job_whose_next_start_would_begin_anew_is_not_requeued(run_dir, slurm, monkeypatch, capsys):
    monkeypatch.setattr(requeued, "_finds_its_folder", lambda: False)
    assert stopped(run_dir, done=1, before=0) == 75
    assert "not requeued: it would begin anew" in capsys.readouterr().err and not (slurm / "asked").exists()


def test_submitit_starts_a_local_job_again(run_dir, monkeypatch):
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "77")
    assert stopped(run_dir, done=1, before=0) == requeued.LOCAL_EXIT_CODE
    assert stopped(run_dir, done=2, before=1, number=signal.SIGTERM) == 75


def test_a_sweeps_job_that_its_scheduler_starts_again_goes_on_in_its_folder(sweep, tmp_path, monkeypatch):
    """As after a node that was lost: the same overrides, without resume=."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert sweep("x=0,1")[0] == 0
    (folder,) = sweeps(tmp_path)
    (folder / "1" / "job.json").unlink()
    monkeypatch.setattr("rsd.commands.jobs._resume", lambda own: [])
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    code, _, err = sweep("x=0,1", f"hydra.sweep.dir={folder}")
    assert code == 1 and "already holds a run" in err
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert sweep("x=0,1", f"hydra.sweep.dir={folder}")[0] == 0
    assert [row["status"] for row in table(folder)] == ["done", "done"]
