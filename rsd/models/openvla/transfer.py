"""Starting a small base model from a trained one that knows fewer words: further tasks without starting again.

What surprises first: statistics are not transferred. They are the new data set's, so the same robot motion has slightly
other normalised numbers than the old weights were trained for, and training has to make up for it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from rsd.checkpoint import CheckpointError, load_checkpoint, load_weights
from rsd.models.openvla.loading import KIND, PRODUCE
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.text import WordText

WORD_TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")  # one row an id


def start_from(model: OpenVLAOFT, text: WordText, directory: Path) -> str:
    """Overwrite a new model's weights, in place, with those of a trained checkpoint of the same architecture.

    Rows of words that the checkpoint knows come from it, wherever they stood there; new words' rows stay as they are.

    Args:
        text: The new model's vocabulary.
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
    weights, own = dict(loaded.weights), model.state_dict()
    for name in set(WORD_TABLES) & weights.keys() & own.keys():
        table = own[name].clone()
        if weights[name].shape[1:] == table.shape[1:] and len(weights[name]) == known.vocab_size:
            table[new_rows] = weights[name].to(table)[old_rows]
            weights[name] = table
    with torch.no_grad():
        load_weights(model, dataclasses.replace(loaded, weights=weights), directory)
    return loaded.sha256
