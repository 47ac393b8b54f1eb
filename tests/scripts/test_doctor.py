"""scripts/doctor.py as a user runs it, on a random checkpoint in the published layout."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "doctor.py"


@pytest.fixture
def checkpoint(tmp_path):
    write_random_checkpoint(tmp_path / "checkpoint", architecture=openvla_architecture(size="tiny"))
    return tmp_path / "checkpoint"


@pytest.fixture
def doctor(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the script in this process; returns (exit code, stdout, stderr)."""

    def doctor(*overrides):
        fixed = ["model=oft_object", "data=libero_object", f"model.backbone.checkpoint={checkpoint}"]
        fixed.append(f"paths.root={tmp_path}")
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *fixed, *quiet, *overrides])
        monkeypatch.setenv("COLUMNS", "160")
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return doctor


def test_a_sound_checkpoint(doctor):
    code, out, _ = doctor()
    assert code == 0
    assert out.count("ok: ") == 4 and "FAILED" not in out
    assert "2: image, wrist_image, 56 px" in out and "8 steps of 7 dims, by l1" in out
    assert "libero_object_no_noops, q01 to q99" in out
    assert "states move by" in out


def test_a_blind_checkpoint_fails(doctor, checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["projector.fc3.weight"] = torch.zeros_like(weights["projector.fc3.weight"])
    save_file(weights, path)
    code, out, _ = doctor()
    assert code == 1 and "FAILED: a black and a white picture give different answers" in out


def test_a_contradiction_is_one_line(doctor):
    code, _, err = doctor("chunk=16")
    assert code == 1 and err.startswith("error: ") and "chunk_length is 8, asked for 16" in err
    code, _, err = doctor("model.backbone.views=[image]")
    assert code == 1 and "num_images is 2, asked for 1" in err
