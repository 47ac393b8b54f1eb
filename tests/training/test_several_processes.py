"""trainer=ddp, here two processes on the CPU: together they train what one trains with the batches of both."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rsd.data.shuffle import ShuffledLoader
from rsd.record import read_json
from rsd.training.randomness import step_generator
from rsd.training.ranks import RankError, SameRanks, lost_rank
from tests.data.demonstrations import NAME, write_dataset

ROOT = Path(__file__).parents[2]
LENGTH = 37
SMALL = ["phase=oft", "model.image_size=28", "model.architecture.llm.hidden_size=32"]
SMALL += ["model.architecture.llm.intermediate_size=48", "phase.module.image_augmentation=false"]
SMALL += ["phase.max_steps=6", "phase.module.learning_rate=1e-4", "save_every=2"]
TWO_PROCESSES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
TWO_PROCESSES += ["phase.datamodule.batch_size=4"]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_batches_of_one_process(num_ranks: int):
    """Batch n of one process is the union of all ranks' n-th batches, and all have equally many."""
    options = {"fetch": list, "seed": 7}
    whole = list(ShuffledLoader(LENGTH, batch_size=4 * num_ranks, **options))
    loaders = [
        ShuffledLoader(LENGTH, batch_size=4, rank=rank, num_ranks=num_ranks, **options) for rank in range(num_ranks)
    ]
    shares = [list(loader) for loader in loaders]
    assert len({len(share) for share in shares} | {len(loader) for loader in loaders}) == 1
    for batch, *parts in zip(whole[:-1], *shares, strict=False):
        assert sorted(chain(*parts)) == sorted(batch)
    shared = LENGTH // num_ranks * num_ranks
    assert sorted(chain(*chain(*shares))) == sorted(list(chain(*whole))[:shared])
    resumed = ShuffledLoader(LENGTH, batch_size=4, rank=1, num_ranks=num_ranks, **options)
    iterator = iter(loaders[1])
    next(iterator)
    resumed.load_state_dict(loaders[1].state_dict())
    assert list(resumed) == shares[1][1:]


def test_ranks_draw_different_numbers():
    def draw(**choice: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=step_generator(3, 5, **choice)).tolist())

    choices = [{"stream": stream, "rank": rank} for stream in range(2) for rank in range(3)]
    assert len({draw(**choice) for choice in choices}) == len(choices)
    assert draw(stream=1, rank=2) == draw(stream=1, rank=2)


def test_an_error_of_ones_own_is_not_blamed_on_another():
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    trainer = SimpleNamespace(world_size=2, global_rank=0, strategy=SimpleNamespace(launcher=SimpleNamespace()))
    try:
        trainer.strategy.launcher.procs = [running]
        assert lost_rank(trainer, RuntimeError("CUDA out of memory"), go_on="") is None
    finally:
        running.communicate(b"\n")
    assert lost_rank(trainer, RuntimeError("CUDA out of memory"), go_on="") is None
    gone = lost_rank(trainer, RuntimeError("Connection reset by peer"), go_on="python train.py resume=x")
    assert str(gone).startswith("rank 1 of 2 ended with 0") and str(gone).endswith("resume=x")
    trainer.strategy.launcher.procs = []  # a process that another one started
    lost = lost_rank(trainer, RuntimeError("Connection closed by peer"), go_on="python train.py resume=x")
    assert str(lost) == "rank 0 of 2 lost another one; go on with: python train.py resume=x"
    trainer.world_size = 1
    assert lost_rank(trainer, RuntimeError("Connection reset by peer"), go_on="") is None


def test_another_number_of_processes_is_refused_by_name():
    state, two = {}, SimpleNamespace(world_size=2)
    SameRanks().on_save_checkpoint(two, None, state)
    SameRanks().on_load_checkpoint(two, None, state)
    SameRanks().on_load_checkpoint(two, None, {})  # of before it was kept
    with pytest.raises(RankError, match=r"trained by 2 processes, and here are 1, .*set trainer\.devices=2"):
        SameRanks().on_load_checkpoint(SimpleNamespace(world_size=1), None, state)


def start(root: Path, run: str, *overrides: str) -> subprocess.Popen:
    """train.py in a process group of its own."""
    arguments = [f"paths.root={root}", f"data.name={NAME}", f"data.unnorm_key={NAME}", *SMALL, *overrides]
    arguments = [sys.executable, "train.py", *arguments, f"hydra.run.dir={root / 'runs' / run}"]
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    options = {"cwd": ROOT, "env": {**environment, "OMP_NUM_THREADS": "1"}, "start_new_session": True, "text": True}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def train(root: Path, run: str, *overrides: str) -> str:
    """Run it to its end; returns what it prints."""
    with start(root, run, *overrides) as process:
        out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def weights_of(root: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(root / "runs" / run / "checkpoint" / "weights.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_dataset(root / "data", [13, 12, 14, 11])
    return root


@pytest.fixture(scope="module")
def printed(root: Path) -> dict[str, str]:
    """Output of one process with batches of 8, and of two with batches of 4."""
    one = train(root, "one", "phase.datamodule.batch_size=8")
    return {"one": one, "two": train(root, "two", *TWO_PROCESSES)}


@pytest.mark.slow
def test_two_processes_train_what_one_trains(root: Path, printed: dict[str, str]):
    """The same weights up to rounding; run folder, checkpoint and lines on the screen come from one of them."""
    one, two = (weights_of(root, run) for run in ("one", "two"))
    for name, value in one.items():
        assert (two[name] - value).abs().max() < 2e-6, name
    metrics = [read_json(root / "runs" / run / "metrics.json") for run in ("one", "two")]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)
    assert printed["two"].count("run folder:") == 1
    assert len(json.loads((root / "runs" / "two" / "provenance.json").read_text())["starts"]) == 1


@pytest.mark.slow
def test_each_job_of_a_sweep_has_processes_of_its_own(root: Path):
    """The second one trains with the second job's settings, not with the first one's: 2 and 4 steps, or one breaks."""
    place = root / "runs" / "sweep"
    arguments = [f"paths.root={root}", f"data.name={NAME}", f"data.unnorm_key={NAME}", *SMALL, *TWO_PROCESSES]
    command = [sys.executable, "train.py", "-m", *arguments, "phase.max_steps=2,4", f"hydra.sweep.dir={place}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    states = [torch.load(place / str(job) / "resume" / "last.ckpt", weights_only=True) for job in range(2)]
    assert [(state["global_step"], state["world_size"]) for state in states] == [(2, 2), (4, 2)]
    assert [path.parent for path in root.glob("runs/**/sweep.json")] == [place]


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_in_one_line(root: Path):
    saved = root / "runs" / "lost" / "resume" / "last.ckpt"
    with start(root, "lost", *TWO_PROCESSES, "phase.max_steps=100000") as process:
        while not saved.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        (second,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(second), signal.SIGKILL)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in error
    assert "error: rank 1 of 2 ended with -9" in error and f"resume={root / 'runs' / 'lost'}" in error


@pytest.mark.long
def test_two_processes_that_were_killed_go_on(root: Path, printed: dict[str, str]):
    saved = root / "runs" / "killed" / "resume" / "last.ckpt"
    with start(root, "killed", *TWO_PROCESSES) as process:
        while not saved.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (root / "runs" / "killed" / "metrics.json").exists()
    train(root, "killed", *TWO_PROCESSES, f"resume={root / 'runs' / 'killed'}")
    whole, resumed = (weights_of(root, run) for run in ("two", "killed"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
