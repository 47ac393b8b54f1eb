"""Fine-tuning of a published OpenVLA with LoRA: OFT's recipe (L1 on chunks) and the original one (action tokens).

Sources: SPEC §14 (openvla-oft @ 213c5ff, openvla @ c8f03f4, vla-scripts/finetune.py).

What surprises first: a checkpoint to resume from holds what is trained and not the frozen 7B; and all randomness of a
micro batch comes from (seed, its number), so a resumed run equals an uninterrupted one. Proprio is normalised with the
evaluation's formula (see rsd/training/oft.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from rsd.checkpoint import CheckpointError
from rsd.errors import SettingError
from rsd.images import augment, center_crop
from rsd.models.openvla.action_tokens import decode_action_ids
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.lora import adapter_files, add_lora, merge_lora
from rsd.models.openvla.pretrained import Pretrained, load_pretrained, save_pretrained
from rsd.models.openvla.token_loss import token_rows
from rsd.points import point_name
from rsd.settings import ChunkLength, Count, Dtype, Natural, Rate, Seed, Views, Width, checked
from rsd.space import Space
from rsd.training.given import (
    FrameBatch,
    by_space,
    frames_of,
    gripper_accuracy,
    median_actions,
    normalized_proprio,
    of_sample,
)
from rsd.training.randomness import step_generator

MERGE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of the largest output; bfloat16 rounds merged weights


class FinetuneModule(LightningModule):
    """Trains adapters and heads of a published model.

    Args:
        checkpoint, hub_id: What to start from; an original OpenVLA, or an OFT checkpoint to train further.
        action_head: "l1" for OFT's recipe, "autoregressive" for the original one (chunk 1, one image, no proprio).
        views, use_proprio, chunk_length: The model's inputs and T.
        learning_rate: Of AdamW, constant up to `decay_step`, a tenth of it from there on.
        decay_step: Optimizer step; null for a constant rate.
        warmup_steps: From a tenth of the rate to the whole of it; 0 for none.
        rank: Of the adapters; their scale is min(rank, 16) / rank.
        image_augmentation: Random crop and colours; validation sees the centre crop.
        gradient_checkpointing: Recompute the language model's layers in the backward pass: less memory, a third slower.
        dtype: Of the frozen weights, "bfloat16" or "float32".
        seed: Of adapters, heads and augmentation.
    """

    @checked
    def __init__(
        self,
        *,
        checkpoint: str,
        hub_id: str | None,
        action_head: str,
        views: Views,
        use_proprio: bool,
        chunk_length: ChunkLength,
        learning_rate: Rate,
        decay_step: Count | None,
        warmup_steps: Natural,
        rank: Width,
        image_augmentation: bool,
        gradient_checkpointing: bool,
        dtype: Dtype,
        seed: Seed,
    ) -> None:
        super().__init__()
        if action_head not in ("l1", "autoregressive"):
            raise SettingError(f"action_head {action_head!r} cannot be fine-tuned; expected 'l1' or 'autoregressive'")
        if action_head == "autoregressive" and (chunk_length != 1 or use_proprio or len(views) != 1):
            raise SettingError(
                f"the original recipe takes one image, no proprio and chunks of 1; got views {list(views)}, "
                f"use_proprio {use_proprio}, chunk_length {chunk_length}; set chunk=1 model=openvla_7b"
            )
        self.checkpoint, self.hub_id, self.action_head = checkpoint, hub_id, action_head
        self.views, self.use_proprio, self.chunk_length = tuple(views), use_proprio, chunk_length
        self.learning_rate, self.decay_step, self.warmup_steps = learning_rate, decay_step, warmup_steps
        self.rank, self.image_augmentation = rank, image_augmentation
        self.gradient_checkpointing, self.weights_dtype, self.seed = gradient_checkpointing, getattr(torch, dtype), seed
        self.strict_loading = False  # frozen weights are not in the checkpoints; on_load_checkpoint checks the others

    def setup(self, stage: str) -> None:
        """Load the published model and give it adapters, heads and the data set's statistics."""
        if hasattr(self, "base"):
            return
        if self.weights_dtype != torch.float32 and not self.trainer.precision.endswith("-mixed"):
            raise SettingError(
                f"frozen weights in {self.weights_dtype} need a mixed precision, since adapters and heads are float32; "
                f"the trainer's is {self.trainer.precision!r}: set trainer=finetune, or phase.module.dtype=float32"
            )
        self.spaces, space = frames_of(self.trainer).spaces, frames_of(self.trainer).space
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            device = self.trainer.strategy.root_device
            self.pretrained = self.load(space, "cpu" if device is None else device)
            self.model = self.pretrained.model
            add_lora(self.model, rank=self.rank)
        if self.gradient_checkpointing:
            self.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.base = OpenVLABase(
            model=self.model,
            processor=self.pretrained.processor,
            text=self.pretrained.text,
            space=space,
            views=self.views,
            chunk_length=self.chunk_length,
            center_crop=True,
            weights_sha256=lambda: "in training",
        )
        instructions = frames_of(self.trainer).train.instructions()
        self.base.check_instructions(list(instructions), instructions)
        self.median_actions = median_actions(frames_of(self.trainer))  # [K, A]

    def load(self, space: Space, device: str | torch.device) -> Pretrained:
        """The published model to start from, with the heads that these actions and proprio need.

        Raises:
            CheckpointError: it is not there, damaged, or has heads of other widths.
        """
        return load_pretrained(
            checkpoint=self.checkpoint,
            hub_id=self.hub_id,
            action_head=self.action_head,
            action_dim=len(space.action),
            proprio_dim=len(space.proprio) if self.use_proprio and space.proprio is not None else None,
            device=device,
            dtype=self.weights_dtype,
        )

    def _gripper(self, predicted: Tensor, targets: Tensor, space: Tensor | None) -> dict[str, Tensor]:
        """Accuracy of the gripper, and that of always saying what it mostly does in training."""
        majority = of_sample(self.median_actions.to(targets), space).expand_as(targets)
        grippers = self.base.space.action.grippers
        return {
            "gripper_accuracy": gripper_accuracy(predicted, targets, grippers),
            "gripper_majority": gripper_accuracy(majority, targets, grippers),
        }

    def _inputs(self, batch: FrameBatch, pictures: Tensor) -> dict[str, Tensor]:
        """Model inputs for cropped pictures [B*M, S, S, 3], uint8; no floating one but the pixels' dtype matters."""
        inputs = {"pixel_values": self.base.pixel_values(pictures.cpu())}
        if self.use_proprio:
            inputs["proprio"] = normalized_proprio(batch, self.base, self.spaces)  # [B, P]
        return {name: value.to(self.device, self.weights_dtype) for name, value in inputs.items()}

    def _targets(self, batch: FrameBatch) -> Tensor:
        actions = batch["actions"].to(self.device)  # [B, T, A]
        return by_space(actions, [one.to_model for one in self.spaces], batch.get("space"))

    def _losses(self, batch: FrameBatch, pictures: Tensor) -> dict[str, Tensor]:
        """The loss, first, and what else is worth seeing."""
        inputs, targets, space = self._inputs(batch, pictures), self._targets(batch), batch.get("space")
        if self.action_head == "autoregressive":
            prompts = [self.base.text.encode(text) for text in batch["instructions"]]
            ids, labels = token_rows(prompts, targets, self.base.text.pad_id)
            ids, labels = ids.to(self.device), labels.to(self.device)
            logits, wanted = self.model.token_logits(inputs["pixel_values"], ids, labels)
            chosen = logits.argmax(dim=-1)
            actions = chosen.view(len(targets), -1)[:, :-1]  # without the stop token
            decoded = decode_action_ids(actions).view_as(targets)  # [B, T, A]
            l1 = (decoded - targets).abs().mean()
            accuracy = (chosen == wanted).float().mean()
            loss = F.cross_entropy(logits.float(), wanted)
            return {"loss": loss, "token_accuracy": accuracy, "l1": l1, **self._gripper(decoded, targets, space)}
        texts = {name: value.to(self.device) for name, value in self.base.prompts(batch["instructions"]).items()}
        predicted = self.model(**inputs, **texts, chunk_length=self.chunk_length, layers=[])[1]
        loss = (predicted.float() - targets).abs().mean()
        return {"loss": loss, "l1": loss.detach(), **self._gripper(predicted, targets, space)}

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        pictures = batch["pictures"].flatten(0, 1)
        micro_batches = self.trainer.accumulate_grad_batches
        number = self.global_step * micro_batches + batch_idx % micro_batches
        generator = step_generator(self.seed, number, rank=self.global_rank)
        pictures = augment(pictures, generator) if self.image_augmentation else center_crop(pictures)
        losses = self._losses(batch, pictures)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(batch["actions"]))
        return losses["loss"]

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        losses = self._losses(batch, center_crop(batch["pictures"].flatten(0, 1)))
        self.log_dict({f"val/{name}": value for name, value in losses.items()}, batch_size=len(batch["actions"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        """Learning rate of a step in parts of the full one; unlike the reference's, the decay outlives a warm-up."""
        warm = 1.0 if step >= self.warmup_steps else 0.1 + 0.9 * step / self.warmup_steps
        return warm * (0.1 if self.decay_step is not None and step >= self.decay_step else 1.0)

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = self._trained_names()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        strange = sorted(self._trained_names() ^ checkpoint["state_dict"].keys())
        if strange:
            raise CheckpointError(
                f"the run to resume trained other weights than this one: {len(strange)} differ, such as {strange[:3]}; "
                "resume with the settings that it was started with"
            )

    def trained_with(self) -> dict[str, Any]:
        """What no other file of the published layout says; see `rsd.models.openvla.published.TRAINING_FILE`."""
        return {
            "action_head": self.action_head,
            "views": list(self.views),
            "use_proprio": self.use_proprio,
            "chunk_length": self.chunk_length,
            "phase": "oft_lora" if self.action_head == "l1" else "openvla_lora",
        }

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, float]:
        """Merge the adapters, check the merged model, write it in the published layout; return validation metrics.

        The adapters go into its folder lora_adapter, as peft writes them.
        """
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self.eval()
        datamodule = frames_of(self.trainer)
        observations = [datamodule.val[row]["observation"] for row in range(min(2, len(datamodule.val)))]
        inputs, last = self.base.prepare(observations), point_name(self.base.model.num_layers)

        mixed = self.weights_dtype != torch.float32  # heads and adapters are float32

        def probe() -> Tensor:
            with torch.autocast(self.device.type, dtype=self.weights_dtype, enabled=mixed):
                return self.base.look(inputs).at(last)

        adapters = adapter_files(self.model, base_name=self.hub_id or self.pretrained.directory.name)
        metrics["merge_difference"] = merge_lora(self.model, probe, tolerance=MERGE_TOLERANCE[self.weights_dtype])
        statistics = {space.name: dict(space.statistics) for space in self.spaces}
        save_pretrained(
            Path(directory),
            self.pretrained,
            statistics=statistics,
            step=self.trainer.global_step,
            training=self.trained_with() | {"data": datamodule.content_id()},
            others=adapters,
        )
        return metrics
