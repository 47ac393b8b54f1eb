"""How a trainer starts its processes where SLURM is installed, and inside of a job."""

import stat
import warnings

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment

from rsd.training.end_when_asked import started_here


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """An srun on the PATH, and no job."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_nobody_is_told_to_use_srun_where_no_job_is(slurm):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert started_here() == []
    assert told == []


def test_lightning_says_so_in_a_job_whose_script_has_no_srun(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.warns(UserWarning, match="prepend your python command with `srun`"):
        assert started_here() == []


def test_in_a_job_the_trainer_starts_its_processes_itself(slurm, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    (environment,) = started_here()
    assert isinstance(environment, LightningEnvironment)
