"""What the processes that train along with a job of a multirun are started with."""

import os
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies.launchers.subprocess_script import _hydra_subprocess_cmd
from omegaconf import open_dict, read_write

from rsd.commands.alone import as_one_command
from tests.commands.parabola import CONFIG

TYPED = ["train.py", "-m", "--config-dir", "mine", "x=1,2", "hydra/launcher=submitit_local"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Job 1 of a sweep over x."""
    with initialize_config_dir(str(CONFIG.parent), version_base="1.3"):
        config = compose(CONFIG.stem, ["x=2"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.mode = RunMode.MULTIRUN
        config.hydra.runtime.cwd, config.hydra.runtime.output_dir = str(tmp_path), str(tmp_path / "sweep" / "1")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    HydraConfig.instance().set_config(config)
    monkeypatch.setattr(sys, "argv", list(TYPED))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "sweep" / "1"


def test_they_run_this_job_in_its_folder_and_no_sweep(job):
    with as_one_command():
        command, _ = _hydra_subprocess_cmd(1)
    assert command[2:5] == ["--config-dir", "mine", "x=2"] and f'hydra.run.dir="{job}"' in command
    assert not {"-m", "x=1,2", "hydra/launcher=submitit_local"} & set(command)
    assert sys.argv == TYPED


def test_the_next_job_starts_them_itself(job, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError), as_one_command():
        os.environ.update({"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "4000"})  # as Lightning does
        raise ValueError
    assert not LightningEnvironment().creates_processes_externally
    assert "WORLD_SIZE" not in os.environ and os.environ["MASTER_PORT"] == "29500"


def test_a_run_that_is_no_sweeps_is_left_as_it_was_typed(job):
    with read_write(HydraConfig.get()):
        HydraConfig.get().mode = RunMode.RUN
    before = HydraConfig.get().run.dir
    with as_one_command():
        assert sys.argv == TYPED and HydraConfig.get().run.dir == before
