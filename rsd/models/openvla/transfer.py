"""Starting a small base model from a trained one that knows fewer words: further tasks without starting again.

What surprises first: the new data set has other statistics, so the same robot motion has other normalised numbers than
the old weights were trained for. Normalisation is affine in every dim, and so are the layers at both ends, the
projector of proprio and the last layer of the L1 head: they take the change in, and the robot moves as it did before.
Only what the old statistics clipped differs: the new model sees it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsd.checkpoint import CheckpointError, load_checkpoint, load_weights
from rsd.models.openvla.loading import KIND, PRODUCE
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.text import WordText
from rsd.space import EPSILON, Range, Space, Statistics, resolve_unnorm_key

LAST_LAYER, PROPRIO_LAYER = "action_head.model.fc2", "proprio_projector.fc1"
WORD_TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")  # one row an id


def start_from(model: OpenVLAOFT, text: WordText, space: Space, directory: Path) -> str:
    """Overwrite a new model's weights, in place, with those of a trained checkpoint of the same architecture.

    Rows of words that the checkpoint knows come from it, wherever they stood there; new words' rows stay as they are.

    Args:
        text: The new model's vocabulary.
        space: What the new model's numbers mean.
        directory: Folder written by phase=oft.

    Returns:
        Hash of the checkpoint's weights.

    Raises:
        CheckpointError: missing, damaged, of another architecture, or it knows words that the new model does not.
    """
    loaded = load_checkpoint(directory, kind=KIND, produce=PRODUCE)
    if "words" not in loaded.config:
        raise CheckpointError(f"{directory} has no vocabulary of words; start from a checkpoint of phase=oft")
    known = WordText(loaded.config["words"])
    lost = [word for word in known.words if word not in text.ids]
    if lost:
        raise CheckpointError(
            f"{directory} knows words {lost} that the new data set does not have, and would forget them; add episodes "
            "of its tasks to the data set"
        )
    kept = list(range(WordText.FIRST_WORD))  # padding and the fixed ids
    old_rows = [*kept, *(known.ids[word] for word in known.words)]
    new_rows = [*kept, *(text.ids[word] for word in known.words)]
    stored: dict[str, Statistics] = loaded.config["norm_stats"]
    name = resolve_unnorm_key(stored, None)
    weights, own = restated(loaded.weights, Space.from_statistics(name, stored[name]), space), model.state_dict()
    for name in set(WORD_TABLES) & weights.keys() & own.keys():
        table = own[name].clone()
        if weights[name].shape[1:] == table.shape[1:] and len(weights[name]) == known.vocab_size:
            table[new_rows] = weights[name].to(table)[old_rows]
            weights[name] = table
    with torch.no_grad():
        load_weights(model, dataclasses.replace(loaded, weights=weights), directory)
    return loaded.sha256


def restated(weights: dict[str, Tensor], old: Space, new: Space) -> dict[str, Tensor]:
    """Weights for numbers of the `new` model space that move the robot as `weights` do with those of the `old` one."""
    weights = dict(weights)
    if f"{LAST_LAYER}.weight" in weights:
        scale, shift = _between(old.action, new.action)  # [A] each
        weight, bias = (weights[f"{LAST_LAYER}.{name}"].double() for name in ("weight", "bias"))
        weights[f"{LAST_LAYER}.weight"] = weight * scale[:, None]
        weights[f"{LAST_LAYER}.bias"] = bias * scale + shift
    if f"{PROPRIO_LAYER}.weight" in weights and old.proprio is not None and new.proprio is not None:
        scale, shift = _between(new.proprio, old.proprio)  # [P] each
        weight, bias = (weights[f"{PROPRIO_LAYER}.{name}"].double() for name in ("weight", "bias"))
        weights[f"{PROPRIO_LAYER}.weight"] = weight * scale
        weights[f"{PROPRIO_LAYER}.bias"] = bias + weight @ shift
    return weights


def _between(source: Range, target: Range) -> tuple[Tensor, Tensor]:
    """Scale and shift, [dims] each, that turn numbers normalised with `source` into those of `target`.

    Dims that are not normalised stay as they are; in one that is constant in `target`'s data every number becomes -1,
    which is what normalisation makes of that constant.
    """
    low, high, new_low, new_high = (np.asarray(side) for side in (source.low, source.high, target.low, target.high))
    width, new_width = high - low + EPSILON, new_high - new_low + EPSILON
    scale, shift = width / new_width, (width + 2 * (low - new_low)) / new_width - 1
    constant = new_high == new_low
    scale, shift = np.where(constant, 0.0, scale), np.where(constant, -1.0, shift)
    normalised = np.asarray(source.mask)
    return torch.from_numpy(np.where(normalised, scale, 1.0)), torch.from_numpy(np.where(normalised, shift, 0.0))
