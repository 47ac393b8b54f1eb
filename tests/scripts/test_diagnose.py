"""scripts/diagnose.py as a user runs it: on the folder of a training, and what it refuses."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from tests.data.demonstrations import NAME, write_dataset
from tests.data.tiny_base import save_tiny_base

SCRIPT = Path(__file__).parents[2] / "scripts" / "diagnose.py"
QUICK = ["num_frames=2", "num_episodes=1", "num_looks=1"]


@pytest.fixture
def diagnose(tmp_path, monkeypatch, capsys):
    """Runs the script in this process; returns (exit code, stdout, stderr)."""

    def diagnose(*overrides):
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", f"paths.root={tmp_path}"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *quiet, *QUICK, *overrides])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return diagnose


@pytest.fixture
def training(tmp_path) -> Path:
    """The folder of a training of an untrained model, as far as a diagnosis reads it."""
    data = write_dataset(tmp_path / "data", [20, 20])
    run = tmp_path / "runs" / "train"
    save_tiny_base(run / "checkpoint", data)
    backbone = {
        "_target_": "rsd.models.openvla.load_base",
        "checkpoint": "elsewhere",
        "unnorm_key": NAME,
        "views": ["image", "wrist_image"],
        "use_proprio": True,
        "chunk_length": 8,
        "device": "cpu",
        "dtype": "float32",
    }
    layout = {"_target_": "rsd.data.layout.Layout"}
    own = {"name": NAME, "unnorm_key": NAME, "root": str(tmp_path / "data"), "version": "1.0.0", "layout": layout}
    config = {"phase": {"name": "oft"}, "chunk": 8, "model": {"name": "oft_tiny", "backbone": backbone}, "data": own}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_the_folder_of_a_training_brings_its_data_and_fails_untrained(diagnose, training, tmp_path):
    code, out, _ = diagnose(f"policy={training}")
    assert code == 1 and "Do not run it on a robot: " in out and "FAILED" in out
    folder = tmp_path / "diagnosis" / f"train-{NAME}"
    record = json.loads((folder / "diagnosis.json").read_text())
    assert record["verdict"] in out and record["measurements"]["num_frames"] == 2
    page = (folder / "diagnosis.html").read_text()
    assert page.index(record["statements"][0]["finding"]["name"][1:]) and "data:image/jpeg" in page


def test_what_is_refused(diagnose, training, tmp_path):
    assert "data is not chosen; choose the demonstrations" in diagnose("policy=released")[2]
    assert "neither policy= nor model= is given" in diagnose("data=libero_spatial")[2]
    assert (
        "is neither a policy's folder (policy.json) nor a run's"
        in diagnose(f"policy={tmp_path}", "data=libero_goal")[2]
    )
    assert "split is 'train', expected one of val, all" in diagnose(f"policy={training}", "split=train")[2]
    config = training / "config.yaml"
    config.write_text(config.read_text().replace("name: oft\n", "name: draft\n"))
    assert "a run of phase=draft, which makes a part and no policy" in diagnose(f"policy={training}")[2]
    (training / "checkpoint" / "checkpoint.json").unlink()
    assert "the training has not ended; go on with resume=" in diagnose(f"policy={training}")[2]
