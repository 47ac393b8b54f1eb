"""Tokenizer checkpoints: the configuration says what to build, the file must agree with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rsd.checkpoint import CheckpointError, load_checkpoint, load_weights, save_checkpoint
from rsd.tokenizer.base import ActionTokenizer

KIND = "tokenizer"
COMMAND = "python train.py phase=rfsq"
FIRST_BOUNDS = "quantiles"  # of tokenizers whose checkpoint does not name any


def save_tokenizer(tokenizer: ActionTokenizer, directory: Path, provenance: dict[str, Any]) -> None:
    """Write a tokenizer's checkpoint folder; provenance must hold the norm_stats of the actions it was fitted on."""
    config = {"family": type(tokenizer).__name__, **tokenizer.config}
    save_checkpoint(directory, kind=KIND, config=config, weights=tokenizer.state_dict(), provenance=provenance)


def load_tokenizer(
    tokenizer: ActionTokenizer, checkpoint: Path, unnorm_key: str | None = None, bounds: str | None = None
) -> tuple[ActionTokenizer, dict[str, Any]]:
    """Fill a freshly built tokenizer from a checkpoint.

    Args:
        tokenizer: Built from the configuration; receives the weights.
        checkpoint: Folder written by `save_tokenizer`.
        unnorm_key: Data set whose normalisation the caller uses; another one in the checkpoint is an error.
        bounds: Name of the statistics that -1 and 1 stand for (rsd/normalization.py); likewise.

    Returns:
        The tokenizer in evaluation mode, and its provenance with the weights' "sha256" added.

    Raises:
        CheckpointError: missing, damaged, or made for another configuration; every differing value is named.
    """
    loaded = load_checkpoint(checkpoint, kind=KIND, produce=COMMAND)
    asked = {"family": type(tokenizer).__name__, **tokenizer.config}
    differing = [
        f"{name} is {loaded.config.get(name)!r} in the checkpoint but {asked.get(name)!r} in the configuration"
        for name in sorted(asked.keys() | loaded.config.keys())
        if asked.get(name) != loaded.config.get(name)
    ]
    if unnorm_key is not None and loaded.provenance["unnorm_key"] != unnorm_key:
        differing.append(f"unnorm_key is {loaded.provenance['unnorm_key']!r} in the checkpoint but {unnorm_key!r} here")
    provenance = {"bounds": FIRST_BOUNDS} | loaded.provenance
    if bounds is not None and provenance["bounds"] != bounds:
        differing.append(f"data.bounds is {provenance['bounds']!r} in the checkpoint but {bounds!r} here")
    if differing:
        raise CheckpointError(f"tokenizer {checkpoint} does not fit: {'; '.join(differing)}; train one with {COMMAND}")
    load_weights(tokenizer, loaded, checkpoint)
    return tokenizer.eval().requires_grad_(False), provenance | {"sha256": loaded.sha256}
