"""phase=head and phase=draft: train a stage head on cached hidden states.

A head that only ever sees true prefixes has no idea what to do after a wrong one. So prefixes are corrupted in
training, and the label of a stage is the residual of the prefix that was actually shown: later stages learn to repair
earlier ones.

What surprises first: the tokens to predict need not be those of the demonstrations. With labels="base" they are those
of the base model's own chunk, which is a function of the very states that the head reads. The target then says in
tokens what the base model says in numbers, and a draft guesses what that target will say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Generator, Tensor, nn

from rsd.checkpoint import CheckpointError
from rsd.decoding import DRAFT, DepthAR, Noise
from rsd.errors import SettingError
from rsd.points import point_name
from rsd.settings import Depth, Point, Rate, Seed, Share, Stored, Width, checked
from rsd.space import Space
from rsd.stages import Absent, HeadLogits, StageHead
from rsd.stages.base_chunk import executed
from rsd.stages.files import save_stage_head
from rsd.stages.head import check_heads
from rsd.tokenizer import ActionTokenizer, load_tokenizer
from rsd.tokenizer.loading import MakesTokenizer
from rsd.training.calibration import stage_report
from rsd.training.given import hidden_states_of
from rsd.training.plots import plot_stages
from rsd.training.randomness import step_generator
from rsd.training.rounded import Rounded
from rsd.training.steps import scheduled
from rsd.types import HiddenStateBatch


def corrupted_labels(
    tokenizer: ActionTokenizer, actions: Tensor, rate: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Prefixes with errors in them, and what should follow each.

    Args:
        actions: Normalised chunks, [B, T, A].
        rate: Probability that a token of a shown prefix is one level off.

    Returns:
        (shown, labels), both [B, T, D, Q], int64: labels[..., q] is the greedy digit after shown[..., :q].
    """
    levels = torch.tensor(tokenizer.code_shape.levels, device=actions.device)  # [T, D, Q]
    shown: list[Tensor] = []
    labels: list[Tensor] = []
    for stage in range(levels.shape[-1]):
        prefix = torch.stack(shown, dim=-1) if shown else None
        label = tokenizer.encode(actions, prefix)[..., stage]  # [B, T, D]
        hit = torch.rand(label.shape, generator=generator).to(label.device) < rate
        shift = torch.randint(0, 2, label.shape, generator=generator).to(label.device) * 2 - 1
        wrong = (label + shift).clamp_min(0).minimum(levels[..., stage] - 1)
        labels.append(label)
        shown.append(torch.where(hit, wrong, label))
    return torch.stack(shown, dim=-1), torch.stack(labels, dim=-1)


LABELS = ("data", "base")


class StageHeadModule(Rounded):
    """Cross-entropy of every stage, on true, corrupted and hidden prefixes.

    Args:
        kind: "head" or "draft": what the checkpoint is called.
        tokenizer: Freshly built, or what builds it; filled from `tokenizer_checkpoint`.
        layer: What is read of the base model: a layer's number, or the name of a point (rsd/points.py).
        num_stages: Stages to predict, or None for all of the tokenizer's.
        width, num_layers, num_heads: Of the StageHead.
        labels: Whose chunk the tokens are: "data" for the demonstration's, "base" for the base model's own.
        learning_rate: Peak of a one-cycle schedule over the trainer's max_steps.
        corruption_rate: Probability that a shown token is one level off, in the corrupted half of each batch.
        hidden_rate: Share of batches in which the prefix is cut off at a random stage.
        seed: Of corruption and hiding; step n draws from (seed, n) alone.
        weights_dtype: What the exported weights are rounded to, "float32" or "bfloat16".

    Raises:
        ValueError: `labels` is something else.
    """

    head: StageHead  # made by `setup`, which knows the data's widths

    @checked
    def __init__(
        self,
        *,
        kind: Literal["head", "draft"],
        tokenizer: ActionTokenizer | MakesTokenizer,
        tokenizer_checkpoint: str,
        layer: Point,
        num_stages: Depth | None,
        width: Width,
        num_layers: Depth,
        num_heads: Depth,
        labels: str,
        learning_rate: Rate,
        corruption_rate: Share,
        hidden_rate: Share,
        seed: Seed,
        weights_dtype: Stored = "float32",
    ):
        super().__init__()
        if labels not in LABELS:
            raise SettingError(f"phase.module.labels is {labels!r}, expected one of {list(LABELS)}")
        check_heads("num_heads", num_heads, width)
        self.kind, self.point, self.seed, self.labels = kind, point_name(layer), seed, labels
        self.loaded = load_tokenizer(Path(tokenizer_checkpoint), expected=tokenizer)
        self.tokenizer = self.loaded.tokenizer
        self.num_stages = num_stages or self.tokenizer.code_shape.num_stages
        self.size = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
        self.learning_rate, self.weights_dtype = learning_rate, getattr(torch, weights_dtype)
        self.corruption_rate, self.hidden_rate = corruption_rate, hidden_rate
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []  # logits, labels and errors of a batch

    def setup(self, stage: str) -> None:
        datamodule = hidden_states_of(self.trainer)
        self.space: Space = datamodule.space
        self.require_space()
        if not hasattr(self, "head"):
            states, hidden_dim = datamodule.state_shape(self.point)
            self.head = StageHead(
                code_shape=self.tokenizer.code_shape,
                hidden_dim=hidden_dim,
                states_per_step=states // self.tokenizer.code_shape.chunk_length,
                num_stages=self.num_stages,
                **self.size,
            )

    def require_space(self) -> None:
        """Raise CheckpointError unless tokenizer and data mean the same numbers."""
        if (difference := self.loaded.difference(self.space)) is not None:
            raise CheckpointError(
                f"the tokenizer and the hidden states do not mean the same numbers: {difference}; train the tokenizer "
                f"on the same data set, with data.bounds={self.space.bounds}"
            )

    def _normalized(self, actions: Tensor) -> Tensor:
        return self.space.to_model(actions.to(self.device))

    def _base_chunk(self, batch: HiddenStateBatch) -> Tensor:
        """What the robot would execute of the base model's chunk, [B, T, A]."""
        return executed(batch["base_actions"].to(self.device), self.tokenizer.grippers, self.tokenizer.between)

    def _wanted(self, batch: HiddenStateBatch) -> Tensor:
        """The chunks whose tokens are to be predicted, normalised, [B, T, A]."""
        return self._base_chunk(batch) if self.labels == "base" else self._normalized(batch["actions"])

    def training_step(self, batch: HiddenStateBatch, batch_idx: int) -> Tensor:
        actions = self._wanted(batch)  # [B, T, A]
        generator = step_generator(self.seed, self.global_step, rank=self.global_rank)
        half = len(actions) // 2
        true, corrupted = actions[:half], actions[half:]
        shown_true, labels_true = corrupted_labels(self.tokenizer, true, 0.0, generator)
        shown_bad, labels_bad = corrupted_labels(self.tokenizer, corrupted, self.corruption_rate, generator)
        known, labels = torch.cat([shown_true, shown_bad]), torch.cat([labels_true, labels_bad])  # [B, T, D, Q]
        if torch.rand((), generator=generator) < self.hidden_rate:
            cut = int(torch.randint(0, self.num_stages, (), generator=generator))
            unseen = self.tokenizer.encode(actions, known[..., :cut])[..., cut:]
            labels = torch.cat([labels[..., :cut], unseen], dim=-1)
            known = known[..., :cut]
        logits = self.head(self.head.features(self._states(batch)), known, 0, self.num_stages)
        loss = self._loss(logits, labels[..., : self.num_stages])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _states(self, batch: HiddenStateBatch) -> Tensor:
        """What the head reads, [B, K or T, H]."""
        return batch["hidden"][self.point]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats, averaged over the tokens of a stage, then over the stages."""
        nll = -torch.log_softmax(logits, dim=-1).gather(-1, labels[..., None])[..., 0]  # [B, T, D, Q]
        exists = self.head.levels > 1  # [T, D, Q]
        per_stage = nll.where(exists, 0).sum(dim=(1, 2)) / exists.sum(dim=(0, 1)).clamp_min(1)  # [B, Q]
        return per_stage.mean()

    def validation_step(self, batch: HiddenStateBatch, batch_idx: int) -> None:
        actions, base = self._normalized(batch["actions"]), self._base_chunk(batch)
        labels = self.tokenizer.encode(self._wanted(batch))[..., : self.num_stages]
        features = self.head.features(self._states(batch))
        logits = self.head(features, labels, 0, self.num_stages)
        target, noise = HeadLogits(self.head, features), Noise([0] * len(actions), self.device)
        greedy = DepthAR().run(target, Absent(DRAFT), self.head.levels, noise)
        decoded = self.tokenizer.decode(greedy.indices)
        base_l1 = (batch["base_actions"].to(actions) - actions).abs().mean()
        errors = torch.stack([(decoded - actions).abs().mean(), base_l1, (decoded - base).abs().mean()])
        self._outputs.append((logits.cpu(), labels.cpu(), errors.cpu() * len(actions)))

    def on_validation_epoch_end(self) -> None:
        logits = torch.cat([logits for logits, _, _ in self._outputs])  # [N, T, D, Q, L]
        labels = torch.cat([labels for _, labels, _ in self._outputs])  # [N, T, D, Q]
        errors = torch.stack([errors for _, _, errors in self._outputs])
        self._outputs.clear()
        greedy_l1, base_l1, greedy_to_base_l1 = (errors.sum(dim=0) / len(labels)).tolist()
        self.report: dict[str, Any] = {
            **stage_report(logits, labels, self.head.levels.cpu()),
            "greedy_l1": greedy_l1,
            "base_l1": base_l1,
            "greedy_to_base_l1": greedy_to_base_l1,
            "num_chunks": len(labels),
            "num_parameters": sum(parameter.numel() for parameter in self.head.parameters()),
        }
        for name in ("token_accuracy", "stage_accuracy", "ece", "nll"):
            for stage, value in enumerate(self.report[name], start=1):
                self.log(f"val/{name}/{stage}", value)
        self.log("val/greedy_l1", greedy_l1, prog_bar=True)
        self.log("val/base_l1", base_l1)
        self.log("val/greedy_to_base_l1", greedy_to_base_l1)
        self.log("val/nll", sum(self.report["nll"]) / self.num_stages)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.trained(), lr=self.learning_rate)
        return scheduled(optimizer, self.learning_rate, self.trainer.max_steps)

    def trained(self) -> list[dict[str, Any]]:
        """Groups of parameters."""
        return [{"params": list(self.head.parameters()), "weight_decay": 0.01}]

    def exported(self) -> list[nn.Module]:
        return [self.head]

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the checkpoint and the plot beside it; return the metrics of the last validation."""
        datamodule = hidden_states_of(self.trainer)
        record = {
            **provenance,
            "unnorm_key": datamodule.space.name,
            "tokenizer": self.loaded.sha256,
            "base": datamodule.fingerprint,
            "data": datamodule.content_id(),
            "metrics": self.report,
        }
        save_stage_head(
            self.head, directory, kind=self.kind, point=self.point, provenance=record, dtype=self.weights_dtype
        )
        plot_stages(self.report["token_accuracy"], self.report["ece"], Path(directory).parent / "stages.png")
        return self.report
