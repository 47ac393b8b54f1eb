"""phase=correction: a small network that corrects what is left of a late chunk by what is seen when it comes.

The label is what the frozen base model itself says of the newest frame: the chunk that would be executed if it were not
late. Nothing of the base model is read but its chunks, and no demonstration's action is: the correction cannot be
better than a base model without a delay, and is held against async=naive, which corrects nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from rsd.errors import SettingError
from rsd.settings import ChunkLength, Decay, NotNegative, Rate, Seed, Share, Side, Stored, Views, Width, checked
from rsd.stages.correction import CorrectionHead, is_left, moved_on, save_correction
from rsd.training.eyes import OwnEyes
from rsd.training.given import LateBatch, late_frames_of
from rsd.training.randomness import step_generator
from rsd.training.steps import scheduled

MAX_PARAMETERS = 1_500_000  # it is to cost little of the time that it makes up for


class CorrectionModule(OwnEyes):
    """L1 distance of the corrected rest to the base model's newest chunk, at a delay that is drawn for each sample.

    Args:
        architecture, image_size, views, use_proprio, chunk_length: Of the small model that sees; see `OFTModule`.
        width: Inside the head; see `CorrectionHead`.
        image_augmentation: Random crop and colours.
        proprio_dropout: Share of samples without proprio.
        number_weight: Weight of the L1 error of the small model's own chunk, which teaches it where to look.
        learning_rate: Peak of a one-cycle schedule over the trainer's max_steps.
        weight_decay: Of AdamW.
        seed: Of weights, delays and augmentation; step n draws from (seed, n) alone.
        weights_dtype: What the exported weights are rounded to, "float32" or "bfloat16".

    Raises:
        SettingError: more than MAX_PARAMETERS.
    """

    head: CorrectionHead  # made by `setup`, which knows the data's widths

    @checked
    def __init__(
        self,
        *,
        architecture: dict[str, Any],
        image_size: Side,
        views: Views,
        use_proprio: bool,
        chunk_length: ChunkLength,
        width: Width,
        image_augmentation: bool,
        proprio_dropout: Share,
        number_weight: NotNegative,
        learning_rate: Rate,
        weight_decay: Decay,
        seed: Seed,
        weights_dtype: Stored = "float32",
    ) -> None:
        super().__init__()
        self.architecture, self.image_size, self.chunk_length = architecture, image_size, chunk_length
        self.views, self.use_proprio = tuple(views), use_proprio
        self.image_augmentation, self.proprio_dropout = image_augmentation, proprio_dropout
        self.width, self.number_weight, self.seed = width, number_weight, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.weights_dtype = getattr(torch, weights_dtype)
        self._errors: list[Tensor] = []  # of a validation, [K, 3] a batch

    def setup(self, stage: str) -> None:
        if hasattr(self, "head"):
            return
        datamodule = late_frames_of(self.trainer)
        self.space, self.max_delay = datamodule.space, datamodule.max_delay
        self.open_eyes(self.space, datamodule.train.instructions())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head = CorrectionHead(
                chunk_length=self.chunk_length,
                action_dim=len(self.space.action),
                hidden_dim=self.model.llm_config.hidden_size,
                width=self.width,
            )
        count = sum(parameter.numel() for parameter in self.parameters())
        if count > MAX_PARAMETERS:
            raise SettingError(
                f"correction {count:,} parameters, expected at most {MAX_PARAMETERS:,}; make "
                "phase.module.architecture or phase.module.width smaller"
            )

    def _left(self, batch: LateBatch, delay: Tensor) -> Tensor:
        """What is left of the chunks of `delay` steps ago, [B, T, A]."""
        rows = torch.arange(len(delay), device=delay.device)
        return moved_on(batch["old_actions"].to(self.device)[rows, delay - 1], delay)

    def training_step(self, batch: LateBatch, batch_idx: int) -> Tensor:
        now, num_old = batch["base_actions"].to(self.device), batch["num_old"].to(self.device)
        generator = step_generator(self.seed, self.global_step, stream=3, rank=self.global_rank)
        drawn = torch.rand(len(num_old), generator=generator).to(self.device)
        delay = 1 + (drawn * num_old).long().clamp_max(self.max_delay - 1)  # [B]  evenly over those that are there
        states, numbers = self.look_at(batch)
        left = self._left(batch, delay)
        known = is_left(delay, now.shape[1]) & (num_old > 0)[:, None]  # [B, T]
        error = (left + self.head(states, left, delay) - now).abs().mean(dim=-1)  # [B, T]
        loss = error.where(known, 0.0).sum() / known.sum().clamp_min(1)
        own = (numbers - now).abs().mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/l1", own)
        return loss + self.number_weight * own

    def validation_step(self, batch: LateBatch, batch_idx: int) -> None:
        now, num_old = batch["base_actions"].to(self.device), batch["num_old"].to(self.device)
        states, _ = self.look_at(batch)
        sums = []
        for steps in range(1, self.max_delay + 1):
            delay = torch.full_like(num_old, steps)
            left = self._left(batch, delay)
            known = is_left(delay, now.shape[1]) & (num_old >= steps)[:, None]
            corrected = left + self.head(states, left, delay)
            errors = [(one - now).abs().mean(dim=-1).where(known, 0.0).sum() for one in (left, corrected)]
            sums.append(torch.stack([*errors, known.sum().to(now)]))
        self._errors.append(torch.stack(sums).cpu())

    def on_validation_epoch_end(self) -> None:
        naive, corrected, count = torch.stack(self._errors).double().sum(dim=0).T  # [K] each
        self._errors.clear()
        means = {"naive_l1": naive / count.clamp_min(1), "corrected_l1": corrected / count.clamp_min(1)}
        self.report: dict[str, Any] = {name: values.tolist() for name, values in means.items()}
        for name, values in self.report.items():
            for delay, value in enumerate(values, start=1):
                self.log(f"val/{name}/{delay}", value)
        self.log("val/corrected_l1", sum(self.report["corrected_l1"]) / self.max_delay, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        return scheduled(optimizer, self.learning_rate, self.trainer.max_steps)

    def exported(self) -> list[nn.Module]:
        return [self.head, self.model]

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the checkpoint with its eyes inside; return the last validation's L1 to the base model's newest chunk,
        by delay, of what is left of a late one (`naive_l1`) and of the same corrected."""
        datamodule = late_frames_of(self.trainer)
        record = {
            **provenance,
            "unnorm_key": self.space.name,
            "space": self.space.digest,
            "base": datamodule.fingerprint,
            "data": datamodule.content_id(),
            "steps": self.trainer.global_step,
            "metrics": self.report,
        }
        with self.kept_eyes(directory, provenance) as kept:
            delays, record = (1, self.max_delay), {**record, **kept}
            save_correction(self.head, directory, delays=delays, provenance=record, dtype=self.weights_dtype)
        return self.report
