"""phase=tokens: train a scorer that says which picture tokens a frozen base model can do without.

The teacher is the base model with all of its tokens, and nothing else is: the loss is how far its own answer moves. A
choice has no gradient, so while learning it is relaxed: a token with weight w is seen by every attention as if there
were w of it (log w is added to the attention's logits), and weight 0 is a token left out. What is left out sends a
gradient too, so a token can come back.

What surprises first: scores are brought to variance 1 within a view before the K-th highest is the threshold. Equal
scores would give every token the same weight, which hardly disturbs the model and chooses nothing. Validation takes no
part in this: it leaves the tokens out, as evaluation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from rsd.errors import SettingError
from rsd.images import center_crop
from rsd.models.openvla import segments
from rsd.models.openvla.action_heads import read_tokens
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.model import Choose, select
from rsd.models.openvla.segments import PARALLEL_HEADS, Tensors, given
from rsd.models.openvla.visual_tokens import Grid, Random, Scorer, VisualTokens, highest, save_scorer
from rsd.settings import Count, NotNegative, Positive, Rate, Seed, Width, checked
from rsd.training.given import FrameBatch, frames_of
from rsd.training.randomness import step_generator
from rsd.training.steps import scheduled

NUM_RANDOM = 3  # seeds of the random selection that the scorer is held against
LEARNED = "learned"


def log_weights(scores: Tensor, num_tokens: int, temperature: float, noise: Tensor) -> Tensor:
    """Relaxed choice of K: the logarithm of each token's weight in 0..1, half a token at the threshold.

    Args:
        scores: [B, M, N].
        num_tokens: K, fewer than N.
        temperature: In standard deviations of a view's scores; the smaller, the harder.
        noise: Added, in temperatures, [B, M, N].
    """
    spread = (scores - scores.mean(dim=-1, keepdim=True)) / (scores.std(dim=-1, keepdim=True) + 1e-6)
    spread = spread + temperature * noise
    around = spread.topk(num_tokens + 1, dim=-1).values[..., -2:]  # the last that stays, the first that goes
    return F.logsigmoid((spread - around.mean(dim=-1, keepdim=True)) / temperature)


class VisualTokensModule(LightningModule):
    """Distils the frozen base model's own answer through a relaxed choice of its picture tokens.

    Args:
        selection: Name of the configured selection; only a learned one can be trained.
        num_tokens: K, tokens of a view that stay.
        hidden: Width inside the scorer.
        learning_rate: Peak of a one-cycle schedule over the trainer's max_steps.
        first_temperature, last_temperature: Of the relaxed choice; geometric in between.
        noise: Standard deviation of what is added to scores, in temperatures.
        seed: Of the scorer's weights and the noise; step n draws from (seed, n) alone.
        base: Loads the base model, without a selection.

    Raises:
        SettingError: another selection is configured, or a number is out of range.
    """

    scorer: Scorer

    @checked
    def __init__(
        self,
        *,
        selection: str,
        num_tokens: Count | None,
        hidden: Width,
        learning_rate: Rate,
        first_temperature: Positive,
        last_temperature: Positive,
        noise: NotNegative,
        seed: Seed,
        base: Callable[[], OpenVLABase],
    ) -> None:
        super().__init__()
        if selection != LEARNED or num_tokens is None:
            raise SettingError(
                f"phase=tokens trains visual_tokens={LEARNED}, and visual_tokens={selection} is chosen; say "
                f"phase=tokens visual_tokens={LEARNED} visual_tokens.num_tokens=16"
            )
        if not 0 < last_temperature <= first_temperature:
            raise SettingError(
                f"phase.module temperatures fall from {first_temperature} to {last_temperature}, expected positive "
                "ones, the last one not above the first"
            )
        self.num_tokens, self.hidden, self.learning_rate = num_tokens, hidden, learning_rate
        self.temperatures, self.noise, self.seed = (first_temperature, last_temperature), noise, seed
        self._load_base = base
        self._errors: dict[str, list[Tensor]] = {}  # of a validation, one number a frame

    def setup(self, stage: str) -> None:
        if hasattr(self, "scorer"):
            return
        self.base = base = self._load_base()
        if base.action_head not in PARALLEL_HEADS:
            raise SettingError(
                f"phase=tokens learns through an action head of one parallel pass, {' or '.join(PARALLEL_HEADS)}; this "
                f"model's is {base.action_head!r}: choose visual_tokens=grid or random"
            )
        if (root := self.trainer.strategy.root_device.type) != base.device.type:
            raise SettingError(f"the base model is on {base.device.type!r}, the trainer on {root!r}; set device={root}")
        limit = base.pictures.num_patches - 1
        if type(self.num_tokens) is not int or not 1 <= self.num_tokens <= limit:
            raise SettingError(
                f"visual_tokens.num_tokens is {self.num_tokens!r}, and the model has {limit + 1} tokens a view; a "
                f"scorer chooses 1..{limit} of them"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            pictures = base.pictures
            self.scorer = Scorer(
                width=pictures.width,
                num_views=pictures.num_views,
                num_patches=pictures.num_patches,
                hidden=self.hidden,
            )

    @torch.no_grad()
    def _sequence(self, batch: FrameBatch) -> Tensors:
        """What the language model reads of a batch, with all tokens: x, mask, slots, and the instruction's ids."""
        base = self.base
        pictures = batch["pictures"].flatten(0, 1).cpu()
        inputs = {
            "pixel_values": base.pixel_values(center_crop(pictures) if base.center_crop else pictures),
            **base.prompts(batch["instructions"]),
        }
        if base.use_proprio:
            inputs["proprio"] = base.normalized_proprio([*batch["proprio"].cpu().numpy()])
        moved = base.on_device(inputs)
        return {**segments.embed(base.model, moved, chunk_length=base.chunk_length), **segments.told(moved)}

    def _last_states(self, sequence: Tensors) -> Tensor:
        """Of the action slots, [B, K, H]; `mask` may be what is added to the attention's logits."""
        model, last = self.base.model, self.base.model.num_layers
        x = model.run_layers(given(sequence, "x"), sequence["mask"], 0, last, positions=sequence.get("positions"))
        return select(model.read_out(x, last), given(sequence, "slots"))

    def _answer(self, states: Tensor) -> Tensor:
        """What the loss compares: the chunk of an L1 head; logits of tokens, [B, K, V]."""
        model = self.base.model
        if self.base.action_head == "l1":
            return segments.l1_head(model)(states)
        return model.language_model.lm_head(states)

    def _chunk(self, states: Tensor) -> Tensor:
        if self.base.action_head == "l1":
            return self._answer(states).float()
        return read_tokens(self.base.model, states, self.base.chunk_length)

    def _scores(self, sequence: Tensors) -> Tensor:
        patches = given(sequence, "x")[:, 1 : 1 + self.base.num_pictures]
        told = given(sequence, "input_ids"), given(sequence, "action_start"), sequence.get("sentence")
        words = self.base.model.words(*told)
        return self.scorer(patches, words)

    @property
    def temperature(self) -> float:
        """Of this step."""
        first, last = self.temperatures
        return first * (last / first) ** min(1.0, self.global_step / max(1, self.trainer.max_steps))

    def relaxed(self, sequence: Tensors, weights: Tensor) -> Tensors:
        """The sequence with every attention told log weights [B, M, N] of the picture tokens."""
        x, mask = given(sequence, "x"), sequence["mask"]
        told = x.new_zeros(x.shape[:2]) if mask is None else x.new_zeros(x.shape[:2]).masked_fill(~mask, -torch.inf)
        count = self.base.num_pictures
        told = torch.cat([told[:, :1], weights.flatten(1).to(x.dtype), told[:, 1 + count :]], dim=1)  # [B, S]
        return {**sequence, "mask": told}

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        sequence = self._sequence(batch)
        with torch.no_grad():
            expected = self._answer(self._last_states(sequence)).float()
        scores = self._scores(sequence)
        generator = step_generator(self.seed, self.global_step, rank=self.global_rank)
        noise = self.noise * torch.randn(scores.shape, generator=generator).to(scores)
        weights = log_weights(scores, self.num_tokens, self.temperature, noise)
        got = self._answer(self._last_states(self.relaxed(sequence, weights))).float()
        if self.base.action_head == "l1":
            loss = (got - expected).abs().mean()
        else:
            loss = (
                F.kl_div(got.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none")
                .sum(-1)
                .mean()
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(scores))
        return loss

    def _selections(self) -> Mapping[str, list[Choose]]:
        """Name to what is measured under it: the scorer, and what it has to beat."""
        pictures = self.base.pictures

        def choose(selection: VisualTokens) -> Choose:
            selection.fit(pictures)
            return partial(selection.choose, pictures)

        return {
            LEARNED: [lambda patches, words: highest(self.scorer(patches, words()), self.num_tokens)],
            "grid": [choose(Grid(num_tokens=self.num_tokens))],
            "random": [choose(Random(num_tokens=self.num_tokens, seed=seed)) for seed in range(NUM_RANDOM)],
            "all": [choose(Grid(num_tokens=pictures.num_patches))],
        }

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        sequence = self._sequence(batch)
        full = self._chunk(self._last_states(sequence))  # [B, T, A]
        for name, ways in self._selections().items():
            for choose in ways:
                kept = segments.keep(self.base.model, sequence, choose=choose, num_pictures=self.base.num_pictures)
                moved = (self._chunk(self._last_states(kept)) - full).abs().mean(dim=(1, 2))  # [B]
                self._errors.setdefault(name, []).append(moved.cpu())

    def on_validation_epoch_end(self) -> None:
        self.report = {f"{name}_l1": float(torch.cat(errors).mean()) for name, errors in self._errors.items()}
        self._errors.clear()
        for name, value in self.report.items():
            self.log(f"val/{name}", value, prog_bar=name == "learned_l1")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.scorer.parameters(), lr=self.learning_rate, weight_decay=0.01)
        return scheduled(optimizer, self.learning_rate, self.trainer.max_steps)

    def export(self, directory: Path, provenance: dict[str, Any]) -> dict[str, float]:
        """Write the scorer's folder; return the last validation's chunk L1 to the base model, by selection."""
        record = {
            **provenance,
            "unnorm_key": self.base.space.name,
            "base": self.base.spec.fingerprint,
            "data": frames_of(self.trainer).content_id(),
            "steps": self.trainer.global_step,
            "metrics": self.report,
        }
        save_scorer(self.scorer, Path(directory), num_tokens=self.num_tokens, provenance=record)
        return self.report
