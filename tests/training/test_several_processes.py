"""trainer=gpus, here two processes on the CPU: together they train what one trains with the batches of both."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rsd.data.shuffle import ShuffledLoader
from rsd.training.randomness import step_generator
from tests.data.demonstrations import NAME, write_dataset

ROOT = Path(__file__).parents[2]
LENGTH = 37
SMALL = ["phase=oft", "model.image_size=28", "model.architecture.llm.hidden_size=32"]
SMALL += ["model.architecture.llm.intermediate_size=48", "phase.module.image_augmentation=false"]
TWO_PROCESSES = ["trainer=gpus", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]


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


def train(root: Path, run: str, *overrides: str) -> subprocess.CompletedProcess:
    arguments = [f"paths.root={root}", f"data.name={NAME}", f"data.unnorm_key={NAME}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)
    return subprocess.run(
        [sys.executable, "train.py", *arguments, f"hydra.run.dir={root / 'runs' / run}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_train_what_one_trains(tmp_path: Path):
    """The same weights up to rounding; run folder, checkpoint and lines on the screen come from one of them."""
    write_dataset(tmp_path / "data", [13, 12, 14, 11])
    steps = ["phase.max_steps=4", "phase.module.learning_rate=1e-4"]
    one = train(tmp_path, "one", *SMALL, *steps, "phase.datamodule.batch_size=8")
    two = train(tmp_path, "two", *SMALL, *steps, "phase.datamodule.batch_size=4", *TWO_PROCESSES)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    weights, metrics = [], []
    for run in ("one", "two"):
        weights.append(load_file(tmp_path / "runs" / run / "checkpoint" / "weights.safetensors"))
        metrics.append(json.loads((tmp_path / "runs" / run / "metrics.json").read_text()))
    for name, value in weights[0].items():
        assert (weights[1][name] - value).abs().max() < 2e-6, name
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)
    assert two.stdout.count("run folder:") == 1
    assert len(json.loads((tmp_path / "runs" / "two" / "provenance.json").read_text())["starts"]) == 1
