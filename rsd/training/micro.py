"""phase=draft draft=micro: a draft with eyes of its own, distilled from a base model's chunks.

A small base model and a stage head on its last features learn together what the large one does in each frame: the head
its tokens, the small model's own L1 head its numbers, which teaches the eyes where to look. What surprises first:
nothing of the large model is read but its chunks, so a draft of 1 M parameters is trained in minutes, and the labels
are worth most on frames that the policy visits itself (demonstrator=policy).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsd.checkpoint import JSON_FILE, file_sha256
from rsd.errors import SettingError
from rsd.images import augment, center_crop
from rsd.models.openvla.loading import save_base
from rsd.models.openvla.segments import l1_head
from rsd.points import HEAD
from rsd.settings import ChunkLength, Decay, NotNegative, Share, Side, Views, checked
from rsd.stages import StageHead
from rsd.stages.files import EYES
from rsd.training.given import DistilledBatch, distilled_frames_of
from rsd.training.oft import small_base
from rsd.training.randomness import step_generator
from rsd.training.stage_head import StageHeadModule
from rsd.types import HiddenStateBatch

MAX_PARAMETERS = 1_500_000  # more is no micro draft: it would cost what it saves


class MicroModule(StageHeadModule):
    """A stage head as in `StageHeadModule`, on a small base model that is trained with it.

    Args:
        architecture, image_size, views, use_proprio, chunk_length: Of the small model; see `OFTModule`.
        image_augmentation: Random crop and colours.
        proprio_dropout: Share of samples without proprio.
        number_weight: Weight of the L1 error of the small model's own chunk, beside 1 for the tokens' cross-entropy.
        weight_decay: Of AdamW.
        head: The rest of `StageHeadModule`'s.

    Raises:
        SettingError: another layer or other labels than the base model's, or more than MAX_PARAMETERS.
    """

    @checked
    def __init__(
        self,
        *,
        architecture: dict[str, Any],
        image_size: Side,
        views: Views,
        use_proprio: bool,
        chunk_length: ChunkLength,
        image_augmentation: bool,
        proprio_dropout: Share,
        number_weight: NotNegative,
        weight_decay: Decay,
        **head: Any,
    ) -> None:
        super().__init__(**head)
        if (self.point, self.labels) != (HEAD, "base"):
            raise SettingError(
                f"draft=micro reads {self.point!r} and learns the chunks of {self.labels!r}, expected {HEAD!r}, of its "
                "own small model, and 'base': leave phase.module.layer and phase.module.labels as they are"
            )
        self.architecture, self.image_size, self.chunk_length = architecture, image_size, chunk_length
        self.views, self.use_proprio = tuple(views), use_proprio
        self.image_augmentation, self.proprio_dropout = image_augmentation, proprio_dropout
        self.number_weight, self.weight_decay = number_weight, weight_decay

    def setup(self, stage: str) -> None:
        if hasattr(self, "head"):
            return
        datamodule = distilled_frames_of(self.trainer)
        self.space = datamodule.space
        self.require_space()
        instructions = datamodule.train.instructions()
        self.eyes = small_base(
            self.architecture,
            image_size=self.image_size,
            views=self.views,
            use_proprio=self.use_proprio,
            chunk_length=self.chunk_length,
            space=self.space,
            instructions=instructions,
            seed=self.seed,
        )
        self.model = self.eyes.model
        self.head = StageHead(
            code_shape=self.tokenizer.code_shape,
            hidden_dim=self.model.llm_config.hidden_size,
            states_per_step=1,
            num_stages=self.num_stages,
            **self.size,
        )
        count = sum(parameter.numel() for parameter in self.parameters())
        if count > MAX_PARAMETERS:
            raise SettingError(
                f"draft {count:,} parameters, expected at most {MAX_PARAMETERS:,}; make draft.architecture smaller"
            )
        self.prompts = self.eyes.prompts(sorted(set(instructions)))
        self.prompt_rows = {text: row for row, text in enumerate(sorted(set(instructions)))}
        self._numbers: Tensor | None = None  # the small model's own chunk of the last batch

    def _states(self, batch: HiddenStateBatch) -> Tensor:
        """What the head reads, [B, T, H]; the chunk is kept for the loss."""
        frames: DistilledBatch = batch  # type: ignore[assignment]  # the datamodule's
        pictures = frames["pictures"].flatten(0, 1)  # [B*M, S, S, 3]
        if self.training and self.image_augmentation:
            pictures = augment(pictures, step_generator(self.seed, self.global_step, stream=1, rank=self.global_rank))
        else:
            pictures = center_crop(pictures)
        rows = [self.prompt_rows[text] for text in frames["instructions"]]
        inputs = {"pixel_values": self.eyes.pixel_values(pictures)}
        inputs |= {name: value[rows] for name, value in self.prompts.items()}
        if self.use_proprio:
            proprio = self.eyes.normalized_proprio([*frames["proprio"].cpu().numpy()])  # [B, P]
            if self.training and self.proprio_dropout:
                generator = step_generator(self.seed, self.global_step, stream=2, rank=self.global_rank)
                proprio = proprio * (torch.rand(len(proprio), generator=generator) >= self.proprio_dropout)[:, None]
            inputs["proprio"] = proprio
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        last = self.model.num_layers
        states, _ = self.model(**inputs, chunk_length=self.eyes.chunk_length, layers=[last])
        features = l1_head(self.model).features(states[last])
        self._numbers = l1_head(self.model).chunk(features)
        return features

    def training_step(self, batch: HiddenStateBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        assert self._numbers is not None
        error = (self._numbers - self._wanted(batch)).abs().mean()
        self.log("train/l1", error)
        return loss + self.number_weight * error

    def trained(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "weight_decay": self.weight_decay}]

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the checkpoint, the small model in its folder inside, and the plot; return the metrics."""
        eyes = directory.with_name(EYES)
        save_base(eyes, self.eyes, {**provenance, "unnorm_key": self.space.name})
        report = super().export(directory, {**provenance, EYES: file_sha256(eyes / JSON_FILE)})
        eyes.rename(directory / EYES)
        return report
