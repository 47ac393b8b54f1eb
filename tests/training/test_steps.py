"""Learning rates over few steps, by hand, and trainings of no step at all."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from rsd.errors import SettingError
from rsd.training.steps import RequireSteps, one_cycle, require_whole


class OneWeight(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(batches, **limits):
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    trainer = Trainer(accelerator="cpu", callbacks=[RequireSteps()], **quiet, **limits)
    trainer.fit(OneWeight(), torch.utils.data.DataLoader(torch.ones(batches)))
    return trainer.global_step


@pytest.mark.parametrize(("batches", "limits", "done"), [(2, {"max_epochs": 1}, 2), (0, {"max_epochs": -1}, 0)])
def test_fewer_steps_than_planned_are_no_training(batches, limits, done):
    with pytest.raises(SettingError, match=f"ended after {done} of 3 steps, and nothing is published"):
        fit(batches, max_steps=3, **limits)


def test_all_planned_steps_are_one():
    assert fit(2, max_steps=3, max_epochs=-1) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fast_dev_run", True),
        ("fast_dev_run", 2),
        ("limit_train_batches", 1),
        ("limit_train_batches", 0.5),
        ("limit_val_batches", 0),
        ("overfit_batches", 1),
    ],
)
def test_a_part_of_the_data_is_no_training(name, value):
    with pytest.raises(SettingError, match=rf"^trainer\.({name}|limit_val_batches) is .* leave out trainer\."):
        require_whole(Trainer(accelerator="cpu", logger=False, max_steps=3, **{name: value}))
    require_whole(Trainer(accelerator="cpu", logger=False, max_steps=3, limit_train_batches=1.0))


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 20, 100])
def test_any_number_of_steps_has_a_learning_rate_for_each(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = one_cycle(optimizer, 1.0, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 1 for rate in rates)


def test_ten_steps_are_the_only_ones_that_are_not_lightnings_own():
    """pct_start 0.1 of ten steps ends the rise at the first of them."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ZeroDivisionError):
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10, pct_start=0.1)
    for steps in (11, 100):
        own = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=0.1)
        assert one_cycle(optimizer, 1.0, steps)._schedule_phases == own._schedule_phases
