"""OpenVLA and OpenVLA-OFT as a base model: observations → tensors → a pass that is computed as far as asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd import jpeg
from rsd.errors import RSDError, SettingError
from rsd.images import CROP_AREA, center_crop, check_picture, resize_pictures
from rsd.models.openvla import segments
from rsd.models.openvla.execution import make_run
from rsd.models.openvla.fp8 import Fp8
from rsd.models.openvla.model import Choose, OpenVLAOFT
from rsd.models.openvla.passes import OpenVLAPass
from rsd.models.openvla.pictures import DevicePictures, check_pictures
from rsd.models.openvla.processor import PrismaticImageProcessor
from rsd.models.openvla.segments import Tensors
from rsd.models.openvla.text import BOS, STOP, TextEncoder, check_instructions
from rsd.models.openvla.visual_tokens import PictureTokens, VisualTokens
from rsd.points import HEAD, point_name
from rsd.space import Space
from rsd.types import ALL_TOKENS, BaseSpec, Inputs, Observation

MAX_IMAGES = 3  # more than any published checkpoint was trained with
NOISE_SEED = 0


class ObservationError(RSDError, ValueError):
    """An observation that does not fit the base model."""


class OpenVLABase:
    """A frozen OpenVLA model with its image pipeline, text encoder and space.

    Attributes:
        model: The network; `base.model` is what phase=oft trains.
        views: Names of the pictures, in the order of the model's images.
        space: What the numbers of actions and proprio mean.
        execution: How the model is run (see execution.py). No part of the fingerprint, but for fp8: states made in one
            of the other ways serve heads that are run in another.
        fp8: What execution="fp8" means; part of the fingerprint then.
        run: Runs the model's segments.
        pictures_on: Where a camera's pictures are prepared: "cpu", or "device", the model's.
        visual_tokens: Which picture tokens the language model reads; None for all of them.
        pictures: What there is to choose from.
        choose: The same as `OpenVLAOFT.forward` takes it.
    """

    def __init__(
        self,
        *,
        model: OpenVLAOFT,
        processor: PrismaticImageProcessor,
        text: TextEncoder,
        space: Space,
        views: Sequence[str],
        chunk_length: int,
        center_crop: bool,
        weights_sha256: Callable[[], str],
        execution: str = "eager",
        visual_tokens: VisualTokens | None = None,
        fp8: Fp8 | None = None,
        pictures: str = "cpu",
    ) -> None:
        if not 1 <= len(views) <= MAX_IMAGES or len(set(views)) != len(views):
            raise SettingError(f"views {list(views)}, expected 1 to {MAX_IMAGES} different ones")
        if len(views) > 1 and len(model.architecture.transformers) == 1:
            raise SettingError(f"a model with a single vision tower takes one picture, got views {list(views)}")
        self.model = model
        self.processor = processor
        self.text = text
        self.space = space
        self.views = tuple(views)
        self.chunk_length = chunk_length
        self.center_crop = center_crop
        self.image_size = processor.sizes[0]
        self._weights_sha256 = weights_sha256
        self.execution = execution
        self.fp8 = fp8 or Fp8()
        check_pictures(pictures)
        self.pictures_on = pictures
        self._device_pictures: DevicePictures | None = None
        if pictures == "device" and self.device.type != "meta":
            self._device_pictures = DevicePictures(processor, center_crop=center_crop, device=self.device)
        self.visual_tokens = visual_tokens
        self.pictures = PictureTokens(
            num_views=len(self.views),
            num_patches=model.architecture.num_patches,
            has_grid=model.architecture.conv is None,
            width=model.llm_config.hidden_size,
            fingerprint=self._own_fingerprint,
        )
        self.choose: Choose | None = None
        if visual_tokens is not None:
            visual_tokens.fit(self.pictures)
            self.choose = partial(visual_tokens.choose, self.pictures)
        self.run = make_run(model, execution, self.fp8, self.selection)

    @cached_property
    def spec(self) -> BaseSpec:
        """What goes in and comes out; see `rsd.types.BaseModel`."""
        width, architecture = self.model.llm_config.hidden_size, self.model.architecture
        num_states = self.chunk_length * architecture.action_dim
        points = {point_name(number): (num_states, width) for number in range(1, self.model.num_layers + 1)}
        if architecture.action_head == "l1":
            points[HEAD] = (self.chunk_length, width)
        return BaseSpec(
            views=self.views,
            proprio_dim=architecture.proprio_dim,
            chunk_length=self.chunk_length,
            action_dim=architecture.action_dim,
            space=self.space,
            points=points,
            action_head=architecture.action_head,
            continuous=architecture.action_head in ("l1", "diffusion"),
            identify=self.fingerprint,
            visual_tokens=self._selection(),
        )

    def _selection(self) -> str:
        if self.visual_tokens is None:
            return ALL_TOKENS
        record = self.visual_tokens.to_json()
        return f"{record['kind']}, {record['num_tokens']} of {self.model.architecture.num_patches} a view"

    @cached_property
    def selection(self) -> partial[Tensors] | None:
        """The segment that keeps some of the picture tokens; None where the language model reads all."""
        if self.choose is None:
            return None
        return partial(segments.keep, choose=self.choose, num_pictures=self.num_pictures)

    @property
    def num_pictures(self) -> int:
        """Picture tokens that there are, of all views."""
        return len(self.views) * self.model.architecture.num_patches

    @property
    def num_visual_tokens(self) -> int:
        """Those of them that the language model reads."""
        return self.num_pictures if self.visual_tokens is None else len(self.views) * self.visual_tokens.num_tokens

    @property
    def use_proprio(self) -> bool:
        return self.model.architecture.proprio_dim is not None

    @property
    def action_head(self) -> str:
        return self.model.architecture.action_head

    @property
    def device(self) -> torch.device:
        return self.model.projector.fc1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.projector.fc1.weight.dtype

    def look(self, observations: Sequence[Observation] | Inputs) -> OpenVLAPass:
        """See `rsd.types.BaseModel`: nothing is prepared before the first question."""
        if isinstance(observations, Mapping):
            return OpenVLAPass.of_inputs(self, observations)
        return OpenVLAPass.of_observations(self, observations)

    def prepare(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """Observations → inputs of `look`, on the CPU: a loader's worker may call it.

        A live camera's picture first goes through the JPEG round trip of the training data.

        Raises:
            ImageError: a picture is not [H, W, 3], uint8.
            ObservationError: a view is missing, the proprio has another shape or is not finite, or the instruction is
                no text or too long.
        """
        pictures = resize_pictures(self._pictures(observations), self.image_size)  # [B*M, S, S, 3]
        pixels = self.pixel_values(center_crop(pictures) if self.center_crop else pictures)
        return {"pixel_values": pixels, **self._words_and_numbers(observations)}

    def prepare_live(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """As `prepare`, in the process that runs the model: pictures on its device where they were asked for there."""
        if self._device_pictures is None:
            return self.prepare(observations)
        live = not any(observation.stored for observation in observations)
        pictures = self._pictures(observations, jpeg_here=not live)
        pixels = self._device_pictures(pictures, live=live)  # [B*M, C, S, S]
        pixels = pixels.reshape(len(observations), -1, *pixels.shape[2:])
        return {"pixel_values": pixels, **self._words_and_numbers(observations)}

    def _words_and_numbers(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """All inputs but the pictures."""
        inputs = self.prompts([obs.instruction for obs in observations])
        if self.use_proprio:
            inputs["proprio"] = self.normalized_proprio([obs.proprio for obs in observations])
        if self.action_head == "diffusion":
            inputs["noise"] = self.starting_noise(len(observations))
        return inputs

    def starting_noise(self, batch: int) -> Tensor:
        """What diffusion starts from, [B, T, A]; the same for all observations, so that cached states are live ones."""
        generator = torch.Generator().manual_seed(NOISE_SEED)
        return torch.randn(self.chunk_length, self.model.architecture.action_dim, generator=generator).expand(
            batch, -1, -1
        )

    def _pictures(self, observations: Sequence[Observation], *, jpeg_here: bool = True) -> list[np.ndarray]:
        """The M of an observation after each other, each [H, W, 3], uint8; after JPEG with jpeg_here."""
        return [
            self._picture(obs, view) if obs.stored or not jpeg_here else jpeg.jpeg_round_trip(self._picture(obs, view))
            for obs in observations
            for view in self.views
        ]

    def _picture(self, observation: Observation, view: str) -> np.ndarray:
        if view not in observation.images:
            raise ObservationError(
                f"the model needs view {view!r}, the observation has {sorted(observation.images)}; "
                "set model.backbone.views to what environment and data offer"
            )
        check_picture(observation.images[view], view)
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
            input_ids [B, L], int64; attention_mask [B, L], bool; action_start [B], int64; and, of a model that reads
            sentences, sentence [B, E].
        """
        for instruction in instructions:
            if not isinstance(instruction, str):
                raise ObservationError(f"instruction is {instruction!r}, expected the task in words (str)")
        encoded = [self.text.encode(instruction) for instruction in instructions]
        num_action_tokens = self.chunk_length * self.model.architecture.action_dim
        for instruction, ids in zip(instructions, encoded, strict=True):
            self._check_length(instruction, len(ids), num_action_tokens)
        tail = [] if self.action_head == "autoregressive" else [*[BOS] * num_action_tokens, STOP]
        rows = [[*ids, *tail] for ids in encoded]
        longest = max(map(len, rows))
        padded = [row + [self.text.pad_id] * (longest - len(row)) for row in rows]
        mask = [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
        vectors = [vector for one in instructions if (vector := self.text.vector(one)) is not None]
        return {
            "input_ids": torch.tensor(padded),
            "attention_mask": torch.tensor(mask),
            "action_start": torch.tensor([len(ids) for ids in encoded]),
        } | ({"sentence": torch.stack(vectors)} if vectors else {})

    def check_instructions(self, instructions: Sequence[str], where: Mapping[str, str] | None = None) -> None:
        """See `rsd.types.ReadsInstructions`."""
        check_instructions(self.text, instructions, where)

    def _check_length(self, instruction: str, prompt_length: int, num_action_tokens: int) -> None:
        architecture, limit = self.model.architecture, self.model.llm_config.max_position_embeddings
        others = len(self.views) * architecture.num_patches + self.use_proprio + num_action_tokens + 1
        if prompt_length + others > limit:
            raise ObservationError(
                f"the prompt of {instruction[:60]!r} has {prompt_length} tokens; with {others} tokens of images, "
                f"proprio and actions the sequence would be longer than the model's {limit}; shorten the instruction"
            )

    def normalized_proprio(self, proprio: Sequence[Any]) -> Tensor:
        """Standard proprio vectors → [B, P], with the evaluation formula (constant dims are not zeroed, SPEC §9)."""
        for vector in proprio:
            self._check_proprio(vector)
        normalized = self.space.proprio_to_model(np.stack(proprio))
        if not np.isfinite(normalized).all():
            raise ObservationError(f"proprio is not finite once normalised with the statistics {self.space.name!r}")
        return torch.from_numpy(normalized)

    def _check_proprio(self, proprio: Any) -> None:
        expected, vector = self.model.architecture.proprio_dim, np.asarray(proprio)
        if vector.dtype.kind not in "iuf":
            raise ObservationError(f"proprio is {proprio!r}, expected {expected} numbers")
        if vector.shape != (expected,):
            raise ObservationError(f"proprio has shape {vector.shape}, the model's projector takes ({expected},)")
        wrong = {int(dim): float(vector[dim]) for dim in np.flatnonzero(~np.isfinite(vector))}
        if wrong:
            raise ObservationError(f"proprio has entries {wrong}, dim to value; expected finite numbers")

    def on_device(self, inputs: Inputs) -> dict[str, Tensor | None]:
        """Inputs on the model's device, floating ones in its dtype. A mask without pads is left out (None): the faster
        attention kernels take none.

        Raises:
            ObservationError: they are another model's.
        """
        channels = len(self.views) * self.model.architecture.channels_per_image
        if inputs["pixel_values"].shape[1] != channels:
            raise ObservationError(
                f"pixel_values has {inputs['pixel_values'].shape[1]} channels, the model's {len(self.views)} pictures "
                f"{self.views} have {channels}; make the inputs with this model's prepare()"
            )
        moved: dict[str, Tensor | None] = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
            if name != "attention_mask"
        }
        mask = inputs["attention_mask"]
        return moved | {"attention_mask": None if mask.all() else mask.to(self.device)}

    def fingerprint(self) -> dict[str, Any]:
        """Weights, architecture, image pipeline, text, statistics; visual tokens where not all, and eight bits where
        they are; JSON types.
        """
        return {
            **self._own_fingerprint(),
            **({} if self.visual_tokens is None else {"visual_tokens": self.visual_tokens.to_json()}),
            **({"fp8": self.fp8.to_json()} if self.execution == "fp8" else {}),
        }

    def _own_fingerprint(self) -> dict[str, Any]:
        """Of what a selection of tokens is trained for; nothing can be trained in eight bits."""
        return {
            "weights_sha256": self._weights_sha256(),
            "architecture": self.model.architecture.to_json(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "chunk_length": self.chunk_length,
            "views": list(self.views),
            "images": {
                "jpeg": jpeg.DESCRIPTION,
                "resize": f"lanczos3 to {self.image_size}",
                "center_crop_area": CROP_AREA if self.center_crop else None,
                "processor": self.processor.to_json(),
            },
            "text": self.text.to_json(),
            "space": {"name": self.space.name, "digest": self.space.digest},
        }
