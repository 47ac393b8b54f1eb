"""A training that diverges stops, says at which step, and leaves neither a state nor a checkpoint of what is no number.

What surprises first: on a GPU the losses are looked at every INTERVAL steps only, since each look waits for the device;
which step it was is kept on the device, and no state is saved before a look.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from rsd.checkpoint import is_finite
from rsd.errors import RSDError

INTERVAL = 20  # steps between looks at a GPU's losses
NEVER = 2**62
LISTED = 3  # names in a message


class DivergedError(RSDError, ArithmeticError):
    """A loss, a weight or a metric is NaN or infinite."""


class StopWhenDiverged(Callback):
    """Raises DivergedError after the first step whose loss is no number, and where weights or metrics are none."""

    _first: Tensor | None = None  # number of the first step with such a loss, or NEVER

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *args: Any) -> None:
        if outputs is None:
            return
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        step = torch.full((), trainer.global_step, device=loss.device)
        now = torch.where(loss.isfinite(), torch.full_like(step, NEVER), step)
        self._first = now if self._first is None else torch.minimum(self._first, now)
        if loss.device.type == "cpu" or trainer.global_step % INTERVAL == 0:
            self._look()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_weights(trainer, checkpoint["state_dict"])

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_weights(trainer, module.state_dict())

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        broken = sorted(name for name, value in values.items() if not torch.isfinite(torch.tensor(value)))
        if broken:
            raise _diverged(trainer.global_step, f"{', '.join(broken[:LISTED])} of the validation")

    def _look(self) -> None:
        first = NEVER if self._first is None else int(self._first)
        if first != NEVER:
            raise _diverged(first, "the loss")

    def _check_weights(self, trainer: Trainer, weights: dict[str, Tensor]) -> None:
        self._look()
        held = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in weights.items()}
        broken = [name for name, value in held.items() if isinstance(value, Tensor) and not is_finite(value)]
        if broken:
            raise _diverged(trainer.global_step, f"the weights {', '.join(broken[:LISTED])}")


def _diverged(step: int, what: str) -> DivergedError:
    return DivergedError(
        f"training diverged: at step {step} {what} became NaN or infinite; nothing was published. Start anew with a "
        "smaller learning_rate, or look at the data set for extreme values"
    )
