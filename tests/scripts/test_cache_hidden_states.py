"""scripts/cache_hidden_states.py as a user runs it, with a real small checkpoint and a real RLDS directory."""

import runpy
import sys
from pathlib import Path

import pytest

from rsd.data.cache import CacheReader
from rsd.training.lineage import artifact_name
from tests.data.demonstrations import NAME, write_dataset
from tests.data.tiny_base import save_tiny_base
from tests.training.wandb_files import artifacts

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "cache_hidden_states.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    dataset_dir = write_dataset(root / "data", [20, 18])
    save_tiny_base(root / "checkpoints" / "base" / f"oft_tiny-{NAME}-t8", dataset_dir)
    return root


def arguments(root, *overrides):
    return [
        str(SCRIPT),
        "model=oft_tiny",
        f"data.name={NAME}",
        f"data.unnorm_key={NAME}",
        f"paths.root={root}",
        "cache.batch_size=4",
        "cache.num_workers=0",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        *overrides,
    ]


@pytest.fixture
def run(root, monkeypatch, capsys):
    """Runs the script in this process, which spares the imports; returns (exit code, stdout, stderr)."""

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", arguments(root, *overrides))
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def only_cache(root):
    (directory,) = {*(root / "cache").iterdir()} - {root / "cache" / "statistics"}
    return directory


def test_it_fills_the_cache_and_says_where(root, run):
    code, out, _ = run()
    assert code == 0
    assert "rows 24 × 464 bytes, layer.2 24 × 14336 bytes, head 24 × 2048 bytes; 0.000 GB in all" in out
    assert out.splitlines()[-1].startswith("24 frames of 2 episodes, layer.2, head, 0.000 GB")
    assert out.rstrip().endswith(str(only_cache(root)))
    reader = CacheReader(only_cache(root), verify=True)
    assert (len(reader), reader.points, reader.state_shape("head")) == (24, ["head", "layer.2"], (8, 128))


def test_one_more_layer_joins_the_others_in_the_same_cache(root, run):
    assert run("layers=[2]")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in only_cache(root).rglob("*") if path.is_file()}
    code, out, _ = run("layers=[2,4,head]")
    assert code == 0
    assert "to write, frames × bytes a frame: layer.4 24 × 14336 bytes; 0.000 GB in all" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert CacheReader(only_cache(root), verify=True).points == ["head", "layer.2", "layer.4"]


def test_a_cache_of_the_old_format_is_one_clear_error(run, tmp_path):
    record = tmp_path / "cache.json"
    record.write_text('{"format": 1}')
    code, _, errors = run(f"cache.directory={tmp_path}")
    assert code == 1
    assert "is of cache format 1, expected 2, and is left as it is: remove the folder or choose another" in errors
    assert "Traceback" not in errors
    assert record.read_text() == '{"format": 1}'


@pytest.mark.parametrize("layer", [5, 0, "tail"])
def test_a_layer_that_does_not_exist_is_one_clear_error(run, layer):
    code, _, errors = run(f"layers=[2,{layer}]")
    name = layer if layer == "tail" else f"layer.{layer}"
    assert code == 1
    unknown = f"points ['{name}'] do not exist; the base model has layer.1, layer.2, layer.3, layer.4, head"
    assert ("layers is [2, 0], expected a list" if layer == 0 else unknown) in errors


def test_without_a_checkpoint_the_error_says_how_to_make_one(run):
    code, _, errors = run("paths.base=nowhere")
    assert code == 1
    assert "error: no base checkpoint: nowhere/" in errors and "phase=oft" in errors


def test_wandb_gets_what_it_was_made_of_and_a_name_for_each_point(root, run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    code, _, errors = run("layers=[2,head]", "logger=wandb", f"hydra.run.dir={tmp_path}/run")
    assert code == 0, errors
    given = artifacts(tmp_path / "run")
    kinds = sorted((name.partition("-")[0], uses) for name, uses in given.items())
    made, read = [("cache", False)], [("data", True)]
    assert [uses for kind, uses in kinds if kind != "base"] == [made, made, read]
    assert [uses for kind, uses in kinds if kind == "base"] == [[("base", True)]]
    draft_reads = CacheReader(only_cache(root), ["layer.2"]).contents()  # as training for one point opens it
    assert [artifact_name(content) in given for content in draft_reads] == [True]
