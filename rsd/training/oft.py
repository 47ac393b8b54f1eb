"""phase=oft: behaviour cloning of a small OpenVLA-OFT with L1 on normalised chunks, from RLDS frames.

What surprises first: proprio is normalised with the evaluation's formula here too (the reference zeroes constant dims
in training only, SPEC §9), so that training, caching and evaluation see the same numbers. All randomness of step n,
weights at step 0 included, comes from (seed, n), so a resumed run equals an uninterrupted one. With ema_decay set, what
is validated and exported is the moving average of the weights, not the weights of the last step.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from rsd.checkpoint import CheckpointError
from rsd.errors import SettingError
from rsd.files import write_atomically
from rsd.images import augment, center_crop, resize_pictures
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.conv import ConvShape
from rsd.models.openvla.loading import save_base
from rsd.models.openvla.model import Architecture, OpenVLAOFT, SentenceShape
from rsd.models.openvla.patches import STRIDE, PatchShape
from rsd.models.openvla.processor import HALF, PrismaticImageProcessor
from rsd.models.openvla.sentences import Sentences, load_encoder
from rsd.models.openvla.text import SentenceText, WordText, check_instructions
from rsd.models.openvla.transfer import start_from
from rsd.models.openvla.vit import ViTShape
from rsd.settings import ChunkLength, Decay, Natural, Rate, Seed, Share, Side, Stored, Views, checked
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
from rsd.training.paraphrases import paraphrases
from rsd.training.randomness import step_generator
from rsd.training.rounded import Rounded
from rsd.training.sharded import shard
from rsd.types import Frame

STATISTICS_FILE = "dataset_statistics.json"  # as OpenVLA ships it: {data set name: statistics}
TEXT = "text"  # entry of a state to resume from
LOSS_UNITS = ("bounds", "quantiles")
EMA_WARMUP = 10  # the average's decay is at most (1 + n) / (EMA_WARMUP + n) at step n


class FrameCollate:
    """Frames → one batch, pictures resized to the model's size; runs in the loader's processes."""

    @checked
    def __init__(self, *, image_size: Side, views: Views) -> None:
        self.image_size, self.views = image_size, tuple(views)

    def __call__(self, items: list[Frame]) -> FrameBatch:
        observations = [item["observation"] for item in items]
        stored = [obs.images[view] for obs in observations for view in self.views]  # each of its own size
        pictures = resize_pictures(stored, self.image_size)  # [B*M, S, S, 3]
        return {
            "pictures": pictures.view(len(items), len(self.views), *pictures.shape[1:]),
            "instructions": [obs.instruction for obs in observations],
            "proprio": torch.from_numpy(np.stack([obs.proprio for obs in observations])).float(),
            "actions": torch.stack([item["actions"] for item in items]),
        }


def check_architecture(sizes: Mapping[str, Any], image_size: int) -> None:
    """See that heads divide widths and patches the picture, before any data is read.

    Args:
        sizes: See OFTModule.

    Raises:
        SettingError: they do not; the message names the key.
    """
    llm = sizes["llm"]
    divided = [
        ("llm.num_attention_heads", llm["num_attention_heads"], "hidden_size", llm["hidden_size"]),
        (
            "llm.num_key_value_heads",
            llm.get("num_key_value_heads", llm["num_attention_heads"]),
            "num_attention_heads",
            llm["num_attention_heads"],
        ),
    ]
    for tower in ("dino", "siglip"):
        if tower in sizes:
            own = sizes[tower]
            divided.append((f"{tower}.num_heads", own["num_heads"], "embed_dim", own["embed_dim"]))
            if own["patch_size"] > image_size:
                raise SettingError(
                    f"model.image_size is {image_size}, expected the patch_size {own['patch_size']} or more"
                )
    patches = {name: sizes[name]["patch_size"] for name in ("dino", "siglip") if name in sizes}
    if len({image_size // patch for patch in patches.values()}) > 1:
        raise SettingError(
            f"model.architecture.siglip.patch_size is {patches['siglip']}, and dino's {patches['dino']}; expected as "
            f"many patches of a picture of {image_size} pixels, which are joined one by one"
        )
    kinds = [kind for kind in ("dino", "siglip", "conv", "patches") if kind in sizes]
    if kinds not in (["dino", "siglip"], ["conv"], ["patches"]):
        raise SettingError(
            f"model.architecture has the towers {kinds}, expected one kind: dino and siglip, conv, or patches"
        )
    if kinds == ["patches"] and image_size < STRIDE:
        raise SettingError(f"model.image_size is {image_size}, expected a patch's {STRIDE} pixels or more")
    for name, divisor, whole, value in divided:
        if value % divisor:
            raise SettingError(f"model.architecture.{name} is {divisor}, expected a divisor of {whole}, {value}")


class OFTModule(Rounded):
    """Trains every weight from scratch.

    Args:
        architecture: {"llm"} with {"dino", "siglip"} as in conf/model/oft_tiny.yaml, {"conv"} as in oft_small.yaml or
            {"patches"} as in oft_base.yaml, and optionally {"learned_slots"}; null for a published model.
        image_size: Pixels of the model's pictures.
        views, use_proprio, chunk_length: The model's inputs and T.
        learning_rate: Of AdamW: linear warm-up over `warmup_steps`, then a cosine to 0 at the trainer's max_steps.
        image_augmentation: Random crop and colours (SPEC §12); validation always sees the centre crop.
        seed: Of weights, augmentation and dropout.
        ema_decay: Of the moving average of the weights; null for none.
        proprio_dropout: Share of training samples whose proprio is replaced by zeros, the middle of its range: it
            tells the model where in an episode it is, and would otherwise be learned instead of the pictures.
        weights_dtype: What the exported weights are rounded to, "float32" or "bfloat16".
        loss_units: What an error is a part of: "bounds", the range that is mapped to [-1, 1], or "quantiles", q01..q99.
            The same with data.bounds=quantiles. With extremes, rare wide motions make all others of that dim count less
            in units of the bounds.
        start_from: Checkpoint folder of a model with the same architecture whose weights to start with; null for random
            ones. The data set may have further words, and must have all of the checkpoint's.
        sentences: Read instructions with a frozen sentence encoder, and with paraphrases in training; null for the
            words of the data set.
    """

    loss_factors: Tensor  # of each space and action dim, [K, A]
    shardable = True

    @checked
    def __init__(
        self,
        *,
        architecture: dict[str, Any] | None,
        image_size: Side,
        views: Views,
        use_proprio: bool,
        chunk_length: ChunkLength,
        learning_rate: Rate,
        warmup_steps: Natural,
        weight_decay: Decay,
        image_augmentation: bool,
        seed: Seed,
        ema_decay: Share | None = None,
        proprio_dropout: Share = 0.0,
        weights_dtype: Stored = "float32",
        loss_units: str = "bounds",
        start_from: str | None = None,
        sentences: Sentences | None = None,
    ) -> None:
        super().__init__()
        if architecture is None:
            raise SettingError(
                "phase=oft trains a small model from scratch and this model has no architecture to train "
                "(model.architecture is null: a published checkpoint); choose model=oft_tiny"
            )
        check_architecture(architecture, image_size)
        self.architecture, self.image_size = architecture, image_size
        self.views, self.use_proprio, self.chunk_length = tuple(views), use_proprio, chunk_length
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps = warmup_steps
        self.image_augmentation, self.seed = image_augmentation, seed
        self.ema_decay, self.proprio_dropout = ema_decay, proprio_dropout
        self.weights_dtype = getattr(torch, weights_dtype)
        if loss_units not in LOSS_UNITS:
            raise SettingError(f"phase.module.loss_units is {loss_units!r}, expected one of {list(LOSS_UNITS)}")
        self.loss_units = loss_units
        self.start_from, self.sentences = start_from, sentences
        self.started_from: str | None = None

    def setup(self, stage: str) -> None:
        """Build the model for the data set: its vocabulary, statistics and widths."""
        if hasattr(self, "base"):
            return
        datamodule = frames_of(self.trainer)
        self.spaces, space = datamodule.spaces, datamodule.space
        self.base = small_base(
            self.architecture,
            image_size=self.image_size,
            views=self.views,
            use_proprio=self.use_proprio,
            chunk_length=self.chunk_length,
            space=space,
            instructions=datamodule.train.instructions(),  # of all splits, so that every task's words are known
            seed=self.seed,
            sentences=self.sentences,
        )
        self.model = self.base.model
        self.instructions = sorted(datamodule.train.instructions())
        count = 0 if self.sentences is None else self.sentences.num_paraphrases
        self.paraphrases = paraphrases(self.instructions, count, self.seed)
        if self.start_from is not None:
            text = self.base.text
            assert isinstance(text, WordText | SentenceText)
            self.started_from = start_from(self.model, text, space, Path(self.start_from), self.paraphrases)
        self.average = None if self.ema_decay is None else copy.deepcopy(self.model).requires_grad_(False)
        if self.average is not None:
            self.base = rebuilt(self.base, self.average)
        factors = torch.from_numpy(np.stack([one.quantile_units() for one in self.spaces]))  # [K, A]
        factors = factors if self.loss_units == "quantiles" else torch.ones_like(factors)
        self.register_buffer("loss_factors", factors, persistent=False)
        said = [*self.instructions, *(one for others in self.paraphrases.values() for one in others)]
        self.prompts = self.base.prompts(said)  # a row an instruction, then those of the paraphrases
        self.prompt_rows = {text: row for row, text in enumerate(said)}
        self.median_actions = median_actions(datamodule)  # [K, A]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note down which sentence encoder these weights are for; words are held to the data set's elsewhere."""
        if self.sentences is not None:
            checkpoint[TEXT] = self.base.text.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another sentence encoder."""
        if self.sentences is not None and checkpoint.get(TEXT) != (own := self.base.text.to_json()):
            raise CheckpointError(
                f"this training was begun with the sentence encoder {checkpoint.get(TEXT)}, and would go on with "
                f"{own}; say where the first one is with text.sentences.source="
            )

    def configure_model(self) -> None:
        """Share the model out, where the trainer does."""
        shard(self.trainer, self.model)

    def transfer_batch_to_device(self, batch: FrameBatch, device: torch.device, dataloader_idx: int) -> FrameBatch:
        """Move the pictures; the rest is small, and is normalised on the CPU without waiting for the device."""
        return {**batch, "pictures": batch["pictures"].to(device, non_blocking=True)}

    def _normalized(self, actions: Tensor, space: Tensor | None = None) -> Tensor:
        """Standard chunks [B, T, A] → model space, on the module's device; of a mixture with each sample's space."""
        return by_space(actions.to(self.device), [one.to_model for one in self.spaces], space)

    def _prompts(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """`base.prompts` of these instructions, from the rows made once."""
        rows = [self.prompt_rows[text] for text in instructions]
        picked = {name: value[rows] for name, value in self.prompts.items()}
        longest = int(picked["attention_mask"].sum(dim=1).max())
        cut = ("input_ids", "attention_mask")
        return {name: value[:, :longest] if name in cut else value for name, value in picked.items()}

    def training_instructions(self, instructions: Sequence[str]) -> Sequence[str]:
        """What a training batch is told: each instruction or one of its paraphrases, as likely; of (seed, step)."""
        choices = [(text, *self.paraphrases.get(text, ())) for text in instructions]
        if all(len(one) == 1 for one in choices):
            return instructions
        drawn = torch.rand(len(choices), generator=self._generator(2)).tolist()
        return [one[int(part * len(one))] for one, part in zip(choices, drawn, strict=True)]

    def forward(self, batch: FrameBatch, pictures: Tensor, keep_proprio: Tensor | None = None) -> Tensor:
        """The L1 head's chunk for cropped pictures [B*M, S, S, 3], uint8; with dropout on proprio, [B]. [B, T, A]."""
        inputs = {"pixel_values": self.base.pixel_values(pictures), **self._prompts(batch["instructions"])}
        if self.use_proprio:
            proprio = normalized_proprio(batch, self.base, self.spaces)  # [B, P]
            inputs["proprio"] = proprio if keep_proprio is None else proprio * keep_proprio[:, None]
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        model = self.model if self.training else self.base.model
        return model(**inputs, chunk_length=self.chunk_length, layers=[])[1]

    def _generator(self, stream: int) -> torch.Generator:
        """Randomness of this step; streams are independent of each other."""
        return step_generator(self.seed, self.global_step, stream=stream, rank=self.global_rank)

    def training_pictures(self, batch: FrameBatch) -> Tensor:
        """Augmented pictures of a training batch, [B*M, S, S, 3], uint8; a function of (seed, step)."""
        pictures = batch["pictures"].flatten(0, 1)
        if not self.image_augmentation:
            return center_crop(pictures)
        return augment(pictures, self._generator(0))

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        keep = None
        if self.proprio_dropout:
            keep = torch.rand(len(batch["proprio"]), generator=self._generator(1)) >= self.proprio_dropout  # [B]
        told: FrameBatch = {**batch, "instructions": [*self.training_instructions(batch["instructions"])]}
        predicted = self(told, self.training_pictures(batch), keep)  # [B, T, A]
        loss = self.loss(predicted, batch["actions"], batch.get("space"))
        self.log("train/l1", loss, prog_bar=True, batch_size=len(predicted))
        return loss

    def loss(self, predicted: Tensor, actions: Tensor, space: Tensor | None = None) -> Tensor:
        """Mean absolute error of normalised chunks [B, T, A], in `loss_units`; `actions` are standard."""
        error = (predicted - self._normalized(actions, space)).abs()
        return (error * of_sample(self.loss_factors, space)).mean()

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """The step, and then the average's: before any callback saves the state."""
        super().optimizer_step(*args, **options)
        if self.average is not None and self.ema_decay is not None:
            decay = min(self.ema_decay, (1 + self.global_step) / (EMA_WARMUP + self.global_step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def exported(self) -> list[nn.Module]:
        return [self.base.model]

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        predicted = self(batch, center_crop(batch["pictures"].flatten(0, 1)))  # [B, T, A]
        space, grippers = batch.get("space"), self.base.space.action.grippers
        target = self._normalized(batch["actions"], space)
        median = of_sample(self.median_actions.to(target), space).expand_as(target)
        metrics = {
            "val/l1": (predicted - target).abs().mean(),
            "val/l1_median_action": (median - target).abs().mean(),
            "val/gripper_accuracy": gripper_accuracy(predicted, target, grippers),
            "val/gripper_majority": gripper_accuracy(median, target, grippers),
        }
        self.log_dict(metrics, batch_size=len(target))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        """Learning rate of a step in parts of the full one."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.trainer.max_steps))))

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, float]:
        """Write the checkpoint folder; return the metrics of the last validation.

        Beside the folder goes OpenVLA's dataset_statistics.json, for others: rsd reads the same from checkpoint.json.

        val/l1_median_action is the same error for always predicting the training actions' median: what a model that
        has learned nothing reaches. So is val/gripper_majority beside val/gripper_accuracy.
        """
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        record = {
            **provenance,
            "unnorm_key": self.base.space.name,
            "data": frames_of(self.trainer).content_id(),
            "steps": self.trainer.global_step,
            "started_from": self.started_from,
            "metrics": metrics,
        }
        save_base(Path(directory), self.base, record, dtype=self.weights_dtype, spaces=self.spaces)
        statistics = {space.name: dict(space.statistics) for space in self.spaces or [self.base.space]}
        write_atomically(Path(directory).parent / STATISTICS_FILE, json.dumps(statistics, indent=2))
        return metrics


def small_base(
    sizes: dict[str, Any],
    *,
    image_size: int,
    views: Sequence[str],
    use_proprio: bool,
    chunk_length: int,
    space: Space,
    instructions: Mapping[str, str],
    seed: int,
    sentences: Sentences | None = None,
) -> OpenVLABase:
    """An untrained base model for a data set: its vocabulary, statistics and widths.

    Args:
        sizes: See `OFTModule`'s architecture.
        instructions: Every one, and where it stands, for messages.
        seed: Of its weights.
        sentences: See `OFTModule`.
    """
    text, action_dim = text_of(instructions, sentences), len(space.action)
    shapes: dict[str, Any] = {
        name: ViTShape(image_size=image_size, **sizes[name]) for name in ("dino", "siglip") if name in sizes
    }
    cameras = {"conv": ConvShape, "patches": PatchShape}
    for name in cameras.keys() & sizes.keys():
        shapes[name] = cameras[name](image_size=image_size, num_views=len(views), **sizes[name])
    architecture = Architecture(
        llm={**sizes["llm"], "vocab_size": text.vocab_size, "pad_token_id": text.pad_id},
        action_dim=action_dim,
        proprio_dim=len(space.proprio) if use_proprio and space.proprio is not None else None,
        num_slots=chunk_length * action_dim if sizes.get("learned_slots") else 0,
        sentence=SentenceShape(text.width, text.num_tokens) if isinstance(text, SentenceText) else None,
        **shapes,
    )
    with torch.random.fork_rng(devices=[]):  # what is drawn here is drawn on the CPU
        torch.manual_seed(seed)
        model = OpenVLAOFT(architecture)
    if architecture.cameras is not None:
        processor = PrismaticImageProcessor(sizes=[image_size], means=[HALF], stds=[HALF])
    else:
        processor = PrismaticImageProcessor(sizes=[image_size] * 2)
    return OpenVLABase(
        model=model,
        processor=processor,
        text=text,
        space=space,
        views=views,
        chunk_length=chunk_length,
        center_crop=True,
        weights_sha256=lambda: "in training",
    )


def text_of(instructions: Mapping[str, str], sentences: Sentences | None) -> WordText | SentenceText:
    """What a model that is trained from scratch reads a data set's instructions with: see `small_base`.

    Raises:
        InstructionError: instructions say nothing, or two of them the same.
        CheckpointError: the sentence encoder is not to be found.
    """
    if sentences is None:
        return WordText.from_instructions(instructions, instructions)
    encoder = load_encoder(sentences.encoder, sentences.source)
    text = SentenceText.of(encoder, sentences.num_tokens, instructions)
    check_instructions(text, instructions, instructions)
    return text


def rebuilt(base: OpenVLABase, model: OpenVLAOFT) -> OpenVLABase:
    """The same base model with other weights."""
    return OpenVLABase(
        model=model,
        processor=base.processor,
        text=base.text,
        space=base.space,
        views=base.views,
        chunk_length=base.chunk_length,
        center_crop=base.center_crop,
        weights_sha256=lambda: "in training",
    )
