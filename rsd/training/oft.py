"""phase=oft: behaviour cloning of a small OpenVLA-OFT with L1 on normalised chunks, from RLDS frames.

What surprises first: proprio is normalised with the evaluation's formula here too (the reference zeroes constant dims
in training only, SPEC §9), so that training, caching and evaluation see the same numbers. All randomness of step n,
weights at step 0 included, comes from (seed, n), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from rsd.images import augment, center_crop, resize_lanczos3, stack_pictures
from rsd.models.openvla.backbone import OpenVLABackbone
from rsd.models.openvla.loading import save_backbone
from rsd.models.openvla.model import Architecture, OpenVLAOFT
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.text import WordText
from rsd.models.openvla.vit import ViTShape
from rsd.normalization import normalize

SEED_STRIDE = 1_000_003  # steps of one seed never meet those of the next


class FrameCollate:
    """Frames → one batch, pictures resized to the model's size; runs in the loader's processes.

    Returns:
        {"pictures": [B, M, S, S, 3] uint8, "instructions": list of B, "proprio": [B, P] float32 raw,
        "actions": [B, T, A] float32 standardised}.
    """

    def __init__(self, *, image_size: int, views: Sequence[str]) -> None:
        self.image_size, self.views = image_size, tuple(views)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        observations = [item["observation"] for item in items]
        pictures = stack_pictures([obs.images[view] for obs in observations for view in self.views])
        pictures = resize_lanczos3(pictures, self.image_size)  # [B*M, S, S, 3]
        return {
            "pictures": pictures.view(len(items), len(self.views), *pictures.shape[1:]),
            "instructions": [obs.instruction for obs in observations],
            "proprio": torch.from_numpy(np.stack([obs.proprio for obs in observations])).float(),
            "actions": torch.stack([item["actions"] for item in items]),
        }


class OFTModule(LightningModule):
    """Trains every weight from scratch.

    Args:
        architecture: {"dino", "siglip", "llm"} as in conf/model/oft_tiny.yaml; null for a published model.
        image_size: Pixels of the model's pictures.
        views, use_proprio, chunk_length: The model's inputs and T.
        learning_rate: Of AdamW: linear warm-up over `warmup_steps`, then a cosine to 0 at the trainer's max_steps.
        image_augmentation: Random crop and colours (SPEC §12); validation always sees the centre crop.
        seed: Of weights and augmentation.
    """

    def __init__(
        self,
        *,
        architecture: dict[str, Any] | None,
        image_size: int,
        views: Sequence[str],
        use_proprio: bool,
        chunk_length: int,
        learning_rate: float,
        warmup_steps: int,
        weight_decay: float,
        image_augmentation: bool,
        seed: int,
    ) -> None:
        super().__init__()
        if architecture is None:
            raise ValueError(
                "phase=oft trains a small model from scratch and this model has no architecture to train "
                "(model.architecture is null: a published checkpoint); choose model=oft_tiny"
            )
        self.architecture, self.image_size = architecture, image_size
        self.views, self.use_proprio, self.chunk_length = tuple(views), use_proprio, chunk_length
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps = warmup_steps
        self.image_augmentation, self.seed = image_augmentation, seed

    def setup(self, stage: str) -> None:
        """Build the model for the data set: its vocabulary, statistics and widths."""
        if hasattr(self, "backbone"):
            return
        datamodule = self.trainer.datamodule
        norm_stats = datamodule.norm_stats
        trajectories = datamodule.train.trajectories  # of all splits, so that every task's words are known
        text = WordText.from_instructions(trajectory.instruction for trajectory in trajectories)
        architecture = Architecture(
            dino=ViTShape(image_size=self.image_size, **self.architecture["dino"]),
            siglip=ViTShape(image_size=self.image_size, **self.architecture["siglip"]),
            llm={**self.architecture["llm"], "vocab_size": text.vocab_size, "pad_token_id": text.pad_id},
            action_dim=len(norm_stats["action"]["q01"]),
            proprio_dim=len(norm_stats["proprio"]["q01"]) if self.use_proprio else None,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.model = OpenVLAOFT(architecture)
        self.backbone = OpenVLABackbone(
            model=self.model,
            processor=PrismaticImageProcessor(sizes=[self.image_size] * 2),
            text=text,
            norm_stats=norm_stats,
            unnorm_key=datamodule.name,
            views=self.views,
            chunk_length=self.chunk_length,
            center_crop=True,
            weights_sha256=lambda: "in training",
        )
        actions = np.concatenate([trajectories[index].actions for index in datamodule.train.episodes])
        self.median_action = self._normalized(torch.from_numpy(np.median(actions, axis=0)))  # [A]

    def _normalized(self, actions: Tensor) -> Tensor:
        """Standardised actions [..., A] → normalised, on the module's device."""
        return torch.from_numpy(normalize(actions.cpu().numpy(), self.backbone.norm_stats["action"])).to(self.device)

    def forward(self, batch: dict[str, Any], pictures: Tensor) -> Tensor:
        """The L1 head's chunk for cropped pictures [B*M, S, S, 3], uint8. [B, T, A]."""
        inputs = {
            "pixel_values": self.backbone.pixel_values(pictures),
            **self.backbone.prompts(batch["instructions"]),
        }
        if self.use_proprio:
            inputs["proprio"] = self.backbone.normalized_proprio(batch["proprio"].cpu().numpy())
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        return self.model(**inputs, chunk_length=self.chunk_length, layers=[])[1]

    def training_pictures(self, batch: dict[str, Any]) -> Tensor:
        """Augmented pictures of a training batch, [B*M, S, S, 3], uint8; a function of (seed, step)."""
        pictures = batch["pictures"].flatten(0, 1)
        if not self.image_augmentation:
            return center_crop(pictures)
        return augment(pictures, torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.global_step))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        predicted = self(batch, self.training_pictures(batch))  # [B, T, A]
        loss = (predicted - self._normalized(batch["actions"])).abs().mean()
        self.log("train/l1", loss, prog_bar=True, batch_size=len(predicted))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        predicted = self(batch, center_crop(batch["pictures"].flatten(0, 1)))  # [B, T, A]
        target = self._normalized(batch["actions"])
        metrics = {
            "val/l1": (predicted - target).abs().mean(),
            "val/l1_median_action": (self.median_action.to(target) - target).abs().mean(),
            "val/gripper_accuracy": ((predicted[..., -1] > 0.5) == (target[..., -1] > 0.5)).float().mean(),
        }
        self.log_dict(metrics, batch_size=len(target))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        """Learning rate of a step in parts of the full one."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.trainer.max_steps))))

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, float]:
        """Write the checkpoint folder; return the metrics of the last validation.

        val/l1_median_action is the same error for always predicting the training actions' median: what a model that
        has learned nothing reaches.
        """
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        record = {
            **provenance,
            "unnorm_key": self.backbone.unnorm_key,
            "data": self.trainer.datamodule.train.content_id(),
            "steps": self.trainer.global_step,
            "metrics": metrics,
        }
        save_backbone(Path(directory), self.backbone, record)
        return metrics
