"""The 7B benchmark's every section at tiny size on the CPU, so that GPU time is not spent on finding typing errors."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rsd.models.openvla.random_weights import openvla_architecture, random_model

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_7b"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return lambda name: importlib.import_module(f"benchmark_7b.{name}")


def test_all_sections_at_tiny_size(tmp_path):
    options = "--device cpu --size tiny --calls 3 --warmup 1 --frames 12 --batch-size 4 --workers 1".split()
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), *options]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)  # not from the repository
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "benchmark_7b.json").read_text())
    assert results["errors"] == {}
    for case, tokens in (("1 image", 107), ("2 images + proprio", 124)):
        entry = results["forward"][case]
        assert entry["tokens"] == tokens
        assert entry["whole"]["eager"]["wall_ms"]["calls"] == 3
        assert entry["tflop"]["whole"] == pytest.approx(
            sum(entry["tflop"][part] for part in ("vision", "projector", "llm", "head"))
        )
        assert entry["tflop"]["llm"] > 0
    assert results["load"]["host_peak_bytes"] > 0
    assert results["caching"]["caching_frames_per_s"] > 0
    assert "**2 images + proprio** (124 tokens)" in (tmp_path / "benchmark_7b.md").read_text()


def test_a_failing_section_fails_the_run_and_keeps_the_others(tmp_path, benchmark, monkeypatch, capsys):
    main = benchmark("__main__")
    monkeypatch.setitem(main.MEASURES, "forward", lambda *arguments: 1 / 0)
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--size", "tiny", "--sections", "forward", "caching"]
    monkeypatch.setattr(
        sys, "argv", ["benchmark_7b", *arguments, "--frames", "12", "--batch-size", "4", "--workers", "1"]
    )
    assert main.main() == 1
    results = json.loads((tmp_path / "benchmark_7b.json").read_text())
    assert "ZeroDivisionError" in results["errors"]["forward"] and results["caching"]["caching_frames_per_s"] > 0


def test_a_model_can_lose_its_proprio(benchmark):
    model = random_model(openvla_architecture(size="tiny"), seed=0, device="cpu")
    assert benchmark("cases").without_proprio(model).architecture.proprio_dim is None
    assert model.architecture.proprio_dim == 8
