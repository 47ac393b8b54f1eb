"""A training that diverges stops, says the step, and keeps neither a state nor a checkpoint of it."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from rsd.training.divergence import DivergedError, StopWhenDiverged


class Line(LightningModule):
    """One weight; `broken` says where its numbers end: loss, gradient or metric, at step 3."""

    def __init__(self, broken: str, value: float = torch.nan) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.broken, self.value = broken, value

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).square().mean()
        if self.broken == "gradient" and self.global_step == 2:
            self.weight.register_hook(lambda gradient: gradient * self.value)
        return loss + (self.value if self.broken == "loss" and self.global_step == 2 else 0.0)

    def validation_step(self, batch, batch_idx):
        self.log("val/error", torch.tensor(self.value if self.broken == "metric" else 1.0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module, tmp_path, max_steps=3):
    loader = DataLoader(torch.ones(8, 1), batch_size=1)
    point = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1)
    trainer = Trainer(
        max_steps=max_steps, accelerator="cpu", logger=False, callbacks=[StopWhenDiverged(), point],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=None,
        val_check_interval=max_steps,
    )  # fmt: skip
    trainer.fit(module, loader, loader)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("loss", "at step 3 the loss became NaN or infinite; nothing was published"),
        ("gradient", "at step 3 the weights weight became NaN or infinite"),
        ("metric", "at step 3 val/error of the validation became NaN or infinite"),
    ],
)
def test_it_stops_and_says_the_step(tmp_path, broken, message, value):
    with pytest.raises(DivergedError, match=message):
        fit(Line(broken, value), tmp_path)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["state_dict"]["weight"].isfinite().all()  # the state of a step before it


def test_one_that_does_not_diverge_is_left_alone(tmp_path):
    fit(Line("nothing"), tmp_path)
