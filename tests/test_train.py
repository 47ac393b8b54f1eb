"""train.py as a user runs it: the phases in their order on a toy data set, and what bad input gets.

Most runs share this process; those that are killed have one of their own.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rsd import entry_point
from tests.data.demonstrations import NAME, write_dataset

ROOT = Path(__file__).parents[1]
SMALL = [
    "model.image_size=28",
    "model.architecture.llm.hidden_size=32",
    "model.architecture.llm.intermediate_size=48",
    "phase.max_steps=2",
    "phase.datamodule.batch_size=4",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with a data set of four short episodes."""
    root = tmp_path_factory.mktemp("root")
    write_dataset(root / "data", [13, 12, 14, 11])
    return root


def arguments(root: Path, *overrides: str) -> list[str]:
    return [f"paths.root={root}", f"data.name={NAME}", f"data.unnorm_key={NAME}", *overrides]


@pytest.fixture(scope="module")
def run_train(root):
    """Run train.py's main in this process; returns (exit code, what it printed as error)."""
    sys.path.insert(0, str(ROOT))
    main = importlib.import_module("train").main
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*overrides: str, where: Path = root) -> tuple[int, str]:
        folder = where / "runs" / overrides[0].removeprefix("phase=") / str(time.monotonic_ns())
        if not any(override.startswith("hydra.run.dir=") for override in overrides):
            overrides = (*overrides, f"hydra.run.dir={folder}")
        argv, sys.argv = sys.argv, ["train.py", "-cp", str(ROOT / "conf"), *arguments(where, *overrides)]
        try:
            with pytest.MonkeyPatch.context() as patch:
                lines: list[str] = []
                patch.setattr(sys.stderr, "write", lambda text: lines.append(text) or len(text))
                try:
                    entry_point.run(main)
                    code = 0
                except SystemExit as stop:
                    code = stop.code
                return (code, "".join(lines)) if isinstance(code, int) else (1, "".join(lines) + code)
        finally:
            sys.argv = argv

    yield run
    sys.path.remove(str(ROOT))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipeline(root, run_train) -> Path:
    """All phases, once, for both families of tokenizers' first member."""
    for overrides in (
        ["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=3"],
        ["phase=rfsq", "quantizer=dct_d2"],
        ["phase=oft", *SMALL],
        ["phase=head", "quantizer=rfsq_d2", "phase.max_steps=2"],
        ["phase=head", "quantizer=dct_d2", "phase.max_steps=2"],
        ["phase=draft", "quantizer=dct_d2", "phase.max_steps=2", "draft.num_stages=1"],
    ):
        code, error = run_train(*overrides)
        assert code == 0, f"{overrides}: {error}"
    return root


def test_phases_leave_metrics_plots_and_checkpoints(pipeline):
    for phase, plot in (("rfsq", "codec.png"), ("head", "stages.png"), ("draft", "stages.png")):
        finished = list((pipeline / "runs" / phase).glob("*/metrics.json"))
        assert finished
        for metrics in finished:
            assert json.loads(metrics.read_text())
            assert (metrics.parent / plot).stat().st_size > 1000
    published = pipeline / "checkpoints" / "tokenizer" / f"rfsq_d2-{NAME}-t8"
    assert published.is_symlink() and not os.path.isabs(os.readlink(published))
    record = json.loads((published / "checkpoint.json").read_text())
    assert record["provenance"]["unnorm_key"] == NAME and record["provenance"]["command"][0] == "python"


def test_the_cache_is_made_once_for_head_and_draft(pipeline):
    assert len(list((pipeline / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phase=rfsq", "data.root=/nowhere"], "data.root /nowhere does not exist"),
        (["phase=rfsq", "data.name=libero_10_no_noops"], "no data set at"),
        (["phase=oft", "model=oft_spatial"], "model=oft_tiny"),
        (["phase=head", "quantizer=rfsq_d4"], "no tokenizer checkpoint.*python train.py phase=rfsq"),
        (["phase=head", "quantizer=rfsq_d2", "quantizer.num_stages=5"], "num_stages is 2 in the checkpoint but 5"),
        (["phase=draft", "quantizer=dct_d2", "draft.num_stages=3"], "num_stages 3 of the head, but the tokenizer"),
        (["phase=head", "quantizer=dct_d2", "data.unnorm_key=libero_space"], "'libero_space' not in norm_stats"),
        (["phase=rfsq", "chunk=16"], "shorter than|no chunk|at least 16"),
    ],
)
def test_bad_input_is_one_clear_error(pipeline, run_train, overrides, message):
    import re

    code, error = run_train(*overrides)
    assert code == 1
    assert error.startswith("error: ") and re.search(message, error), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("override", "message"),
    [("quantizer=rfsq_d9", "Could not find 'quantizer/rfsq_d9'"), ("no_such_key=1", "Could not override")],
)
def test_an_unknown_group_choice_or_key_is_named(run_train, override, message):
    code, error = run_train("phase=rfsq", override)
    assert code == 1 and message in error and "Traceback" not in error


def test_a_base_model_for_another_chunk_is_refused(pipeline, tmp_path, run_train):
    write_dataset(tmp_path / "data", [40, 40])  # long enough for chunks of 16
    assert run_train("phase=rfsq", "quantizer=dct_d2", "chunk=16", where=tmp_path)[0] == 0
    base = pipeline / "checkpoints" / "base" / f"oft_tiny-{NAME}-t8"
    options = ["phase=head", "quantizer=dct_d2", "chunk=16", f"model.backbone.checkpoint={base}"]
    code, error = run_train(*options, where=tmp_path)
    assert code == 1 and "chunk_length" in error and "16" in error


def test_a_fitted_tokenizer_is_not_trained(run_train):
    code, error = run_train("phase=rfsq", "quantizer=dct_d2", "quantizer.max_steps=5")
    assert code == 1 and "fitted, not trained" in error and "quantizer.max_steps=0" in error


def test_a_run_folder_is_never_overwritten(pipeline, run_train):
    folder = next(metrics.parent for metrics in (pipeline / "runs" / "draft").glob("*/metrics.json"))
    code, error = run_train("phase=draft", "quantizer=dct_d2", f"hydra.run.dir={folder}")
    assert code == 1 and f"already holds a run; continue it with resume={folder}" in error


def test_kill_9_then_resume_equals_an_uninterrupted_run(root, tmp_path):
    """The checkpoint of a run that was killed twice is, byte for byte, that of one that was not."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=120", "save_every=1", "val_every=7"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*extra: str) -> subprocess.Popen:
        command = [sys.executable, "train.py", *arguments(root, *options, *extra)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    process = start(f"hydra.run.dir={whole}")
    assert process.wait() == 0, process.stdout.read().decode()
    extra = f"hydra.run.dir={broken}"
    for _ in range(2):
        process = start(extra)
        state, before = broken / "resume" / "last.ckpt", time.time()
        while process.poll() is None and not (state.exists() and state.stat().st_mtime > before):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        extra = f"resume={broken}"
    process = start(extra)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output
    weights = [(folder / "checkpoint" / "weights.safetensors").read_bytes() for folder in (whole, broken)]
    assert weights[0] == weights[1]


def test_ctrl_c_says_how_to_continue(root, tmp_path):
    options = ["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=100000", "save_every=1"]
    command = [sys.executable, "train.py", *arguments(root, *options, f"hydra.run.dir={tmp_path / 'run'}")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not (tmp_path / "run" / "resume" / "last.ckpt").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1].decode()
    assert process.returncode == 130, error
    assert f"continue with: python train.py resume={tmp_path / 'run'}" in error


def test_multirun_ends_in_one_table(root, tmp_path):
    swept = arguments(root, "phase=rfsq", "quantizer=dct_d2,dct_d3", "chunk=8,4", f"paths.runs={tmp_path / 'runs'}")
    command = [sys.executable, "train.py", "-m", *swept]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "Could not find 'chunk/4'" in result.stderr + result.stdout  # unknown choices are named before anything runs
    command = [argument.replace("chunk=8,4", "chunk=8,16") for argument in command]  # 16 is longer than every episode
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "raised" not in result.stderr
    (table,) = (tmp_path / "runs" / "sweep").glob("*/sweep.csv")
    header, *rows = table.read_text().splitlines()
    assert "mse/1" in header and table.with_name("sweep.html").is_file()
    assert "done" in rows[0] and "failed" in rows[1]
