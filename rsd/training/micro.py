"""phase=draft draft=micro: a draft with eyes of its own, distilled from a base model's chunks.

A small base model and a stage head on its last features learn together what the large one does in each frame: the head
its tokens, the small model's own L1 head its numbers, which teaches the eyes where to look. What surprises first:
nothing of the large model is read but its chunks, so a draft of 1 M parameters is trained in minutes, and the labels
are worth most on frames that the policy visits itself (demonstrator=policy).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rsd.errors import SettingError
from rsd.points import HEAD
from rsd.settings import ChunkLength, Decay, NotNegative, Share, Side, Views, checked
from rsd.stages import StageHead
from rsd.training.eyes import OwnEyes
from rsd.training.given import distilled_frames_of
from rsd.training.stage_head import StageHeadModule
from rsd.types import HiddenStateBatch

MAX_PARAMETERS = 1_500_000  # more is no micro draft: it would cost what it saves


class MicroModule(OwnEyes, StageHeadModule):
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
        self.open_eyes(self.space, instructions)
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
        self._numbers: Tensor | None = None  # the small model's own chunk of the last batch

    def _states(self, batch: HiddenStateBatch) -> Tensor:
        """What the head reads, [B, T, H]; the chunk is kept for the loss."""
        features, self._numbers = self.look_at(batch)  # type: ignore[arg-type]  # the datamodule's are DistilledBatch
        return features

    def training_step(self, batch: HiddenStateBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        assert self._numbers is not None
        error = (self._numbers - self._wanted(batch)).abs().mean()
        self.log("train/l1", error)
        return loss + self.number_weight * error

    def trained(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "weight_decay": self.weight_decay}]

    def exported(self) -> list[nn.Module]:
        return [self.head, self.model]

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the checkpoint, the small model in its folder inside, and the plot; return the metrics."""
        with self.kept_eyes(directory, provenance) as kept:
            return super().export(directory, {**provenance, **kept})
