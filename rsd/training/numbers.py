"""phase=draft draft=numbers: train a readout in numbers on cached hidden states.

The loss is the mean absolute difference to a chunk, as that of OpenVLA-OFT's own head (arXiv 2502.19645, §IV). With
labels="base" it is the base model's chunk, a function of the very states that the readout sees the beginnings of: this
is distillation in numbers, and no tokenizer has a part in it. What surprises first: the loss is on the numbers as they
are said, the metrics are on what a robot executes of them, clipped and with the gripper open or closed, so that they
compare with those of a draft in tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from rsd.errors import SettingError
from rsd.points import point_name
from rsd.settings import ChunkLength, Depth, Point, Rate, Stored, Width, checked
from rsd.space import Space
from rsd.stages import NumberHead
from rsd.stages.base_chunk import executed
from rsd.stages.files import save_numbers
from rsd.stages.head import check_heads
from rsd.training.given import gripper_accuracy, hidden_states_of
from rsd.training.rounded import Rounded
from rsd.training.stage_head import LABELS
from rsd.training.steps import scheduled
from rsd.types import HiddenStateBatch


class NumberHeadModule(Rounded):
    """L1 distance of a readout in numbers to a chunk.

    Args:
        layer: What is read of the base model: a layer's number, or the name of a point (rsd/points.py).
        chunk_length: T of the base model.
        width, num_layers, num_heads: Of the NumberHead.
        labels: Whose chunk it learns to say: "base" for the base model's own, "data" for the demonstration's.
        learning_rate: Peak of a one-cycle schedule over the trainer's max_steps.
        weights_dtype: What the exported weights are rounded to, "float32" or "bfloat16".

    Raises:
        SettingError: `labels` is something else, or the width does not divide into heads.
    """

    head: NumberHead  # made by `setup`, which knows the data's widths

    @checked
    def __init__(
        self,
        *,
        layer: Point,
        chunk_length: ChunkLength,
        width: Width,
        num_layers: Depth,
        num_heads: Depth,
        labels: str,
        learning_rate: Rate,
        weights_dtype: Stored = "float32",
    ):
        super().__init__()
        if labels not in LABELS:
            raise SettingError(f"phase.module.labels is {labels!r}, expected one of {list(LABELS)}")
        check_heads("num_heads", num_heads, width)
        self.point, self.chunk_length, self.labels = point_name(layer), chunk_length, labels
        self.size = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
        self.learning_rate, self.weights_dtype = learning_rate, getattr(torch, weights_dtype)
        self._outputs: list[Tensor] = []  # metrics of a batch, times its rows

    def setup(self, stage: str) -> None:
        datamodule = hidden_states_of(self.trainer)
        self.space: Space = datamodule.space
        if not hasattr(self, "head"):
            states, hidden_dim = datamodule.state_shape(self.point)
            self.head = NumberHead(
                chunk_length=self.chunk_length,
                action_dim=len(self.space.action),
                hidden_dim=hidden_dim,
                states_per_step=states // self.chunk_length,
                **self.size,
            )

    def _said(self, batch: HiddenStateBatch) -> Tensor:
        return self.head(batch["hidden"][self.point])  # [B, T, A]

    def _wanted(self, batch: HiddenStateBatch) -> Tensor:
        """The chunks that are to be said, model space, [B, T, A]."""
        if self.labels == "base":
            return batch["base_actions"].to(self.device)
        return self.space.to_model(batch["actions"].to(self.device))

    def training_step(self, batch: HiddenStateBatch, batch_idx: int) -> Tensor:
        loss = (self._said(batch) - self._wanted(batch)).abs().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: HiddenStateBatch, batch_idx: int) -> None:
        both = self._said(batch), batch["base_actions"].to(self.device)
        said, base = (executed(one, self.space.action.grippers, self.space.between) for one in both)
        actions = self.space.to_model(batch["actions"].to(self.device))
        distances = [(one - other).abs().mean() for one, other in ((said, base), (said, actions), (base, actions))]
        found = torch.stack([*distances, gripper_accuracy(said, base, self.space.action.grippers)])
        self._outputs.append(torch.cat([found.cpu() * len(said), torch.tensor([float(len(said))])]))

    def on_validation_epoch_end(self) -> None:
        *sums, count = torch.stack(self._outputs).double().sum(dim=0).tolist()
        self._outputs.clear()
        names = ("said_to_base_l1", "said_l1", "base_l1", "gripper_of_base")
        self.report: dict[str, Any] = {name: value / count for name, value in zip(names, sums, strict=True)}
        for name, value in self.report.items():
            self.log(f"val/{name}", value, prog_bar=name == names[0])
        self.report["num_chunks"] = int(count)
        self.report["num_parameters"] = sum(parameter.numel() for parameter in self.head.parameters())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.trained(), lr=self.learning_rate)
        return scheduled(optimizer, self.learning_rate, self.trainer.max_steps)

    def trained(self) -> list[dict[str, Any]]:
        """Groups of parameters."""
        return [{"params": list(self.head.parameters()), "weight_decay": 0.01}]

    def exported(self) -> list[nn.Module]:
        return [self.head]

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the checkpoint; return the metrics of the last validation."""
        datamodule = hidden_states_of(self.trainer)
        record = {
            **provenance,
            "unnorm_key": self.space.name,
            "base": datamodule.fingerprint,
            "data": datamodule.content_id(),
            "metrics": self.report,
        }
        save_numbers(self.head, directory, point=self.point, provenance=record, dtype=self.weights_dtype)
        return self.report
