"""train.py as a user runs it: the phases in their order on a toy data set, and what bad input gets.

Most runs share this process; those that are killed have one of their own.
"""

import csv
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd.commands import entry_point
from rsd.points import draft_folder
from rsd.record import line_of, sealed
from rsd.training.trials import repeat_first
from tests.callbacks import KEEP_RETURNED, RETURNED_FILE
from tests.data.demonstrations import NAME, write_dataset

ROOT = Path(__file__).parents[1]
SMALL = [
    "model.image_size=28",
    "model.architecture.llm.hidden_size=32",
    "model.architecture.llm.intermediate_size=48",
    "phase.max_steps=2",
    "phase.datamodule.batch_size=4",
]
LEARNED_TOKENS = ["visual_tokens=learned", "visual_tokens.num_tokens=2"]  # of four a view


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
    train = importlib.import_module("train")
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
                    entry_point.run(train.main, train.CONFIG)
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
        ["phase=tokens", *LEARNED_TOKENS, "model.image_size=28", "phase.max_steps=2", "phase.datamodule.batch_size=4"],
        ["phase=correction", "phase.max_steps=2", "phase.datamodule.max_delay=2", "phase.datamodule.batch_size=4"],
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
    assert len({*(pipeline / "cache").iterdir()} - {pipeline / "cache" / "statistics"}) == 1


def test_drafts_at_several_layers_come_from_one_command_and_have_names_of_their_own(pipeline, run_train, capsys):
    overrides = ("phase=draft", "quantizer=dct_d2", "phase.max_steps=2", "draft.num_stages=1")
    folder = pipeline / "runs" / "several"
    code, error = run_train(*overrides, "draft.layer=[2,3]", f"hydra.run.dir={folder}")
    assert code == 0, error
    table = capsys.readouterr().out
    assert all(f"layer.{point}/greedy_to_base_l1" in table for point in (2, 3))
    plain = pipeline / "checkpoints" / "draft" / f"oft_tiny-early-dct_d2-{NAME}-t8"
    for point in (2, 3):
        name = plain.with_name(f"{plain.name}-layer.{point}")
        assert name.resolve() == folder / f"layer.{point}" / "checkpoint"
        assert json.loads((name / "checkpoint.json").read_text())["config"]["point"] == f"layer.{point}"
        assert draft_folder(plain, point) == name
    assert draft_folder(plain, 4) == draft_folder(plain, None) == plain
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"layer.2/greedy_l1", "layer.3/greedy_l1", "layer.3/ece/1"} <= metrics.keys()
    before = plain.resolve()
    code, error = run_train(*overrides, "draft.layer=2")  # the newest draft of a point is the one that is found
    assert code == 0, error
    assert draft_folder(plain, 2).resolve() not in (before, folder / "layer.2" / "checkpoint")
    assert plain.resolve() == before


def test_drafts_in_numbers_come_from_the_same_cache_without_a_tokenizer(pipeline, run_train, capsys):
    folder = pipeline / "runs" / "in_numbers"
    made = ("phase=draft", "draft=numbers", "quantizer=dct_d4", "phase.max_steps=2")  # a tokenizer that nobody has made
    code, error = run_train(*made, "draft.layer=[2,3]", f"hydra.run.dir={folder}")
    assert code == 0, error
    table = capsys.readouterr().out
    assert all(f"layer.{point}/said_to_base_l1" in table for point in (2, 3))
    assert not (pipeline / "checkpoints" / "tokenizer" / f"dct_d4-{NAME}-t8").exists()
    for point in (2, 3):
        name = pipeline / "checkpoints" / "draft" / f"oft_tiny-numbers-dct_d4-{NAME}-t8-layer.{point}"
        assert name.resolve() == folder / f"layer.{point}" / "checkpoint"
        config = json.loads((name / "checkpoint.json").read_text())["config"]
        assert (config["readout"], config["point"]) == ("numbers", f"layer.{point}")


def test_heads_on_fewer_picture_tokens_have_a_cache_and_a_name_of_their_own(pipeline, run_train):
    before = {*(pipeline / "cache").iterdir()}
    code, error = run_train("phase=head", "quantizer=dct_d2", "phase.max_steps=2", *LEARNED_TOKENS)
    assert code == 0, error
    (cache,) = {*(pipeline / "cache").iterdir()} - before
    stored = json.loads((cache / "cache.json").read_text())
    assert stored["content"]["base"]["visual_tokens"]["kind"] == "learned"
    assert "visual_tokens=learned visual_tokens.num_tokens=2" in stored["command"]
    head = pipeline / "checkpoints" / "head" / f"oft_tiny-learned2-dct_d2-{NAME}-t8" / "checkpoint.json"
    assert json.loads(head.read_text())["provenance"]["base"] == stored["content"]["base"]
    code, error = run_train(
        "phase=head", "quantizer=dct_d2", "phase.max_steps=2", f"phase.datamodule.cache.directory={cache}"
    )
    assert code == 1 and "is the cache of another model or data set: base.visual_tokens: cache {'kind'" in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phase=tokens"], "phase=tokens trains visual_tokens=learned, and visual_tokens=all is chosen"),
        (["phase=tokens", "visual_tokens=grid"], "and visual_tokens=grid is chosen"),
        (["phase=tokens", *LEARNED_TOKENS[:1]], "num_tokens is 16, and the model has 4 tokens a view"),
        (["phase=oft", "visual_tokens=grid"], "phase=oft trains a base model with all of its picture tokens"),
        (["phase=head", "quantizer=dct_d2", "visual_tokens=grid"], "num_tokens is 16, and the model has 4 tokens a vi"),
        (["phase=head", "quantizer=dct_d2", "visual_tokens.num_tokens=2"], "is 2, and visual_tokens=all keeps every"),
        (
            ["phase=head", "quantizer=dct_d2", "visual_tokens=learned", "visual_tokens.num_tokens=3"],
            "no visual_tokens checkpoint.*make it with: python train.py phase=tokens visual_tokens=learned",
        ),
        (["phase=rfsq", "data.root=/nowhere"], "data.root /nowhere does not exist"),
        (["phase=rfsq", "data.name=libero_10_no_noops"], "no data set at"),
        (["phase=oft", "model=oft_spatial"], "model=oft_tiny"),
        (["phase=head", "quantizer=rfsq_d4"], "no tokenizer checkpoint.*python train.py phase=rfsq"),
        (["phase=head", "quantizer=rfsq_d2", "quantizer.num_stages=5"], "num_stages is 2 in the checkpoint but 5"),
        (["phase=draft", "quantizer=dct_d2", "draft.num_stages=3"], "num_stages 3 of the head, but the tokenizer"),
        (
            ["phase=draft", "quantizer=dct_d2", "draft=random"],
            "draft=random is a control, and there is nothing to train",
        ),
        (
            ["phase=draft", "quantizer=dct_d2", "draft=oracle"],
            "draft=oracle is a control, and there is nothing to train",
        ),
        (["phase=head", "quantizer=dct_d2", "data.unnorm_key=libero_space"], "'libero_space' not in norm_stats"),
        (["phase=rfsq", "chunk=16"], "shorter than|no chunk|at least 16"),
        (["phase=rfsq", "chunk=0"], "chunk is 0, expected a whole number of control steps, 1 or more: chunk=8"),
        (["phase=rfsq", "chunk=2.5"], "chunk is 2.5, expected a whole number"),
        (["phase=rfsq", "chunk='8'"], "chunk is '8', expected a whole number"),
        (["phase=rfsq", "data.root=${no_such_key}"], "Interpolation key 'no_such_key' not found"),
        (["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=0"], "max_steps is 0, and the weights would be publ"),
        (["phase=oft", *SMALL, "phase.max_steps=0"], "phase.max_steps is 0, and the weights would be published untra"),
        (["phase=head", "quantizer=dct_d2", "phase.max_steps=0"], "phase.max_steps is 0, and the weights would be pub"),
        (["phase=oft", *SMALL, "trainer.max_steps=0"], "max_steps is 0, and the weights would be published untrained"),
        (
            ["phase=rfsq", "quantizer=rfsq_d2", "quantizer.tokenizer.chunk_length=4"],
            r"= \(4, 7\), those .* are \(8, 7\)",
        ),
        (["phase=head", "quantizer=dct_d2", "phase.module.kind=abc"], "phase.module.kind is 'abc', expected one of h"),
        (["phase=oft", *SMALL, "trainer.strategy=abc"], "trainer cannot be made: .*'abc'"),
        (["phase=oft", *SMALL, "trainer.devices=[1]"], "trainer cannot be made: `devices` selected with `CPUAccel"),
        (["phase=oft", *SMALL, "device=gpu0"], "device is 'gpu0', expected cpu, cuda or cuda:N"),
    ],
)
def test_bad_input_is_one_clear_error(pipeline, run_train, overrides, message):
    code, error = run_train(*overrides)
    assert code == 1
    assert error.startswith("error: ") and re.search(message, error), error
    assert "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer=gpu", "trainer.accelerator is 'gpu', but torch sees no GPU here; set trainer=cpu"),
        ("trainer=ddp", "trainer.accelerator is 'gpu', but torch sees no GPU here; set trainer=cpu"),
        ("device=cuda", "device is 'cuda', but torch sees no GPUs here; set device=cpu"),
    ],
)
def test_a_gpu_that_is_not_there_is_said_before_a_run_begins(run_train, tmp_path, override, message):
    code, error = run_train("phase=oft", *SMALL, override, f"hydra.run.dir={tmp_path}/run")
    assert code == 1 and message in error and "Traceback" not in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_ten_steps_are_a_training_like_any_other(pipeline, run_train):
    assert run_train("phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=10") == (0, "")


@pytest.mark.parametrize(
    ("phase", "learning_rate"),
    [
        (["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=30"], "phase.module.learning_rate"),
        (["phase=oft", *SMALL, "phase.max_steps=30"], "phase.module.learning_rate"),
        (["phase=head", "quantizer=dct_d2", "phase.max_steps=30"], "phase.module.learning_rate"),
        (["phase=draft", "quantizer=dct_d2", "phase.max_steps=30", "draft.num_stages=1"], "phase.module.learning_rate"),
    ],
)
def test_a_training_that_diverges_publishes_nothing(pipeline, run_train, tmp_path, phase, learning_rate):
    """Nor does it leave a state of what is no number, and the good checkpoint stays."""
    links = {path: path.resolve() for path in (pipeline / "checkpoints").glob("*/*")}
    run_dir = tmp_path / "run"
    code, error = run_train(*phase, f"{learning_rate}=1e30", "save_every=1", f"hydra.run.dir={run_dir}")
    assert code == 1 and re.search(r"error: training diverged: at step \d+ .* became NaN or infinite", error), error
    assert not (run_dir / "checkpoint").exists()
    assert {path: path.resolve() for path in (pipeline / "checkpoints").glob("*/*")} == links
    for state in (run_dir / "resume").glob("*.ckpt"):
        weights = torch.load(state, weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quantizer=rfsq_d9", "Could not find 'quantizer/rfsq_d9'"),
        ("no_such_key=1", "Could not override"),
        ("accept=levels", "accept= is given, and nothing here accepts tokens; choose decoding=speculative, which"),
        (
            "text.sentences.source=folder",
            "text.sentences is given, and text=words knows none; add text=sentence",
        ),
    ],
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
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, error = run_train("phase=draft", "quantizer=dct_d2", f"hydra.run.dir={folder}")
    assert code == 1 and f"already holds a run; continue it with resume={folder}" in error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before  # no log, nothing of Hydra's


@pytest.mark.slow
def test_ctrl_c_then_kill_9_then_resume_equals_an_uninterrupted_run(root, tmp_path):
    """The checkpoint of a run that was ended twice is, byte for byte, that of one that was not."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=120", "save_every=1", "val_every=7"]
    options.append(f"paths.checkpoints={tmp_path}/checkpoints")  # those of the root are the other tests'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*extra: str) -> subprocess.Popen:
        command = [sys.executable, "train.py", *arguments(root, *options, *extra)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    process = start(f"hydra.run.dir={whole}")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    extra = f"hydra.run.dir={broken}"
    for stop, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(extra)
        state, before = broken / "resume" / "last.ckpt", time.time()
        while process.poll() is None and not (state.exists() and state.stat().st_mtime > before):
            time.sleep(0.02)
        process.send_signal(stop)
        output, _ = process.communicate()
        assert process.returncode == code, output
        if stop == signal.SIGINT:
            assert f"continue with: python train.py resume={broken}" in output
        extra = f"resume={broken}"
    process = start(extra)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    weights = [(folder / "checkpoint" / "weights.safetensors").read_bytes() for folder in (whole, broken)]
    assert weights[0] == weights[1]


def test_a_missing_phase_is_one_line_that_lists_them():
    result = subprocess.run([sys.executable, "train.py"], cwd=ROOT, capture_output=True, text=True)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1 and line.startswith("error: choose a phase: phase=correction phase=draft ")
    assert "--help" in line and result.stdout == ""


def sweep(root: Path, *swept: str) -> tuple[int, str, str, Path]:
    """train.py -m as a process of its own; returns (exit code, stdout, stderr, the sweep's folder)."""
    command = [sys.executable, "train.py", "-m", *arguments(root, *swept)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    (folder,) = (root / "runs" / "sweep").iterdir()
    return result.returncode, result.stdout, result.stderr, folder


@pytest.fixture
def own_root(root, tmp_path) -> Path:
    """The data set of `root`, and no checkpoint."""
    (tmp_path / "data").symlink_to(root / "data")
    return tmp_path


@pytest.mark.slow
def test_multirun_ends_in_one_table(own_root):
    """Chunks of 16 are longer than every episode; so nothing is published, and each command is named that does it."""
    code, out, error, folder = sweep(own_root, "phase=rfsq", "quantizer=dct_d2,dct_d3", "chunk=8,16")
    assert code == 1 and "raised" not in error
    header, *rows = (folder / "sweep.csv").read_text().splitlines()
    assert header.startswith("run,quantizer,chunk,status,published,mse/1") and (folder / "sweep.html").is_file()
    assert [row.split(",")[:5] for row in rows] == [
        ["0", "dct_d2", "8", "done", "no"],
        ["1", "dct_d2", "16", "failed", ""],
        ["2", "dct_d3", "8", "done", "no"],
        ["3", "dct_d3", "16", "failed", ""],
    ]
    assert not (own_root / "checkpoints").exists()
    assert f"dct_d3-{NAME}-t8, made by job 2; publish one with: python -m rsd.commands.sweep" in out


@pytest.mark.long
def test_jobs_of_a_multirun_do_not_publish_over_each_other(own_root):
    """Two learning rates share a name, and neither takes it; the name that one quantizer has alone is published."""
    options = ["phase=rfsq", "quantizer=rfsq_d2", "quantizer.max_steps=2", "phase.module.learning_rate=1e-3,5e-3"]
    code, out, error, folder = sweep(own_root, *options)
    assert code == 0, error
    name = own_root / "checkpoints" / "tokenizer" / f"rfsq_d2-{NAME}-t8"
    assert not name.exists()
    assert f"not published: {name}, made by jobs 0, 1; publish one with: " in out
    published = [row.split(",")[3] for row in (folder / "sweep.csv").read_text().splitlines()]
    assert published == ["published", "no", "no"]

    command = [sys.executable, "-m", "rsd.commands.sweep", str(folder), "--publish", "1"]
    command += ["--checkpoints", str(own_root / "checkpoints")]  # as the line says
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0
    assert name.resolve() == (folder / "1" / "checkpoint").resolve()
    published = [row.split(",")[3] for row in (folder / "sweep.csv").read_text().splitlines()]
    assert published == ["published", "no", str(name)]

    command = [sys.executable, "train.py", f"resume={folder / '0'}"]  # which does not take the name from job 1 either
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0
    assert name.resolve() == (folder / "1" / "checkpoint").resolve()
    rows = [row.split(",")[2:4] for row in (folder / "sweep.csv").read_text().splitlines()]
    assert rows == [["status", "published"], ["done", "no"], ["done", str(name)]]


def test_main_returns_the_first_shown_metric_of_the_last_stage(own_root, run_train):
    assert run_train("phase=rfsq", "quantizer=dct_d3", KEEP_RETURNED, where=own_root)[0] == 0
    (metrics,) = own_root.glob("runs/rfsq/*/metrics.json")
    values = json.loads(metrics.read_text())
    assert json.loads((metrics.parent / RETURNED_FILE).read_text()) == values["mse/3"] < values["mse/1"]


@pytest.fixture(scope="module")
def head_run(pipeline, run_train, tmp_path_factory) -> Path:
    """A root of its own, with all that a head is trained from, and a finished run of phase=head in it."""
    root = tmp_path_factory.mktemp("head") / "root"
    shutil.copytree(pipeline, root, symlinks=True)
    options = ["phase=head", "quantizer=rfsq_d2", "phase.max_steps=2", f"hydra.run.dir={root}/run"]
    code, error = run_train(*options, where=root)
    assert code == 0, error
    return root


def edit_bounds(root: Path) -> None:
    record = root / "checkpoints" / "base" / f"oft_tiny-{NAME}-t8" / "checkpoint.json"
    content = json.loads(record.read_text())
    content["config"]["norm_stats"][NAME]["action"]["q99"][0] *= 1.001
    record.resolve().write_text(json.dumps(sealed(content)))  # as another training would have left it


def edit_tokenizer(root: Path) -> None:
    folder = root / "checkpoints" / "tokenizer"
    (folder / f"rfsq_d2-{NAME}-t8").unlink()
    (folder / f"rfsq_d2-{NAME}-t8").symlink_to(os.readlink(folder / f"dct_d2-{NAME}-t8"))


def edit_data(root: Path) -> None:
    shutil.rmtree(root / "data")
    write_dataset(root / "data", [13, 12, 14, 11, 12])


def edit_cache(root: Path) -> None:
    for index in root.glob("cache/*/head/index.jsonl"):  # those of another choice of picture tokens, too
        entries = [json.loads(line) for line in index.read_text().splitlines()]
        for entry in entries:
            shard = index.with_name(entry["file"])
            save_file({name: values * 0.5 for name, values in load_file(shard).items()}, shard)
            entry["bytes"], entry["sha256"] = shard.stat().st_size, hashlib.sha256(shard.read_bytes()).hexdigest()
        index.write_bytes(b"".join(map(line_of, entries)))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_bounds, r"base .* is another one: digest \w{12} → \w{12}.*\. Put that back"),
        (edit_tokenizer, r"tokenizer .* is another one: digest \w{12} → \w{12}, folder: \S+/rfsq/\S+ → \S+/rfsq/"),
        (edit_data, r"data .* is another one: digest \w{12} → \w{12}, .*num_episodes: 4 → 5, num_steps: 50 → 62"),
        (edit_cache, r"has read the hidden states \w{12} of .*, and .* holds \w{12}: it was made anew"),
    ],
)
def test_a_resume_is_refused_where_the_run_would_read_something_else(head_run, run_train, tmp_path, edit, message):
    shutil.copytree(head_run, tmp_path / "root", symlinks=True)
    edit(tmp_path / "root")
    run_dir = tmp_path / "root" / "run"
    code, error = run_train(f"resume={run_dir}", f"hydra.run.dir={run_dir}", where=tmp_path / "root")
    assert code == 1 and re.search(message, error) and "Traceback" not in error, error


def test_a_run_goes_on_elsewhere_with_its_paths_overridden(head_run, run_train, tmp_path):
    """The run folder, data and checkpoints lie in other places than at the first start, and are the same."""
    root = tmp_path / "another machine"
    shutil.copytree(head_run, root, symlinks=True)
    run_dir = root / "run"
    (run_dir / "metrics.json").unlink()
    typed = [f"resume={run_dir}", f"hydra.run.dir='{run_dir}'", f"data.root='{root}/data'"]
    code, error = run_train(*typed, where=root)
    assert code == 0 and (run_dir / "metrics.json").is_file(), error
    code, error = run_train(*typed, "phase.max_steps=3", where=root)
    assert code == 1 and "phase.max_steps: 2 → 3" in error and "paths" not in error and "data.root" not in error


def test_suite_is_not_needed_where_no_simulator_is(pipeline, tmp_path, run_train):
    """A data set of one's own: its configuration names no suite."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    own = tmp_path / "conf" / "data" / "mine.yaml"
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    shutil.copytree(pipeline, tmp_path / "root", symlinks=True)
    shutil.rmtree(tmp_path / "root" / "cache")
    own.write_text(f"name: {NAME}\nunnorm_key: {NAME}\n")  # as before there was a layout
    code, error = run_train("phase=rfsq", "data=mine", search, where=tmp_path / "root")
    assert code == 1 and "begin its file with the lines defaults:, - _rlds, - _self_" in error
    own.write_text(f"defaults: [_rlds, _self_]\nname: {NAME}\n")
    for phase in (["rfsq", "quantizer=dct_d2"], ["oft", *SMALL], ["head", "quantizer=dct_d2", "phase.max_steps=2"]):
        options = [f"phase={phase[0]}", *phase[1:], "data=mine", search]
        code, error = run_train(*options, where=tmp_path / "root")
        assert code == 0, error
    commands = {json.loads(path.read_text())["command"] for path in tmp_path.glob("root/cache/*/cache.json")}
    assert f"python scripts/cache_hidden_states.py model=oft_tiny data={NAME} chunk=8" in commands


def lines_of(folder):
    """Rows of a run's curves."""
    (path,) = folder.glob("csv/**/metrics.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("choice", "quantizer"),
    [
        ("fast", "rfsq_d2"),
        pytest.param("fast", "dct_d2", marks=pytest.mark.slow),
        pytest.param("profile", "rfsq_d2", marks=pytest.mark.slow),
    ],
)
def test_a_trial_runs_to_its_checkpoint_and_publishes_nothing(run_train, root, tmp_path, capfd, choice, quantizer):
    shutil.copytree(root / "data", tmp_path / "data")
    folder = tmp_path / "trial"
    overrides = ["phase=rfsq", f"quantizer={quantizer}", f"debug={choice}", f"hydra.run.dir={folder}"]
    code, error = run_train(*overrides, "phase.datamodule.batch_size=8", where=tmp_path)
    assert code == 0, error
    printed = capfd.readouterr()
    assert "a trial (debug=): nothing is published" in printed.out
    assert ("Profiler Report" in printed.out + printed.err + error) == (choice == "profile")
    assert (folder / "checkpoint" / "checkpoint.json").is_file() and (folder / "metrics.json").is_file()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart(run_train, root, tmp_path):
    shutil.copytree(root / "data", tmp_path / "data")
    folder = tmp_path / "trial"
    code, error = run_train(
        "phase=rfsq", "quantizer=rfsq_d2", "debug=overfit", f"hydra.run.dir={folder}", where=tmp_path
    )
    assert code == 0, error
    losses = [float(line["train/mse"]) for line in lines_of(folder) if line["train/mse"]]
    assert len(losses) == 20 and losses[-1] < 0.01 * losses[0]


def test_a_trial_gives_the_same_batches_in_every_epoch():
    class Module:
        def __init__(self):
            self.epochs = 0

        def train_dataloader(self):
            self.epochs += 1
            return iter([[self.epochs, number] for number in range(5)])

    module = Module()
    repeat_first(module, 2)
    loader = module.train_dataloader()
    assert len(loader) == 2 and list(loader) == list(loader) == [[1, 0], [1, 1]]
