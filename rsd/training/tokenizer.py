"""phase=rfsq: train (or, for the transform family, fit) an action tokenizer on chunks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from rsd.errors import SettingError
from rsd.settings import NotNegative, Rate, Seed, checked
from rsd.space import Space
from rsd.tokenizer import ActionTokenizer, BinTokenizer, save_tokenizer
from rsd.tokenizer.loading import MakesTokenizer, for_space
from rsd.tokenizer.report import codec_report
from rsd.training.given import by_space, chunks_of
from rsd.training.plots import plot_codec
from rsd.training.randomness import step_generator
from rsd.training.steps import scheduled
from rsd.types import ChunkBatch


class TokenizerModule(LightningModule):
    """Mean squared error of the full code plus that of a random prefix, so that every depth decodes well.

    Args:
        tokenizer: Freshly built, or what builds it for the action dims of the data. One without trainable weights is
            only fitted; give the trainer max_steps=0 then.
        learning_rate: Peak of a one-cycle schedule over the trainer's max_steps.
        prefix_weight: Weight of the random prefix's error beside the full code's.
        seed: Of the prefix depths; step n draws from (seed, n) alone, so a resumed run repeats an uninterrupted one.
    """

    tokenizer: ActionTokenizer  # made by `setup`, which knows the data's widths

    @checked
    def __init__(
        self,
        *,
        tokenizer: ActionTokenizer | MakesTokenizer,
        learning_rate: Rate,
        prefix_weight: NotNegative,
        seed: Seed,
    ):
        super().__init__()
        if isinstance(tokenizer, ActionTokenizer):
            self.tokenizer = tokenizer
        self._make, self._drawn = tokenizer, torch.get_rng_state()
        self.learning_rate = learning_rate
        self.prefix_weight = prefix_weight
        self.seed = seed
        self._held_out: list[Tensor] = []

    def setup(self, stage: str) -> None:
        datamodule = chunks_of(self.trainer)
        self.space, self.spaces = datamodule.space, datamodule.spaces
        if not hasattr(self, "tokenizer"):
            with torch.random.fork_rng(devices=[]):  # weights do not depend on what reading data draws
                torch.set_rng_state(self._drawn)
                self.tokenizer = for_space(self._make, self._widest())
        if stage == "fit":
            trainable = any(parameter.requires_grad for parameter in self.tokenizer.parameters())
            if not trainable and self.trainer.max_steps > 0:
                raise SettingError(
                    f"{type(self.tokenizer).__name__} is fitted, not trained; it has no weights for "
                    f"{self.trainer.max_steps} steps; set quantizer.max_steps=0"
                )
            shape, found = self.tokenizer.code_shape, tuple(datamodule.train.actions.shape[1:])
            if found != (shape.chunk_length, shape.action_dim):
                raise SettingError(
                    f"quantizer.tokenizer has chunks of (chunk_length, action_dim) = "
                    f"({shape.chunk_length}, {shape.action_dim}), those of the data set are {found}; set both to that"
                )
            self.tokenizer.fit(self._normalized(datamodule.train.actions, datamodule.train.space))

    def _widest(self) -> Space:
        """The space to make a tokenizer for: of a mixture one whose grippers stand between open and closed, if any."""
        return next((one for one in self.spaces if one.between), self.space)

    def _normalized(self, actions: Tensor, space: Tensor | None = None) -> Tensor:
        """Standard chunks [B, T, A] → model space, on the module's device; of a mixture with each chunk's space."""
        return by_space(actions.to(self.device), [one.to_model for one in self.spaces], space)

    def training_step(self, batch: ChunkBatch, batch_idx: int) -> Tensor:
        actions = self._normalized(batch["actions"], batch.get("space"))  # [B, T, A]
        generator = step_generator(self.seed, self.global_step, rank=self.global_rank)
        depth = int(torch.randint(1, self.tokenizer.code_shape.num_stages + 1, (), generator=generator))
        full = (self.tokenizer(actions) - actions).square().mean()
        prefix = (self.tokenizer(actions, depth) - actions).square().mean()
        self.log("train/mse", full, prog_bar=True)
        return full + self.prefix_weight * prefix

    def validation_step(self, batch: ChunkBatch, batch_idx: int) -> None:
        self._held_out.append(self._normalized(batch["actions"], batch.get("space")))

    def on_validation_epoch_end(self) -> None:
        self.report = codec_report(self.tokenizer, torch.cat(self._held_out))
        self._held_out.clear()
        for name in ("mse", "max_error", "gripper_errors", "perplexity", "residual_std"):
            for depth, value in enumerate(self.report[name], start=1):
                self.log(f"val/{name}/{depth}", value)
        self.log("val/gripper_majority_errors", self.report["gripper_majority_errors"])
        self.log("val/mse", self.report["mse"][-1], prog_bar=True)
        self.log("val/bits", float(sum(self.report["bits"])))  # of a chunk, all stages

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | None:
        trainable = [parameter for parameter in self.tokenizer.parameters() if parameter.requires_grad]
        if not trainable:
            return None
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate, weight_decay=0.0)
        return scheduled(optimizer, self.learning_rate, self.trainer.max_steps)

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the checkpoint and the plot beside it; return the metrics of the last validation.

        The metrics hold the codec's report and, as "bins256", that of OpenVLA's bins on the same held-out chunks.
        """
        datamodule = chunks_of(self.trainer)
        tokenizer = self.tokenizer.eval().cpu()
        chunks = self._normalized(datamodule.val.actions, datamodule.val.space).cpu()
        shape = tokenizer.code_shape
        make_bins = partial(BinTokenizer, chunk_length=shape.chunk_length, num_bins=256)
        bins = for_space(make_bins, self._widest())
        metrics = {**codec_report(tokenizer, chunks), "bins256": codec_report(bins, chunks)}
        record = {
            **provenance,
            "unnorm_key": datamodule.space.name,
            "bounds": self.space.bounds,
            "norm_stats": {space.name: dict(space.statistics) for space in self.spaces},
            "code": {"tokens": shape.tokens_per_stage, "bits": shape.bits_per_stage, "num_levels": shape.num_levels},
            "data": datamodule.content_id(),
            "metrics": metrics,
        }
        save_tokenizer(tokenizer, directory, record)
        plot_codec(metrics, metrics["bins256"], Path(directory).parent / "codec.png")
        return metrics
