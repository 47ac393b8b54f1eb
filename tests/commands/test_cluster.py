"""hydra/launcher=submitit_local and submitit_slurm, the latter with commands of SLURM that are made up."""

import json
import re
import stat
import sys
from pathlib import Path

import pytest

from rsd.commands import dry_run
from rsd.commands.cluster import Local, Slurm
from rsd.commands.dry_run import without_dry_run
from rsd.errors import SettingError
from tests.commands.parabola import sweeps, table

HERE = {"timeout_min": 60, "nodes": 1, "tasks_per_node": 1}
LIMITS = HERE | {"signal_delay_s": 120}
LOCAL, SLURM = ("hydra/launcher=submitit_local",), ("hydra/launcher=submitit_slurm",)


@pytest.fixture
def submitit(monkeypatch):
    """Where it is installed; processes of it find this package and its tests."""
    found = pytest.importorskip("submitit")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(dry_run, "_TYPED", set())
    return found


def commands(room: Path, monkeypatch, **texts: str) -> None:
    """A PATH of shell scripts of these names, and of what they need; none of a cluster that may be here."""
    room.mkdir()
    for name in ("cp", "wc"):
        (room / name).symlink_to(f"/bin/{name}")
    for name, text in texts.items():
        (room / name).write_text(f"#!/bin/sh\n{text}\n")
        (room / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(room))


@pytest.mark.parametrize(
    ("launcher", "changed", "problem"),
    [
        (
            Slurm,
            {"timeout_min": 2},
            "is 2 min, and a job is told to end 120 s before .*: the time limit is shorter than",
        ),
        (Slurm, {"timeout_min": 90.5}, r"hydra\.launcher\.timeout_min is 90\.5, expected a whole number"),
        (Local, {"timeout_min": 0}, r"hydra\.launcher\.timeout_min is 0, expected"),
        (Slurm, {"signal_delay_s": -1}, r"hydra\.launcher\.signal_delay_s is -1, expected"),
        (Local, {"nodes": 0}, r"hydra\.launcher\.nodes is 0, expected"),
        (Slurm, {"array_parallelism": 0}, r"hydra\.launcher\.array_parallelism is 0, expected"),
        (Slurm, {"partition": "a b"}, r"hydra\.launcher\.partition is 'a b', expected names without spaces"),
        (Slurm, {"partition": "a,,b"}, r"hydra\.launcher\.partition is 'a,,b', expected names"),
        (Slurm, {"account": "me;rm"}, r"hydra\.launcher\.account is 'me;rm', expected a name"),
        (Slurm, {"qos": True}, r"hydra\.launcher\.qos is true, expected"),
        (Slurm, {"constraint": "h100 "}, r"hydra\.launcher\.constraint is 'h100 ', expected features"),
        (Slurm, {"exclude": "node 1"}, r"hydra\.launcher\.exclude is 'node 1', expected nodes"),
        (Slurm, {"gres": "gpu h100"}, r"hydra\.launcher\.gres is 'gpu h100', expected resources"),
        (Slurm, {"gpus_per_node": "two"}, r"hydra\.launcher\.gpus_per_node is 'two', expected a whole number"),
        (Slurm, {"mem_gb": 0}, r"hydra\.launcher\.mem_gb is 0, expected a number above 0"),
        (Slurm, {"name": "a\nb"}, r"hydra\.launcher\.name is 'a\\nb', expected a line"),
        (Slurm, {"setup": ["module load cuda", ""]}, r"hydra\.launcher\.setup is .*, expected"),
        (Slurm, {"partiton": "a"}, r"hydra\.launcher\.partiton is no parameter of submitit_slurm: .*additional_param"),
        (Local, {"partition": "a"}, r"hydra\.launcher\.partition is no parameter of submitit_local: "),
        (Slurm, {"additional_parameters": {"--x": 1}}, r"a key of hydra\.launcher\.additional_parameters is '--x'"),
        (Slurm, {"additional_parameters": {"x": [1]}}, r"additional_parameters\.x is \[1\], expected"),
    ],
)
def test_what_no_scheduler_takes_is_refused_before_anything_is_sent(launcher, changed, problem):
    fits = LIMITS if launcher is Slurm else HERE
    launcher(**fits)
    with pytest.raises(SettingError, match=problem):
        launcher(**fits | changed)


def test_what_clusters_are_called_is_taken():
    named = {"partition": "gpu,gpu-long", "account": 12345, "qos": "normal", "constraint": "[h100*2&h200*4]"}
    resources = {"gres": "gpu:h100:2(S:0-1),nic:1", "exclude": "node[1-3,7],fat.cluster", "mem_per_gpu": "80GB"}
    launcher = Slurm(**LIMITS, **named, **resources, additional_parameters={"requeue": False, "mail_user": "me@there"})
    assert launcher.named()["slurm_additional_parameters"] == {"mail_user": "me@there"}  # sbatch has no word for false


@pytest.mark.parametrize("typed", [("x=1",), ("-m", "x=1"), ("hydra/launcher=submitit_slurm",)])
def test_a_dry_run_without_a_scheduler_says_what_it_goes_with(typed):
    with pytest.raises(SettingError, match=r"--dry-run shows .* goes with -m and hydra/launcher=submitit_slurm"):
        without_dry_run([*typed, "--dry-run"])
    assert not dry_run.is_dry_run()


def test_without_the_package_the_extra_is_named(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)
    code, _, err = sweep("x=0,1", *LOCAL)
    assert code == 1 and re.search(
        r"^error: hydra/launcher=submitit_local needs .*pip install 'rsd\[slurm\]'", err, re.M
    )


def test_without_slurm_that_is_told(sweep, submitit, tmp_path, monkeypatch):
    commands(tmp_path / "bin", monkeypatch)
    code, _, err = sweep("x=0,1", *SLURM)
    assert code == 1 and "needs SLURM's sbatch and srun, which are not on the PATH here" in err


def test_what_sbatch_refuses_is_one_line(sweep, submitit, tmp_path, monkeypatch):
    said = "sbatch: error: invalid partition specified: gpus"
    commands(tmp_path / "bin", monkeypatch, sbatch=f"echo '{said}' >&2; exit 1", srun="exit 1")
    code, _, err = sweep("x=0,1", *SLURM, "hydra.launcher.partition=gpus")
    assert code == 1 and "error: the jobs were not sent: invalid partition specified: gpus; correct" in err
    assert "Traceback" not in err


def test_a_dry_run_prints_what_sbatch_would_get_and_leaves_nothing(sweep, submitit, tmp_path, monkeypatch):
    commands(tmp_path / "bin", monkeypatch)
    swept = ("x=0,1,2", *SLURM, "hydra.launcher.partition=gpus", "hydra.launcher.gpus_per_node=2")
    former = f"+paths.runs={tmp_path}/runs"  # where no former run is, whatever lies in outputs/
    code, out, err = sweep(*swept, "hydra.launcher.timeout_min=90", former, "--dry-run")
    assert code == 0, err
    lines = out.splitlines()
    assert {"#SBATCH --array=0-2%3", "#SBATCH --partition=gpus", "#SBATCH --gpus-per-node=2", "#SBATCH --time=90"} <= {
        *lines
    }
    assert {"#SBATCH --requeue", "#SBATCH --signal=USR2@120", "#SBATCH --mem=32GB"} <= {*lines}
    assert any(line.startswith("export HF_HUB_OFFLINE=1") for line in lines)
    assert "3 jobs, each 2 GPUs, 4 CPUs, 32 GB of memory, 90 min a start" in lines
    assert "forecast: 4.5 hours, 9 GPU-hours if each job takes its time limit, once; disk unknown." in out
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_what_is_sent_is_what_the_dry_run_showed(sweep, submitit, tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.SlurmJob, "results", lambda self: [])
    place = (f"hydra.sweep.dir={tmp_path}/sweep", f"+paths.runs={tmp_path}/runs")
    commands(tmp_path / "bin", monkeypatch, srun="", sbatch=f"cp $1 {tmp_path}/sent; echo Submitted batch job 12")
    _, shown, _ = sweep("x=0,1", *SLURM, *place, "--dry-run")
    code, out, err = sweep("x=0,1", *SLURM, *place)
    assert code == 1 and "2 of 2 jobs failed" in err and "it never ended" in err  # nothing has run them
    assert "sent: job 1 (x=1" in out and "as 12_1" in out
    assert shown.startswith((tmp_path / "sent").read_text())
    sent = json.loads((tmp_path / "sweep" / ".submitit" / "submitted.json").read_text())
    assert (sent["0"], sent["1"]) == ("12_0", "12_1")


def test_jobs_that_still_wait_are_not_sent_twice(sweep, submitit, tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.SlurmJob, "results", lambda self: [])
    queue = 'case "$*" in *12_1*) echo PENDING;; esac'
    count = f"echo sent >> {tmp_path}/count; echo Submitted batch job 1$(wc -l < {tmp_path}/count)"
    commands(tmp_path / "bin", monkeypatch, srun="", squeue=queue, sbatch=count)
    (tmp_path / "count").write_text("\n")
    place = f"hydra.sweep.dir={tmp_path}/sweep"
    sweep("x=0,1", *SLURM, place)
    _, out, _ = sweep("x=0,1", *SLURM, place)
    assert "job 1 was sent before, as 12_1, and is waited for" in out
    assert "sent: job 0 (x=0" in out and "as 13" in out and "sent: job 1" not in out


@pytest.mark.slow
def test_local_jobs_end_with_records_of_their_own(sweep, submitit, tmp_path):
    (tmp_path / "fails").touch()
    swept = ("x=0,2", f"fails={tmp_path}/fails", *LOCAL)
    code, _, err = sweep(*swept)
    (folder,) = sweeps(tmp_path)
    assert code == 1 and re.search(r"job 1 \(x=2\): SettingError: x is 2", err), err
    assert [row["status"] for row in table(folder)] == ["done", "failed"]
    (tmp_path / "fails").unlink()
    code, out, err = sweep(*swept)
    assert code == 0 and "done already: job 0" in out, err
    assert sweeps(tmp_path) == [folder] and [row["status"] for row in table(folder)] == ["done", "done"]
    record = json.loads((folder / "1" / "provenance.json").read_text())
    assert len(record["starts"]) == 2
