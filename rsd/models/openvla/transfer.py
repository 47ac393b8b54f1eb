"""Starting a small base model from a trained one that knows fewer words, or words where the new one reads sentences.

What surprises first: the new data set has other statistics, so the same robot motion has other normalised numbers than
the old weights were trained for. Normalisation is affine in every dim, and so are the layers at both ends, the
projector of proprio and the last layer of the L1 head: they take the change in, and the robot moves as it did before.
Only what the old statistics clipped differs: the new model sees it. A sentence's projector is solved for (ridge
regression on its last layer), so that an instruction and its paraphrases say what the old model's words said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.checkpoint import CheckpointError, load_checkpoint, load_weights
from rsd.models.openvla.loading import KIND, PRODUCE, check_encoder
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.text import SentenceText, UnknownWordError, WordText
from rsd.space import EPSILON, Range, Space, Statistics, resolve_unnorm_key

LAST_LAYER, PROPRIO_LAYER = "action_head.model.fc2", "proprio_projector.fc1"
PROJECTOR = "sentence_projector"
RIDGE = 1e-4  # of the mean square of a feature, which is about 0.1
WORD_TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")  # one row an id


def start_from(
    model: OpenVLAOFT,
    text: WordText | SentenceText,
    space: Space,
    directory: Path,
    paraphrases: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Overwrite a new model's weights, in place, with those of a trained checkpoint of the same architecture.

    Rows of words that the checkpoint knows come from it, wherever they stood there; new words' rows stay as they are.

    Args:
        text: The new model's.
        space: What the new model's numbers mean.
        directory: Folder written by phase=oft.
        paraphrases: Of a model that reads sentences: instruction to what means the same.

    Returns:
        Hash of the checkpoint's weights.

    Raises:
        CheckpointError: missing, damaged, of another architecture, it knows words that the new model does not, or reads
            sentences where the new model does not or with another encoder.
    """
    loaded = load_checkpoint(directory, kind=KIND, produce=PRODUCE)
    stored: dict[str, Statistics] = loaded.config["norm_stats"]
    name = resolve_unnorm_key(stored, None)
    weights, own = restated(loaded.weights, Space.from_statistics(name, stored[name]), space), model.state_dict()
    known = WordText(loaded.config["words"]) if "words" in loaded.config else None
    if known is None:
        _check_sentences(directory, loaded.config, text)
    else:
        rows = _rows(directory, known, text)
        for name in set(WORD_TABLES) & weights.keys() & own.keys():
            table = own[name].clone()
            if weights[name].shape[1:] == table.shape[1:] and len(weights[name]) == known.vocab_size:
                table[list(rows.values())] = weights[name].to(table)[list(rows)]
                old, weights[name] = weights[name], table
                if isinstance(text, SentenceText) and name == WORD_TABLES[0]:
                    weights |= _projector(model, text, known, old, paraphrases or {})
    with torch.no_grad():
        load_weights(model, dataclasses.replace(loaded, weights=weights), directory)
    return loaded.sha256


def _check_sentences(directory: Path, config: Mapping[str, Any], text: WordText | SentenceText) -> None:
    """See that both models read sentences, and with the same encoder."""
    said = config.get("sentences")
    if said is None:
        raise CheckpointError(f"{directory} has no vocabulary of words; start from a checkpoint of phase=oft")
    if not isinstance(text, SentenceText):
        raise CheckpointError(f"{directory} reads sentences, and the new model words; choose text=sentence")
    check_encoder(directory, said["encoder"], said["sha256"], text.encoder)


def _rows(directory: Path, known: WordText, text: WordText | SentenceText) -> dict[int, int]:
    """Row of a word table in the checkpoint → row in the new model, of all that stays."""
    kept = {row: row for row in range(WordText.FIRST_WORD)}  # padding and the fixed ids
    if isinstance(text, SentenceText):
        return kept
    if lost := [word for word in known.words if word not in text.ids]:
        raise CheckpointError(
            f"{directory} knows words {lost} that the new data set does not have, and would forget them; add episodes "
            "of its tasks to the data set, or choose text=sentence"
        )
    return kept | {known.ids[word]: text.ids[word] for word in known.words}


def _projector(
    model: OpenVLAOFT, text: SentenceText, known: WordText, table: Tensor, paraphrases: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """The sentence projector's weights with which instructions say what their words said; its own where none did.

    Args:
        table: Embeddings of the known words, [V, H].
    """
    projector = model.sentence_projector
    weights = {f"{PROJECTOR}.{name}": value.clone() for name, value in projector.state_dict().items()}
    vectors, wanted = [], []
    for instruction, others in {**dict.fromkeys(text.instructions, ()), **paraphrases}.items():
        try:
            words = table[known.encode(instruction)[1:-1]].double()  # [L, H]
        except UnknownWordError:
            continue
        vectors += [text.vector(one) for one in (instruction, *others)]
        wanted += [stretched(words, projector.num_tokens).flatten()] * (1 + len(others))
    if vectors:
        with torch.no_grad():
            features = projector.features(torch.stack(vectors).to(table.device)).double()  # [N, H]
        features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        penalty = RIDGE * len(features) * torch.eye(features.shape[1], dtype=features.dtype)
        solved = torch.linalg.solve(features.T @ features + penalty, features.T @ torch.stack(wanted))  # [H + 1, n * H]
        weights[f"{PROJECTOR}.fc2.weight"], weights[f"{PROJECTOR}.fc2.bias"] = solved[:-1].T.float(), solved[-1].float()
    return weights


def stretched(words: Tensor, count: int) -> Tensor:
    """L vectors as `count`, each the mean of its share of them: [L, H] → [count, H], with the same mean."""
    edges, own = torch.linspace(0, len(words), count + 1, dtype=words.dtype), torch.arange(len(words)).to(words)
    low, high = edges[:-1, None].maximum(own), edges[1:, None].minimum(own + 1)  # [count, L]
    return (high - low).clamp(min=0) @ words * count / len(words)


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
