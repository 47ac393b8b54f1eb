"""Checkpoints of target heads and drafts, and the contract between them, the tokenizer and the base model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsd.checkpoint import CheckpointError, load_checkpoint, load_weights, save_checkpoint
from rsd.points import HEAD, point_name
from rsd.stages.head import StageHead
from rsd.types import BaseSpec, CodeShape


def save_stage_head(head: StageHead, directory: Path, *, kind: str, point: str, provenance: dict[str, Any]) -> None:
    """Write a head's or draft's checkpoint folder.

    Args:
        kind: "head" or "draft".
        point: Point of the base model whose states it reads.
        provenance: Must hold "tokenizer" (weights hash), "base" (fingerprint) and "unnorm_key".
    """
    config = {**head.config, "point": point, "code_shape": asdict(head.code_shape)}
    save_checkpoint(directory, kind=kind, config=config, weights=head.state_dict(), provenance=provenance)


def load_stage_head(
    directory: Path, *, kind: str, code_shape: CodeShape, tokenizer_sha256: str, base: BaseSpec
) -> tuple[StageHead, str]:
    """Read a head or draft and hold it to what it will work with.

    Args:
        directory: Folder written by `save_stage_head`.
        kind: "head" or "draft".
        code_shape: Of the tokenizer in use.
        tokenizer_sha256: Hash of the tokenizer's weights in use: the same shape with other weights means other tokens.
        base: Of the base model in use.

    Returns:
        The head in evaluation mode, and the base model's point that it reads.

    Raises:
        CheckpointError: missing, damaged, or made for another tokenizer, base model or data set.
    """
    command = f"python train.py phase={kind}"
    loaded = load_checkpoint(directory, kind=kind, produce=command)
    config = {"states_per_step": code_shape.action_dim, **loaded.config}  # the first checkpoints all read layers
    point = config.pop("point", None) or former_point(config.pop("layer"), config["states_per_step"])
    stored_shape = config.pop("code_shape")
    levels = tuple(tuple(tuple(entry) for entry in row) for row in stored_shape.pop("levels"))
    stored_shape = CodeShape(**stored_shape, levels=levels)
    remedy = f"train it again for this combination with {command}"
    if stored_shape != code_shape:
        raise CheckpointError(
            f"{kind} {directory} speaks another code than the tokenizer: {_describe(stored_shape)} in the checkpoint, "
            f"{_describe(code_shape)} in the tokenizer; {remedy}"
        )
    if point not in base.points:
        raise CheckpointError(
            f"{kind} {directory} reads {point!r}, the base model has {', '.join(base.points)}; {remedy}"
        )
    made_for = {"tokenizer": tokenizer_sha256, "unnorm_key": base.space.name, "base": dict(base.fingerprint)}
    for name, value in as_stored(made_for).items():
        if loaded.provenance[name] != value:
            raise CheckpointError(
                f"{kind} {directory} was made for another {name}: {_short(loaded.provenance[name], value)} in the "
                f"checkpoint, {_short(value, loaded.provenance[name])} here; "
                f"{_restamp(loaded.provenance[name], value) or remedy}"
            )
    head = StageHead(code_shape=code_shape, **config)
    load_weights(head, loaded, directory)
    return head.eval().requires_grad_(False), point


def as_stored(value: dict[str, Any]) -> dict[str, Any]:
    """As it looks after a trip through JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def former_point(layer: int, states_per_step: int) -> str:
    """Checkpoints before points had names: one state a step meant the inside of the L1 head."""
    return HEAD if states_per_step == 1 else point_name(layer)


def _restamp(stored: Any, here: Any) -> str | None:
    """What to do when the same weights are run with another precision, or were described otherwise by an earlier
    version; None when neither.
    """
    if not (isinstance(stored, dict) and isinstance(here, dict)):
        return None
    if ("fp8" in stored) != ("fp8" in here):
        return "states in eight bits are others: run it as it was trained (model.backbone.execution), or train it again"
    same = stored.get("weights_sha256") == here.get("weights_sha256") is not None
    if not same or stored.keys() == here.keys():
        return None
    return (
        "an earlier version has described it: python scripts/restamp.py FOLDER writes it anew, FOLDER with policy.json"
    )


def _describe(shape: CodeShape) -> str:
    return (
        f"chunk {shape.chunk_length}x{shape.action_dim}, {shape.num_stages} stages of {shape.num_levels} levels with "
        f"{shape.tokens_per_stage} tokens"
    )


def _short(value: Any, other: Any) -> str:
    """A value for an error message; of a dict only the entries that differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        return str({key: entry for key, entry in value.items() if other.get(key) != entry})
    return repr(value)
