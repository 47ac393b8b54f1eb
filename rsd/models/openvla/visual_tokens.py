"""Which picture tokens reach the language model: K of a view, evenly spaced, drawn by a seed, or chosen by a scorer.

The tokens stand between projector and language model. Those that stay keep their positions in the whole sequence, so
rotary angles are the ones that the model was trained with; K is fixed, so shapes are. No selection at all (`None`, the
choice `all`) is the model as it is.

What surprises first: a selection needs no training of the base model and is a change of it all the same. It is part of
the fingerprint, and heads that were trained on other tokens are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsd.checkpoint import JSON_FILE, CheckpointError, load_checkpoint, load_weights, save_checkpoint
from rsd.errors import SettingError
from rsd.record import EntryError, arguments, conform, shown
from rsd.settings import Count, Seed, Width, checked
from rsd.types import ALL_TOKENS

KIND = "visual_tokens"  # of a checkpoint
PRODUCE = "python train.py phase=tokens visual_tokens=learned"
MAX_PARAMETERS = 1_000_000  # of a scorer


@dataclass(frozen=True)
class PictureTokens:
    """What a selection is told of the model that it is for.

    Attributes:
        num_views: M.
        num_patches: N, tokens a view.
        has_grid: Whether the N are a square of patches, row by row; keypoints of convolutional towers are not.
        width: H of a token.
        fingerprint: Makes the model's own, without any selection.
    """

    num_views: int
    num_patches: int
    has_grid: bool
    width: int
    fingerprint: Callable[[], Mapping[str, Any]] = field(compare=False)


class VisualTokens(Protocol):
    """A selection of picture tokens; hashable, so that a graph can be kept for it.

    Attributes:
        num_tokens: K, that stay of each view.
    """

    @property
    def num_tokens(self) -> int: ...

    def fit(self, tokens: PictureTokens) -> None:
        """See that it can be used with a model.

        Raises:
            SettingError: the model has fewer tokens.
            CheckpointError: it was made for another model.
        """

    def choose(self, tokens: PictureTokens, patches: Tensor, words: Callable[[], Tensor]) -> Tensor:
        """Which stay.

        Args:
            tokens: As in `fit`.
            patches: The model's picture tokens, view by view, [B, M*N, H].
            words: Makes the mean of the instruction's embeddings, [B, H].

        Returns:
            Indices into the M*N, ascending, K of each view: [B, M*K], int64.
        """

    def to_json(self) -> dict[str, Any]:
        """What identifies it, for the fingerprint."""


def check_count(num_tokens: int, tokens: PictureTokens) -> None:
    """Raises SettingError for a K that the model cannot keep."""
    if type(num_tokens) is not int or not 1 <= num_tokens <= tokens.num_patches:
        raise SettingError(
            f"visual_tokens.num_tokens is {num_tokens!r}, and the model has {tokens.num_patches} tokens a view; set "
            f"1..{tokens.num_patches}, or visual_tokens=all"
        )


@checked
def all_tokens(*, num_tokens: Count | None) -> None:
    """The choice `all`: no selection.

    Raises:
        SettingError: a number of tokens is asked for all the same.
    """
    if num_tokens is not None:
        raise SettingError(
            f"visual_tokens.num_tokens is {num_tokens!r}, and visual_tokens=all keeps every one; choose "
            "visual_tokens=grid, random or learned as well"
        )


@checked
def check_all(*, phase: str, selection: str) -> None:
    """Raises SettingError where a phase that trains a base model is told to leave some of its tokens out."""
    if selection != ALL_TOKENS:
        raise SettingError(
            f"phase={phase} trains a base model with all of its picture tokens; leave out visual_tokens={selection}, "
            "and choose it for the trained model"
        )


class _Fixed:
    """The same tokens of every picture; their indices stay on the device, as a graph may copy nothing to it."""

    num_tokens: int

    def __init__(self) -> None:
        self._kept: dict[tuple[PictureTokens, torch.device], Tensor] = {}

    def of_view(self, tokens: PictureTokens, view: int) -> Tensor:
        """Which stay of a view, ascending, [K], int64."""
        raise NotImplementedError

    def fit(self, tokens: PictureTokens) -> None:
        check_count(self.num_tokens, tokens)

    @torch.inference_mode(False)
    def choose(self, tokens: PictureTokens, patches: Tensor, words: Callable[[], Tensor]) -> Tensor:
        key = (tokens, patches.device)
        if key not in self._kept:
            views = [self.of_view(tokens, view) + view * tokens.num_patches for view in range(tokens.num_views)]
            self._kept[key] = torch.cat(views).to(patches.device)
        return self._kept[key].expand(len(patches), -1)


class Grid(_Fixed):
    """Evenly spaced: in rows and columns of a square of patches, along the list of keypoints."""

    @checked
    def __init__(self, *, num_tokens: Count) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    def of_view(self, tokens: PictureTokens, view: int) -> Tensor:
        if not tokens.has_grid:
            return evenly(tokens.num_patches, self.num_tokens)
        side = math.isqrt(tokens.num_patches)
        rows = evenly(side, min(side, max(1, round(math.sqrt(self.num_tokens)))))
        columns = [evenly(side, len(part)) for part in torch.arange(self.num_tokens).tensor_split(len(rows))]
        return torch.cat([row * side + one for row, one in zip(rows, columns, strict=True)])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "grid", "num_tokens": self.num_tokens}


class Random(_Fixed):
    """Drawn once by a seed, for each view anew, and then the same for every picture: a control for all others."""

    @checked
    def __init__(self, *, num_tokens: Count, seed: Seed = 0) -> None:
        super().__init__()
        self.num_tokens, self.seed = num_tokens, seed

    def of_view(self, tokens: PictureTokens, view: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * tokens.num_views + view)
        return torch.randperm(tokens.num_patches, generator=generator)[: self.num_tokens].sort().values

    def to_json(self) -> dict[str, Any]:
        return {"kind": "random", "num_tokens": self.num_tokens, "seed": self.seed}


def evenly(length: int, count: int) -> Tensor:
    """`count` different numbers of 0..length-1, ascending, [count], int64: the middles of equal parts."""
    return (2 * torch.arange(count) + 1) * length // (2 * count)


class Scorer(nn.Module):
    """How much each picture token matters: what it says, where it stands, and what the instruction says.

    Args:
        width: H of a token.
        num_views, num_patches: M and N.
        hidden: Width inside.

    Raises:
        SettingError: it would have more than MAX_PARAMETERS.
    """

    def __init__(self, *, width: Width, num_views: Count, num_patches: Count, hidden: Width) -> None:
        super().__init__()
        self.config = {"width": width, "num_views": num_views, "num_patches": num_patches, "hidden": hidden}
        self.content = nn.Linear(width, hidden)
        self.words = nn.Linear(width, hidden, bias=False)
        self.place = nn.Parameter(0.02 * torch.randn(num_views * num_patches, hidden))
        self.inner = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        size = sum(parameter.numel() for parameter in self.parameters())
        if size > MAX_PARAMETERS:
            raise SettingError(
                f"a scorer of hidden width {hidden} has {size:,} parameters, expected at most {MAX_PARAMETERS:,}; "
                "set a smaller phase.module.hidden"
            )

    def forward(self, patches: Tensor, words: Tensor) -> Tensor:
        """Tokens [B, M*N, H] and the instruction [B, H] → scores [B, M, N], float32."""
        patches, words = (F.layer_norm(x.float(), x.shape[-1:]) for x in (patches, words))
        x = self.content(patches) + self.words(words)[:, None] + self.place  # [B, M*N, hidden]
        scores = self.score(F.gelu(self.inner(F.gelu(x))))[..., 0]
        return scores.unflatten(1, (self.config["num_views"], self.config["num_patches"]))


def highest(scores: Tensor, num_tokens: int) -> Tensor:
    """Scores [B, M, N] → indices of the K highest of each view into the M*N, ascending, [B, M*K], int64."""
    kept = scores.topk(num_tokens, dim=-1).indices.sort(dim=-1).values  # [B, M, K]
    views = torch.arange(scores.shape[1], device=scores.device)[:, None] * scores.shape[2]
    return (kept + views).flatten(1)


class Learned:
    """The K with the highest scores of each view, by a scorer of phase=tokens.

    Args:
        num_tokens: K; the scorer was trained for one.
        checkpoint: Its folder.

    Raises:
        CheckpointError: missing, damaged, or trained for another K.
    """

    @checked
    def __init__(self, *, num_tokens: Count, checkpoint: str | Path) -> None:
        self.num_tokens, self.directory = num_tokens, Path(checkpoint)
        loaded = load_checkpoint(self.directory, kind=KIND, produce=PRODUCE)
        where = str(self.directory / JSON_FILE)
        try:
            self.made_for = conform(loaded.provenance, {"base": dict[str, Any]}, where, "provenance")["base"]
            config = conform(loaded.config, {"num_tokens": Count}, where, "config")
            trained = config.pop("num_tokens")
            size = arguments(Scorer, config, where, "config")
        except EntryError as error:
            raise CheckpointError(f"{error}; copy it again, or train one with {PRODUCE}") from error
        self.sha256 = loaded.sha256
        if trained != num_tokens:
            raise CheckpointError(
                f"{self.directory} was trained to keep {trained} tokens a view, asked for {num_tokens}; set "
                f"visual_tokens.num_tokens={trained}, or train one with {PRODUCE} visual_tokens.num_tokens={num_tokens}"
            )
        self.scorer = Scorer(**size)
        load_weights(self.scorer, loaded, self.directory)
        self.scorer.eval().requires_grad_(False)

    def fit(self, tokens: PictureTokens) -> None:
        check_count(self.num_tokens, tokens)
        here = json.loads(json.dumps(tokens.fingerprint()))
        if self.made_for != here:
            different = sorted(key for key in self.made_for | here if self.made_for.get(key) != here.get(key))
            raise CheckpointError(
                f"visual_tokens {self.directory} was trained for another base model: {', '.join(different)} differ; "
                f"train it for this one with {PRODUCE}"
            )

    def choose(self, tokens: PictureTokens, patches: Tensor, words: Callable[[], Tensor]) -> Tensor:
        if self.scorer.place.device != patches.device:
            self.scorer.to(patches.device)
        scores = self.scorer(patches, words())
        if scores.is_cpu and not scores.isfinite().all():  # a GPU does not wait for that; its weights were looked at
            raise CheckpointError(f"{self.directory} says NaN or infinity of the pictures; train one with {PRODUCE}")
        return highest(scores, self.num_tokens)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "learned", "num_tokens": self.num_tokens, "sha256": self.sha256}


def save_scorer(scorer: Scorer, directory: Path, *, num_tokens: int, provenance: dict[str, Any]) -> None:
    """Write a scorer's checkpoint folder; `provenance` must hold "base" (fingerprint without a selection)."""
    config = {**scorer.config, "num_tokens": num_tokens}
    save_checkpoint(directory, kind=KIND, config=config, weights=scorer.state_dict(), provenance=provenance)


def from_json(record: Mapping[str, Any], checkpoint: Path | None) -> VisualTokens:
    """The selection that a policy's folder names: `to_json` without the hash.

    Args:
        record: "kind", and the arguments of its class.
        checkpoint: Folder of the scorer, for kind "learned".

    Raises:
        CheckpointError: an unknown kind or entry, or there is no scorer.
    """
    options = dict(record)
    kind = options.pop("kind", None)
    kinds: dict[str, tuple[type[Any], set[str]]] = {
        "grid": (Grid, {"num_tokens"}),
        "random": (Random, {"num_tokens", "seed"}),
        "learned": (Learned, {"num_tokens"}),
    }
    if not isinstance(kind, str) or kind not in kinds or options.keys() != kinds[kind][1]:
        expected = {name: sorted(entries) for name, (_, entries) in kinds.items()}
        raise CheckpointError(f"visual_tokens of policy.json is {shown(dict(record))}, expected a kind with {expected}")
    if kind != "learned":
        return kinds[kind][0](**options)
    if checkpoint is None:
        raise CheckpointError("policy.json asks for learned visual_tokens, and names no part 'visual_tokens'")
    return Learned(**options, checkpoint=checkpoint)
