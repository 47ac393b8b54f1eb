"""OpenVLA and OpenVLA-OFT behind the Backbone protocol: observations → tensors → hidden states and a chunk.

What surprises first: `prepare` expects pictures as an RLDS set stores them. A live camera picture first goes through
rsd.jpeg.jpeg_round_trip; doing it here would compress stored pictures twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.errors import RSDError, SettingError
from rsd.images import CAMERA_SIZE, CROP_AREA, center_crop, check_picture, resize_lanczos3, stack_pictures
from rsd.models.openvla.execution import make_forward
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.text import BOS, STOP, TextEncoder
from rsd.normalization import LIBERO_GRIPPER, normalize
from rsd.types import BackboneOutput, Observation

MAX_IMAGES = 3  # more than any published checkpoint was trained with
NOISE_SEED = 0


class ObservationError(RSDError, ValueError):
    """An observation that does not fit the base model."""


class OpenVLABackbone:
    """A frozen OpenVLA model with its image pipeline, text encoder and statistics.

    Attributes:
        model: The network; `backbone.model` is what phase=oft trains.
        views: Names of the pictures, in the order of the model's images.
        norm_stats: Statistics of unnorm_key.
        execution: How `forward` runs the model (see execution.py). No part of the fingerprint: states made in one way
            serve heads that are run in another.
        gripper: Name in GRIPPERS: what turns the model's gripper into the robot's.
    """

    def __init__(
        self,
        *,
        model: OpenVLAOFT,
        processor: PrismaticImageProcessor,
        text: TextEncoder,
        norm_stats: dict[str, Any],
        unnorm_key: str,
        views: Sequence[str],
        chunk_length: int,
        center_crop: bool,
        weights_sha256: Callable[[], str],
        execution: str = "eager",
        gripper: str = LIBERO_GRIPPER,
    ) -> None:
        if not 1 <= len(views) <= MAX_IMAGES or len(set(views)) != len(views):
            raise SettingError(f"views {list(views)}, expected 1 to {MAX_IMAGES} different ones")
        if len(views) > 1 and len(model.architecture.transformers) == 1:
            raise SettingError(f"a model with a single vision tower takes one picture, got views {list(views)}")
        self.model = model
        self.processor = processor
        self.text = text
        self.norm_stats = norm_stats
        self.unnorm_key = unnorm_key
        self.views = tuple(views)
        self.chunk_length = chunk_length
        self.center_crop = center_crop
        self.image_size = processor.sizes[0]
        self._weights_sha256 = weights_sha256
        self.execution = execution
        self.gripper = gripper
        self._run = make_forward(model, execution)

    @property
    def action_dim(self) -> int:
        return self.model.architecture.action_dim

    @property
    def hidden_dim(self) -> int:
        return self.model.llm_config.hidden_size

    @property
    def num_layers(self) -> int:
        return self.model.llm_config.num_hidden_layers

    @property
    def state_shapes(self) -> dict[int, tuple[int, int]]:
        width = self.hidden_dim
        shapes = dict.fromkeys(range(1, self.num_layers + 1), (self.chunk_length * self.action_dim, width))
        if self.decoder == "l1":
            shapes[self.num_layers + 1] = (self.chunk_length, width)
        return shapes

    @property
    def proprio_dim(self) -> int | None:
        return self.model.architecture.proprio_dim

    @property
    def use_proprio(self) -> bool:
        return self.proprio_dim is not None

    @property
    def decoder(self) -> str:
        return self.model.architecture.decoder

    @property
    def device(self) -> torch.device:
        return self.model.projector.fc1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.projector.fc1.weight.dtype

    def prepare(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """Observations, pictures as stored in RLDS → inputs of `forward`, on the CPU: a loader's worker may call it.

        Raises:
            ImageError: a picture is not [256, 256, 3], uint8.
            ObservationError: a view is missing, the proprio has another width, or the prompt is too long.
        """
        pictures = stack_pictures([self._picture(obs, view) for obs in observations for view in self.views])
        pictures = resize_lanczos3(pictures, self.image_size)  # [B*M, S, S, 3]
        inputs = {
            "pixel_values": self.pixel_values(center_crop(pictures) if self.center_crop else pictures),
            **self.prompts([obs.instruction for obs in observations]),
        }
        if self.use_proprio:
            inputs["proprio"] = self.normalized_proprio([obs.proprio for obs in observations])
        if self.decoder == "diffusion":
            inputs["noise"] = self.starting_noise(len(observations))
        return inputs

    def starting_noise(self, batch: int) -> Tensor:
        """What diffusion starts from, [B, T, A]; the same for all observations, so that cached states are live ones."""
        generator = torch.Generator().manual_seed(NOISE_SEED)
        return torch.randn(self.chunk_length, self.action_dim, generator=generator).expand(batch, -1, -1)

    def _picture(self, observation: Observation, view: str) -> np.ndarray:
        if view not in observation.images:
            raise ObservationError(
                f"the model needs view {view!r}, the observation has {sorted(observation.images)}; "
                "set model.backbone.views to what environment and data offer"
            )
        check_picture(observation.images[view], view, CAMERA_SIZE)
        return observation.images[view]

    def pixel_values(self, pictures: Tensor) -> Tensor:
        """Cropped pictures, the M of a sample after each other, [B*M, S, S, 3], uint8 → [B, 6M, S, S], float32.

        Convolutional towers see every picture once: 3M channels.
        """
        pixels = self.processor(pictures)  # [B*M, 6 or 3, S, S]
        return pixels.reshape(-1, len(self.views) * pixels.shape[1], *pixels.shape[2:])

    def prompts(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """Prompt ids, K placeholders and the stop token, padded on the right; the prompt alone to generate from.

        Returns:
            input_ids [B, L], int64; attention_mask [B, L], bool; action_start [B], int64.
        """
        encoded = [self.text.encode(instruction) for instruction in instructions]
        num_action_tokens = self.chunk_length * self.action_dim
        for instruction, ids in zip(instructions, encoded, strict=True):
            self._check_length(instruction, len(ids), num_action_tokens)
        tail = [] if self.decoder == "autoregressive" else [*[BOS] * num_action_tokens, STOP]
        rows = [[*ids, *tail] for ids in encoded]
        longest = max(map(len, rows))
        padded = [row + [self.text.pad_id] * (longest - len(row)) for row in rows]
        mask = [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
        return {
            "input_ids": torch.tensor(padded),
            "attention_mask": torch.tensor(mask),
            "action_start": torch.tensor([len(ids) for ids in encoded]),
        }

    def _check_length(self, instruction: str, prompt_length: int, num_action_tokens: int) -> None:
        architecture, limit = self.model.architecture, self.model.llm_config.max_position_embeddings
        others = len(self.views) * architecture.num_patches + self.use_proprio + num_action_tokens + 1
        if prompt_length + others > limit:
            raise ObservationError(
                f"the prompt of {instruction[:60]!r} has {prompt_length} tokens; with {others} tokens of images, "
                f"proprio and actions the sequence would be longer than the model's {limit}; shorten the instruction"
            )

    def normalized_proprio(self, proprio: Sequence[Any]) -> Tensor:
        """Raw proprio vectors → [B, P], with the evaluation formula (constant dims are not zeroed, SPEC §9)."""
        expected = self.model.architecture.proprio_dim
        widths = {len(vector) for vector in proprio}
        if widths != {expected}:
            raise ObservationError(f"proprio has {sorted(widths)} dims, the model's projector takes {expected}")
        return torch.from_numpy(normalize(np.stack(proprio), self.norm_stats["proprio"], zero_constant=False))

    @torch.no_grad()
    def forward(self, inputs: dict[str, Tensor], layers: Sequence[int]) -> BackboneOutput:
        """Hidden states of the layers (keys of `state_shapes`), and the chunk in float32.

        Inputs are moved to the model's device, and floating ones to its dtype. A mask without pads is left out: the
        faster attention kernels take none.
        """
        wrong = [layer for layer in layers if layer not in self.state_shapes]
        if wrong:
            raise SettingError(f"layers {wrong} do not exist; the model has layers 1..{max(self.state_shapes)}")
        channels = len(self.views) * self.model.architecture.channels_per_image
        if inputs["pixel_values"].shape[1] != channels:
            raise ObservationError(
                f"pixel_values has {inputs['pixel_values'].shape[1]} channels, the model's {len(self.views)} pictures "
                f"{self.views} have {channels}; make the inputs with this model's prepare()"
            )
        inputs = dict(inputs)
        mask = inputs.pop("attention_mask")
        inputs = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
        }
        inputs["attention_mask"] = None if mask.all() else mask.to(self.device)
        states, actions = self._run(**inputs, chunk_length=self.chunk_length, layers=layers)
        return BackboneOutput(states, actions.float())

    def fingerprint(self) -> dict[str, Any]:
        """Weights, architecture, image pipeline, text and statistics; JSON types."""
        return {
            "weights_sha256": self._weights_sha256(),
            "architecture": self.model.architecture.to_json(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "chunk_length": self.chunk_length,
            "views": list(self.views),
            "images": {
                "jpeg_decoder": "simplejpeg fast IDCT, fancy upsampling",
                "resize": f"lanczos3 to {self.image_size}",
                "center_crop_area": CROP_AREA if self.center_crop else None,
                "processor": self.processor.to_json(),
            },
            "text": self.text.to_json(),
            "unnorm_key": self.unnorm_key,
            "proprio_stats": self.norm_stats["proprio"] if self.use_proprio else None,
        }
