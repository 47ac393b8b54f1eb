"""Checkpoints of target heads and drafts, and the contract between them, the tokenizer and the base model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rsd.checkpoint import (
    JSON_FILE,
    Checkpoint,
    CheckpointError,
    check_names,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    shapes_of,
)
from rsd.errors import SettingError
from rsd.points import HEAD, point_name
from rsd.record import EntryError, conform, shown
from rsd.settings import Count, Total
from rsd.stages.head import StageHead
from rsd.types import ALL_TOKENS, BaseSpec, CodeShape

VISUAL_TOKENS = "visual_tokens"  # entry of a base model's fingerprint, absent where it reads all

EYES = "eyes"  # folder, inside a draft's, of the base model that it reads instead of the policy's

LISTED_LETTERS = 400  # of what two base models differ in, in a message


@dataclass(frozen=True)
class HeadConfig:
    """Entry "config" of a head's or draft's checkpoint.json."""

    hidden_dim: Count
    num_stages: Count
    width: Count
    num_layers: Count
    num_heads: Count
    code_shape: CodeShape
    states_per_step: Count | None = None  # the first checkpoints all read layers,
    point: str | None = None  # and so had
    layer: Total | None = None  # this

    @property
    def states(self) -> int:
        """States a step that it reads."""
        return self.states_per_step or self.code_shape.action_dim

    @property
    def place(self) -> str | None:
        """Point that it reads, in the words of today; None where the file does not say."""
        return self.point or (None if self.layer is None else former_point(self.layer, self.states))

    @property
    def size(self) -> dict[str, int]:
        names = ("hidden_dim", "num_stages", "width", "num_layers", "num_heads")
        return {name: getattr(self, name) for name in names}


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
    directory: Path,
    *,
    kind: str,
    code_shape: CodeShape,
    tokenizer_sha256: str,
    base: BaseSpec,
    eyes: BaseSpec | None = None,
) -> tuple[StageHead, str]:
    """Read a head or draft and hold it to what it will work with.

    Args:
        directory: Folder written by `save_stage_head`.
        kind: "head" or "draft".
        code_shape: Of the tokenizer in use.
        tokenizer_sha256: Hash of the tokenizer's weights in use: the same shape with other weights means other tokens.
        base: Of the base model in use.
        eyes: Of the draft's own base model; None for one that reads the policy's.

    Returns:
        The head in evaluation mode, and the base model's point that it reads.

    Raises:
        CheckpointError: missing, damaged, or made for another tokenizer, base model or data set.
    """
    command = f"python train.py phase={kind}"
    loaded = load_checkpoint(directory, kind=kind, produce=command)
    remedy, where = f"train it again for this combination with {command}", str(Path(directory) / JSON_FILE)
    made_for = {"tokenizer": tokenizer_sha256, "unnorm_key": base.space.name, "base": dict(base.fingerprint)}
    config, point = head_config(loaded, directory, remedy)
    states = config.states
    try:
        conform(loaded.provenance, dict.fromkeys(made_for, Any), where, "provenance")
    except EntryError as error:
        raise CheckpointError(f"{error}; {remedy}") from error
    if config.code_shape != code_shape:
        raise CheckpointError(
            f"{kind} {directory} speaks another code than the tokenizer: {_describe(config.code_shape)} in the "
            f"checkpoint, {_describe(code_shape)} in the tokenizer; {remedy}"
        )
    points = (base if eyes is None else eyes).points
    if point not in points:
        raise CheckpointError(
            f"{kind} {directory} reads {shown(point)}, the base model has {', '.join(points)}; {remedy}"
        )
    if eyes is not None and eyes.space.digest != base.space.digest:
        raise CheckpointError(
            f"{kind} {directory} sees in the space {eyes.space.name!r}, {eyes.space.digest}, the base model acts in "
            f"{base.space.name!r}, {base.space.digest}; {remedy}"
        )
    check_made_for(f"{kind} {directory}", loaded.provenance, as_stored(made_for), command, remedy)
    try:
        with torch.device("meta"):  # sizes are held to those of the weights before memory is taken for them
            outline = StageHead(code_shape=code_shape, states_per_step=states, **config.size)
    except SettingError as error:
        raise CheckpointError(f"{where}: entry 'config': {error}; {remedy}") from error
    check_names(directory, shapes_of(outline.state_dict()), shapes_of(loaded.weights))
    head = StageHead(code_shape=code_shape, states_per_step=states, **config.size)
    load_weights(head, loaded, directory)
    return head.eval().requires_grad_(False), point


def check_made_for(who: str, provenance: dict[str, Any], here: dict[str, Any], command: str, remedy: str) -> None:
    """See that a checkpoint was made for what is here.

    Args:
        who: What and where it is, for messages.
        provenance: The checkpoint's, which has every entry of `here`.
        here: What it must say, as stored; "base" is a fingerprint.
        command: What makes it.
        remedy: What to do, where no other word is better.

    Raises:
        CheckpointError: it was made for something else.
    """
    _check_visual_tokens(who, provenance["base"], here["base"], command)
    for name, value in here.items():
        if provenance[name] != value:
            raise CheckpointError(
                f"{who} was made for another {name}: {_short(provenance[name], value)} in the checkpoint, "
                f"{_short(value, provenance[name])} here; {_restamp(provenance[name], value) or remedy}"
            )


def head_config(loaded: Checkpoint, directory: Path, remedy: str) -> tuple[HeadConfig, str]:
    """A head's or draft's arguments, and the point that it reads, as a version of any age has written them.

    Raises:
        CheckpointError: an entry is missing, or of another type or range.
    """
    where = str(Path(directory) / JSON_FILE)
    try:
        config = conform(loaded.config, HeadConfig, where, "config")
    except EntryError as error:
        raise CheckpointError(f"{error}; {remedy}") from error
    if config.place is None:
        raise CheckpointError(f"{where} lacks entry 'config.point'; {remedy}")
    return config, config.place


def _check_visual_tokens(who: str, stored: Any, here: dict[str, Any], command: str) -> None:
    """The same weights with other tokens of the pictures are another base model, which deserves its own words."""
    tokens = [side.get(VISUAL_TOKENS, ALL_TOKENS) if isinstance(side, dict) else ALL_TOKENS for side in (stored, here)]
    if tokens[0] != tokens[1]:
        raise CheckpointError(
            f"visual tokens changed after heads were trained: {who} was trained with {tokens[0]}, the base model reads "
            f"{tokens[1]}; choose the same visual_tokens, or train it again with {command}"
        )


def as_stored(value: dict[str, Any]) -> dict[str, Any]:
    """As it looks after a trip through JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def former_point(layer: int, states_per_step: int) -> str:
    """Checkpoints before points had names: one state a step meant the inside of the L1 head."""
    return HEAD if states_per_step == 1 else point_name(layer)


def _restamp(stored: Any, here: Any) -> str | None:
    """What to do when the same weights are described in another way than an earlier version did; None when not."""
    if not (isinstance(stored, dict) and isinstance(here, dict)):
        return None
    same = stored.get("weights_sha256") == here.get("weights_sha256") is not None
    if not same or stored.keys() == here.keys():
        return None
    return (
        "an earlier version has described it: python scripts/restamp.py FOLDER writes it anew, FOLDER with policy.json"
    )


def _describe(shape: CodeShape) -> str:
    counts = {len(entry) for row in shape.levels for entry in row} | {len(row) for row in shape.levels}
    if 0 in counts or not counts or len({len(entry) for row in shape.levels for entry in row}) != 1:
        return f"levels {shown(shape.levels)} that are no block"
    return (
        f"chunk {shape.chunk_length}x{shape.action_dim}, {shape.num_stages} stages of {shape.num_levels} levels with "
        f"{shape.tokens_per_stage} tokens"
    )


def _short(value: Any, other: Any) -> str:
    """A value for an error message; of a dict only the entries that differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        return shown({key: entry for key, entry in value.items() if other.get(key) != entry}, LISTED_LETTERS)
    return shown(value)
