"""Training progress in optimizer steps, with the values that are logged for the progress bar."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from rsd.progress import Progress

LINE_INTERVAL_S = 15.0


class StepProgress(Callback):
    """Shows the step, the values logged with prog_bar=True, and the time left; of several processes, the first does."""

    progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        total, done = trainer.max_steps, trainer.global_step
        self.progress = Progress("steps", total=total, done=done, interval_s=LINE_INTERVAL_S)
        self.progress.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if self.progress is not None and self.progress.due(trainer.global_step):  # values are on the GPU until then
            shown = {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
            self.progress.reach(trainer.global_step, " ".join(f"{name} {value:.4g}" for name, value in shown.items()))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
