"""A training that a scheduler asks to end: its state is written at the end of the optimizer step, and it stops."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment

from rsd import requeue


class EndWhenAsked(Callback):
    """Writes the state and raises KeyboardInterrupt, in all processes that train together; see `rsd.requeue`.

    Args:
        state: The file that a resume goes on from.

    Attributes:
        begun: Optimizer steps that were done when this start began to train.
    """

    def __init__(self, state: Path) -> None:
        self.begun = 0
        self._state = state
        self._step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.begun = self._step = trainer.global_step
        requeue.listen()  # Lightning has its own handler by now
        requeue.wait(True)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self._step:  # a batch of several that make a step
            return
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(requeue.asked() is not None, all=False):
            trainer.save_checkpoint(self._state)
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        requeue.wait(False)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        requeue.wait(False)


def started_here() -> list[LightningEnvironment]:
    """Plugins for a trainer that starts its processes itself, inside of a SLURM job, too.

    Lightning would take the job's tasks for them, and requeue the job itself. Outside of a job it would tell everybody
    on whose machine SLURM is to prepend srun.
    """
    if "SLURM_JOB_ID" not in os.environ:
        warnings.filterwarnings("ignore", "The `srun` command is available")
    return [LightningEnvironment()] if SLURMEnvironment.detect() else []
