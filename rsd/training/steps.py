"""The optimizer steps of a training: that there are any, and the learning rate over them.

What surprises first: no step at all is right for a tokenizer without weights, which is fitted. Anything else would be
published as it was drawn at random.
"""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from rsd.errors import SettingError

WARM = 0.1  # share of the steps in which the learning rate rises


class RequireSteps(Callback):
    """Raises SettingError where weights would be published that no step has trained, or fewer steps than planned."""

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.max_steps == 0 and any(parameter.requires_grad for parameter in module.parameters()):
            raise SettingError(
                "phase.max_steps is 0, and the weights would be published untrained; expected 1 or more steps "
                "(of phase=rfsq quantizer.max_steps)"
            )

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            raise SettingError(
                f"training ended after {trainer.global_step} of {trainer.max_steps} steps, and nothing is published; "
                "leave out what ends it early (trainer.max_epochs, max_time), or plan fewer steps"
            )


def require_whole(trainer: Trainer) -> None:
    """See that a training takes all steps, and all of the data, that its record says.

    Raises:
        SettingError: the trainer is to take a part: what is published would pass for that of the whole.
    """
    whole = {"fast_dev_run": False, "overfit_batches": 0.0, "limit_train_batches": 1.0, "limit_val_batches": 1.0}
    for name, expected in whole.items():
        value = getattr(trainer, name)
        if value != expected or type(value) is not type(expected):  # 1.0 is all of them, 1 is one batch
            raise SettingError(
                f"trainer.{name} is {value}, and what is published would pass for trained and judged on all of the "
                f"data; leave out trainer.{name}; debug=fast is a trial that publishes nothing"
            )


def one_cycle(optimizer: Optimizer, peak: float, steps: int) -> OneCycleLR:
    """A learning rate that rises to its peak in the first tenth of the steps, and then falls to the last one."""
    warm = WARM if WARM * steps != 1 else WARM / 2  # a rise that ends at the first step would be divided by 0
    return OneCycleLR(optimizer, peak, total_steps=max(1, steps), pct_start=warm)


def scheduled(optimizer: Optimizer, peak: float, steps: int) -> OptimizerLRSchedulerConfig:
    """What `configure_optimizers` returns: the optimizer, with `one_cycle` taking a step with each of its own."""
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": one_cycle(optimizer, peak, steps), "interval": "step"},
    }
