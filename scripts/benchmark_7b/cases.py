"""What is run: observations, inputs and a base model around random weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor

from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.random_weights import PUBLISHED_MEANS, PUBLISHED_STDS, statistics
from rsd.space import Space
from rsd.types import Observation

PROMPT_LENGTH = 34  # ids of LIBERO-Spatial's longer instructions, BOS and 29871 included (SPEC §5)
CASES = {"1 image": (("image",), False), "2 images + proprio": (("image", "wrist_image"), True)}
TWO_VIEWS = CASES["2 images + proprio"][0]


class FixedText:
    """A prompt of PROMPT_LENGTH ids: random weights need no tokenizer."""

    pad_id = 32000
    example = "any"

    def encode(self, instruction: str) -> list[int]:
        return [1, *range(300, 300 + PROMPT_LENGTH - 2), 29871]

    def vector(self, instruction: str) -> None:
        """The ids say everything."""

    def without_words(self) -> list[int]:
        return self.encode("")

    def piece(self, token: int) -> str:
        return str(token)

    def to_json(self) -> dict[str, Any]:
        return {"prompt_length": PROMPT_LENGTH}


def make_base(model: OpenVLAOFT, views: tuple[str, ...], **options: Any) -> OpenVLABase:
    dino = model.architecture.dino
    assert dino is not None  # all cases have it
    size = dino.image_size
    return OpenVLABase(
        model=model,
        processor=PrismaticImageProcessor(sizes=[size] * 2, means=PUBLISHED_MEANS, stds=PUBLISHED_STDS),
        text=FixedText(),
        space=Space.from_statistics("random", statistics(7, 8)),
        views=views,
        chunk_length=8,
        center_crop=True,
        weights_sha256=lambda: "random",
        **options,
    )


def model_inputs(base: OpenVLABase, observations: list[Observation]) -> dict[str, Tensor]:
    """Inputs of the network where it lives and in its dtype; no prompt here has pads, so there is no mask."""
    prepared = base.prepare(observations)
    return {
        name: value.to(base.device, base.dtype if value.is_floating_point() else value.dtype)
        for name, value in prepared.items()
        if name != "attention_mask"
    }


def without_proprio(model: OpenVLAOFT) -> OpenVLAOFT:
    """The same modules and weights for a model that has no proprio token."""
    bare = copy.copy(model)
    bare.architecture = dataclasses.replace(model.architecture, proprio_dim=None)
    return bare


def sequence_length(model: OpenVLAOFT, inputs: dict[str, Tensor]) -> int:
    images = inputs["pixel_values"].shape[1] // model.architecture.channels_per_image
    return inputs["input_ids"].shape[1] + images * model.architecture.num_patches + ("proprio" in inputs)
