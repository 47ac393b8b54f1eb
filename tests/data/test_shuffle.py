"""Shuffling that resumes: by itself, and under Lightning's trainer (law 10 for the data's part)."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from rsd.data.shuffle import EpochShuffle, ShuffledLoader

LENGTH, BATCH = 10, 3  # four batches an epoch, the last one of a single row


def _fetch(rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def _loader(num_workers: int = 0) -> ShuffledLoader:
    return ShuffledLoader(LENGTH, _fetch, batch_size=BATCH, seed=7, num_workers=num_workers)


def _rows(batches: object) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def test_order_depends_on_seed_and_epoch_alone():
    first, second = EpochShuffle(100, seed=3), EpochShuffle(100, seed=3)
    second.order()
    assert first.order().tolist() == second.order().tolist()
    assert sorted(first.order().tolist()) == list(range(100))
    epoch_0 = first.order().tolist()
    first.set_epoch(1)
    assert first.order().tolist() != epoch_0
    assert EpochShuffle(100, seed=4).order().tolist() != epoch_0
    first.set_epoch(0)
    assert first.order().tolist() == epoch_0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(num_workers: int):
    whole = _rows(_loader())
    assert len(whole) == len(_loader()) == 4
    for done in range(5):
        loader = _loader(num_workers)
        iterator = iter(loader)
        assert _rows(next(iterator) for _ in range(done)) == whole[:done]
        fresh = _loader(num_workers)
        fresh.load_state_dict(loader.state_dict())
        assert _rows(fresh) == whole[done:]
        assert len(fresh) == 4
        assert _rows(fresh) == whole  # resuming happens once


def test_state_of_another_epoch_starts_afresh():
    loader = _loader()
    next(iter(loader))
    fresh = _loader()
    fresh.load_state_dict(loader.state_dict())
    fresh.sampler.set_epoch(1)
    assert sorted(chain(*_rows(fresh))) == list(range(LENGTH))


class Recorder(LightningModule):
    """Trains one weight, and writes down every batch it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return (self.weight - batch.float()).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def _fit(steps: int, folder: Path, resume: Path | None = None, num_workers: int = 0) -> Recorder:
    module = Recorder()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    trainer.fit(module, _loader(num_workers), ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 8])  # 4 and 8 are ends of epochs
def test_lightning_goes_on_where_it_stopped(tmp_path: Path, stop: int):
    whole = _fit(10, tmp_path / "whole")
    assert sorted(chain(*whole.seen[:4])) == sorted(chain(*whole.seen[4:8])) == list(range(LENGTH))
    assert whole.seen[:4] != whole.seen[4:8]
    first = _fit(stop, tmp_path / "first")
    second = _fit(10, tmp_path / "second", resume=tmp_path / "first" / f"step={stop}.ckpt")
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)  # bit for bit


def test_lightning_goes_on_with_workers(tmp_path: Path):
    whole = _fit(6, tmp_path / "whole")
    first = _fit(2, tmp_path / "first", num_workers=1)
    second = _fit(6, tmp_path / "second", resume=tmp_path / "first" / "step=2.ckpt", num_workers=1)
    assert first.seen + second.seen == whole.seen
