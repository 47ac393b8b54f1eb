"""Eyes of its own for what is trained beside a large base model: a small base model that learns together with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsd.checkpoint import JSON_FILE, file_sha256
from rsd.images import augment, center_crop
from rsd.models.openvla.loading import save_base
from rsd.models.openvla.segments import l1_head
from rsd.space import Space
from rsd.stages.files import EYES
from rsd.training.given import FrameBatch
from rsd.training.oft import small_base
from rsd.training.randomness import step_generator
from rsd.training.rounded import Rounded


class OwnEyes(Rounded):
    """A module with a small base model, `eyes`, whose weights are its own.

    A subclass says what it is made of: `architecture`, `image_size`, `views`, `use_proprio` and `chunk_length` as in
    `OFTModule`; `image_augmentation` and `proprio_dropout` (share of samples) for training; and `seed`.
    """

    architecture: dict[str, Any]
    image_size: int
    views: tuple[str, ...]
    use_proprio: bool
    chunk_length: int
    image_augmentation: bool
    proprio_dropout: float
    seed: int
    space: Space

    def open_eyes(self, space: Space, instructions: Mapping[str, str]) -> None:
        """Make the small model, for a space and for these instructions with where each stands."""
        self.eyes = small_base(
            self.architecture,
            image_size=self.image_size,
            views=self.views,
            use_proprio=self.use_proprio,
            chunk_length=self.chunk_length,
            space=space,
            instructions=instructions,
            seed=self.seed,
        )
        self.model = self.eyes.model
        self.prompts = self.eyes.prompts(sorted(set(instructions)))
        self.prompt_rows = {text: row for row, text in enumerate(sorted(set(instructions)))}

    def look_at(self, batch: FrameBatch) -> tuple[Tensor, Tensor]:
        """What the small model sees, one state a step [B, T, H], and the chunk that it would say, [B, T, A]."""
        pictures = batch["pictures"].flatten(0, 1)  # [B*M, S, S, 3]
        if self.training and self.image_augmentation:
            pictures = augment(pictures, step_generator(self.seed, self.global_step, stream=1, rank=self.global_rank))
        else:
            pictures = center_crop(pictures)
        rows = [self.prompt_rows[text] for text in batch["instructions"]]
        inputs = {"pixel_values": self.eyes.pixel_values(pictures)}
        inputs |= {name: value[rows] for name, value in self.prompts.items()}
        if self.use_proprio:
            proprio = self.eyes.normalized_proprio([*batch["proprio"].cpu().numpy()])  # [B, P]
            if self.training and self.proprio_dropout:
                generator = step_generator(self.seed, self.global_step, stream=2, rank=self.global_rank)
                proprio = proprio * (torch.rand(len(proprio), generator=generator) >= self.proprio_dropout)[:, None]
            inputs["proprio"] = proprio
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        last = self.model.num_layers
        states, _ = self.model(**inputs, chunk_length=self.eyes.chunk_length, layers=[last])
        features = l1_head(self.model).features(states[last])
        return features, l1_head(self.model).chunk(features)

    @contextmanager
    def kept_eyes(self, directory: Path, provenance: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        """Write the small model into the folder `eyes` of the checkpoint that the body writes to `directory`.

        Yields:
            What its provenance has to say of it.
        """
        eyes = directory.with_name(EYES)
        save_base(eyes, self.eyes, {**provenance, "unnorm_key": self.space.name}, dtype=self.weights_dtype)
        yield {EYES: file_sha256(eyes / JSON_FILE)}
        eyes.rename(directory / EYES)
