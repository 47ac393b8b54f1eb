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
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Generator, Tensor

from rsd.decoding import depth_ar
from rsd.models.base_target import executed
from rsd.models.loading import save_stage_head
from rsd.models.stage_head import StageHead
from rsd.normalization import bounds_of, normalize
from rsd.points import point_name
from rsd.tokenizer import ActionTokenizer, load_tokenizer
from rsd.training.calibration import stage_report
from rsd.training.plots import plot_stages
from rsd.training.randomness import step_generator


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
    shown, labels = [], []
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


class StageHeadModule(LightningModule):
    """Cross-entropy of every stage, on true, corrupted and hidden prefixes.

    Args:
        kind: "head" or "draft": what the checkpoint is called.
        tokenizer: Freshly built; filled from `tokenizer_checkpoint`.
        layer: What is read of the base model: a decoder layer's number, or the name of a point (rsd/points.py).
        num_stages: Stages to predict, or None for all of the tokenizer's.
        width, num_layers, num_heads: Of the StageHead.
        labels: Whose chunk the tokens are: "data" for the demonstration's, "base" for the base model's own.
        learning_rate: Peak of a one-cycle schedule over the trainer's max_steps.
        corruption_rate: Probability that a shown token is one level off, in the corrupted half of each batch.
        hidden_rate: Share of batches in which the prefix is cut off at a random stage.
        seed: Of corruption and hiding; step n draws from (seed, n) alone.

    Raises:
        ValueError: `labels` is something else.
    """

    def __init__(
        self,
        *,
        kind: str,
        tokenizer: ActionTokenizer,
        tokenizer_checkpoint: str,
        layer: int | str,
        num_stages: int | None,
        width: int,
        num_layers: int,
        num_heads: int,
        labels: str,
        learning_rate: float,
        corruption_rate: float,
        hidden_rate: float,
        seed: int,
    ):
        super().__init__()
        if labels not in LABELS:
            raise ValueError(f"phase.module.labels is {labels!r}, expected one of {list(LABELS)}")
        self.kind, self.point, self.seed, self.labels = kind, point_name(layer), seed, labels
        self.tokenizer, self.tokenizer_provenance = load_tokenizer(tokenizer, Path(tokenizer_checkpoint))
        self.num_stages = num_stages or self.tokenizer.code_shape.num_stages
        self.size = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
        self.learning_rate = learning_rate
        self.corruption_rate, self.hidden_rate = corruption_rate, hidden_rate
        self.head: StageHead | None = None
        self._outputs: list[tuple[Tensor, ...]] = []

    def setup(self, stage: str) -> None:
        datamodule = self.trainer.datamodule
        if self.tokenizer_provenance["unnorm_key"] != datamodule.unnorm_key:
            raise ValueError(
                f"the tokenizer has the statistics of {self.tokenizer_provenance['unnorm_key']!r}, the hidden states "
                f"those of {datamodule.unnorm_key!r}; train the tokenizer on the same data set"
            )
        self.norm_stats = datamodule.norm_stats
        fitted, bounds = self.tokenizer_provenance["bounds"], bounds_of(self.norm_stats["action"])
        if fitted != bounds:
            raise ValueError(
                f"the tokenizer was fitted with data.bounds {fitted!r}, the base model has {bounds!r}; train the "
                f"tokenizer with data.bounds={bounds}"
            )
        if self.head is None:
            states, hidden_dim = datamodule.state_shape(self.point)
            self.head = StageHead(
                code_shape=self.tokenizer.code_shape,
                hidden_dim=hidden_dim,
                states_per_step=states // self.tokenizer.code_shape.chunk_length,
                num_stages=self.num_stages,
                **self.size,
            )

    def _normalized(self, actions: Tensor) -> Tensor:
        return torch.from_numpy(normalize(actions.cpu().numpy(), self.norm_stats["action"])).to(self.device)

    def _base_chunk(self, batch: dict[str, Any]) -> Tensor:
        """What the robot would execute of the base model's chunk, [B, T, A]."""
        return executed(batch["base_actions"].to(self.device))

    def _wanted(self, batch: dict[str, Any]) -> Tensor:
        """The chunks whose tokens are to be predicted, normalised, [B, T, A]."""
        return self._base_chunk(batch) if self.labels == "base" else self._normalized(batch["actions"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
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
        logits = self.head(self.head.features(batch["hidden"][self.point]), known, 0, self.num_stages)
        loss = self._loss(logits, labels[..., : self.num_stages])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats, averaged over the tokens of a stage, then over the stages."""
        nll = -torch.log_softmax(logits, dim=-1).gather(-1, labels[..., None])[..., 0]  # [B, T, D, Q]
        exists = self.head.levels > 1  # [T, D, Q]
        per_stage = nll.where(exists, 0).sum(dim=(1, 2)) / exists.sum(dim=(0, 1)).clamp_min(1)  # [B, Q]
        return per_stage.mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        actions, base = self._normalized(batch["actions"]), self._base_chunk(batch)
        labels = self.tokenizer.encode(self._wanted(batch))[..., : self.num_stages]
        features = self.head.features(batch["hidden"][self.point])
        logits = self.head(features, labels, 0, self.num_stages)
        greedy = depth_ar(
            lambda known, start, stop: self.head(features, known, start, stop),
            levels=self.head.levels,
            batch_size=len(actions),
        )
        decoded = self.tokenizer.decode(greedy.indices)
        base_l1 = (batch["base_actions"].to(actions) - actions).abs().mean()
        errors = torch.stack([(decoded - actions).abs().mean(), base_l1, (decoded - base).abs().mean()])
        self._outputs.append((logits.cpu(), labels.cpu(), errors.cpu() * len(actions)))

    def on_validation_epoch_end(self) -> None:
        logits, labels, errors = (list(column) for column in zip(*self._outputs, strict=True))
        self._outputs.clear()
        labels = torch.cat(labels)
        self.report: dict[str, Any] = stage_report(torch.cat(logits), labels, self.head.levels.cpu())
        greedy_l1, base_l1, greedy_to_base_l1 = (torch.stack(errors).sum(dim=0) / len(labels)).tolist()
        self.report |= {"greedy_l1": greedy_l1, "base_l1": base_l1, "greedy_to_base_l1": greedy_to_base_l1}
        self.report["num_chunks"] = len(labels)
        for name in ("token_accuracy", "stage_accuracy", "ece", "nll"):
            for stage, value in enumerate(self.report[name], start=1):
                self.log(f"val/{name}/{stage}", value)
        self.log("val/greedy_l1", greedy_l1, prog_bar=True)
        self.log("val/base_l1", base_l1)
        self.log("val/greedy_to_base_l1", greedy_to_base_l1)
        self.log("val/nll", sum(self.report["nll"]) / self.num_stages)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=self.learning_rate, weight_decay=0.01)
        steps = max(1, self.trainer.max_steps)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the checkpoint and the plot beside it; return the metrics of the last validation."""
        datamodule = self.trainer.datamodule
        record = {
            **provenance,
            "unnorm_key": datamodule.unnorm_key,
            "tokenizer": self.tokenizer_provenance["sha256"],
            "base": datamodule.fingerprint,
            "data": datamodule.content_id(),
            "metrics": self.report,
        }
        save_stage_head(self.head, directory, kind=self.kind, point=self.point, provenance=record)
        plot_stages(self.report["token_accuracy"], self.report["ece"], Path(directory).parent / "stages.png")
        return self.report
