"""Training progress in optimizer steps: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_INTERVAL_S = 15.0
REFRESH_INTERVAL_S = 0.25


class StepProgress(Callback):
    """Shows the step, the values logged with prog_bar=True, and the time left."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=not trainer.is_global_zero)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[values]}"), TextColumn("ETA"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, values="")
        self.bar.start()
        self.start_step, self.start_time = trainer.global_step, time.monotonic()
        self.last_shown = self.start_time

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        now, step = time.monotonic(), trainer.global_step
        interval = LINE_INTERVAL_S if self.bar.disable else REFRESH_INTERVAL_S
        if now - self.last_shown < interval and step < trainer.max_steps:
            return
        self.last_shown = now
        shown = {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
        values = " ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.bar.update(self.task, completed=step, values=values)
        if self.bar.disable:
            rate = (step - self.start_step) / max(now - self.start_time, 1e-9)
            left_s = (trainer.max_steps - step) / max(rate, 1e-9)
            self.console.print(f"step {step}/{trainer.max_steps}, {rate:.1f} steps/s, {left_s:.0f} s left, {values}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()
