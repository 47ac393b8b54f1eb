"""Checkpoints of target heads and drafts, and the contract between them, the tokenizer and the base model.

A draft may say numbers instead of tokens (rsd/stages/numbers.py). Its checkpoint is of the same kind, says so in its
config (readout: numbers), and is held to no tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

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
    weights_in,
)
from rsd.errors import SettingError
from rsd.points import HEAD, point_name
from rsd.record import EntryError, conform, shown
from rsd.settings import ChunkLength, Count, Total
from rsd.stages.head import StageHead
from rsd.stages.numbers import NumberHead
from rsd.types import ALL_TOKENS, BaseSpec, CodeShape

VISUAL_TOKENS = "visual_tokens"  # entry of a base model's fingerprint, absent where it reads all

READOUT = "readout"  # entry of a draft's config, absent where it says tokens
TOKENS: Literal["tokens"] = "tokens"
NUMBERS: Literal["numbers"] = "numbers"

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


@dataclass(frozen=True)
class NumbersConfig:
    """Entry "config" of the checkpoint.json of a draft in numbers."""

    readout: Literal["numbers"]
    chunk_length: ChunkLength
    action_dim: Count
    hidden_dim: Count
    states_per_step: Count
    width: Count
    num_layers: Count
    num_heads: Count
    point: str

    @property
    def size(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name not in (READOUT, "point")}


def save_stage_head(
    head: StageHead,
    directory: Path,
    *,
    kind: str,
    point: str,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a head's or draft's checkpoint folder.

    Args:
        kind: "head" or "draft".
        point: Point of the base model whose states it reads.
        provenance: Must hold "tokenizer" (weights hash), "base" (fingerprint) and "unnorm_key".
        dtype: Of the stored weights.
    """
    config = {**head.config, "point": point, "code_shape": asdict(head.code_shape)}
    save_checkpoint(directory, kind=kind, config=config, weights=weights_in(head, dtype), provenance=provenance)


def save_numbers(
    head: NumberHead,
    directory: Path,
    *,
    point: str,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the checkpoint folder of a draft in numbers.

    Args:
        point: Point of the base model whose states it reads.
        provenance: Must hold "base" (fingerprint) and "unnorm_key".
        dtype: Of the stored weights.
    """
    config = {READOUT: NUMBERS, **head.config, "point": point}
    save_checkpoint(directory, kind="draft", config=config, weights=weights_in(head, dtype), provenance=provenance)


def readout_in(directory: Path | str) -> Literal["tokens", "numbers"] | None:
    """What the draft in a folder says; None where that cannot be told, which is for its loader to explain."""
    try:
        config = json.loads((Path(directory) / JSON_FILE).read_text())["config"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not isinstance(config, dict):
        return None
    return NUMBERS if config.get(READOUT) == NUMBERS else TOKENS


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
    _check_entries(loaded, made_for, where, remedy)
    if config.code_shape != code_shape:
        raise CheckpointError(
            f"{kind} {directory} speaks another code than the tokenizer: {_describe(config.code_shape)} in the "
            f"checkpoint, {_describe(code_shape)} in the tokenizer; {remedy}"
        )
    _check_point(f"{kind} {directory}", point, base if eyes is None else eyes, remedy)
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


def load_numbers(directory: Path, *, base: BaseSpec) -> tuple[NumberHead, str]:
    """Read a draft in numbers and hold it to the base model that it will work with.

    Returns:
        The head in evaluation mode, and the base model's point that it reads.

    Raises:
        CheckpointError: missing, damaged, made for another base model or data set, or a draft in tokens.
    """
    command = "python train.py phase=draft draft=numbers"
    loaded = load_checkpoint(directory, kind="draft", produce=command)
    remedy, where = f"train it again for this combination with {command}", str(Path(directory) / JSON_FILE)
    made_for = {"unnorm_key": base.space.name, "base": dict(base.fingerprint)}
    config = numbers_config(loaded, directory, remedy)
    _check_entries(loaded, made_for, where, remedy)
    chunk, of_base = (config.chunk_length, config.action_dim), (base.chunk_length, base.action_dim)
    if chunk != of_base:
        raise CheckpointError(f"draft {directory} says chunks of {chunk}, the base model's are {of_base}; {remedy}")
    _check_point(f"draft {directory}", config.point, base, remedy)
    check_made_for(f"draft {directory}", loaded.provenance, as_stored(made_for), command, remedy)
    try:
        with torch.device("meta"):  # as above
            outline = NumberHead(**config.size)
    except SettingError as error:
        raise CheckpointError(f"{where}: entry 'config': {error}; {remedy}") from error
    check_names(directory, shapes_of(outline.state_dict()), shapes_of(loaded.weights))
    head = NumberHead(**config.size)
    load_weights(head, loaded, directory)
    return head.eval().requires_grad_(False), config.point


def numbers_config(loaded: Checkpoint, directory: Path, remedy: str) -> NumbersConfig:
    """Arguments of a draft in numbers, and the point that it reads.

    Raises:
        CheckpointError: it is one in tokens; or an entry is missing, or of another type or range.
    """
    if loaded.config.get(READOUT) != NUMBERS:
        raise CheckpointError(f"draft {directory} says tokens, expected numbers; {remedy}")
    try:
        return conform(loaded.config, NumbersConfig, str(Path(directory) / JSON_FILE), "config")
    except EntryError as error:
        raise CheckpointError(f"{error}; {remedy}") from error


def _check_entries(loaded: Checkpoint, made_for: dict[str, Any], where: str, remedy: str) -> None:
    try:
        conform(loaded.provenance, dict.fromkeys(made_for, Any), where, "provenance")
    except EntryError as error:
        raise CheckpointError(f"{error}; {remedy}") from error


def _check_point(who: str, point: str, base: BaseSpec, remedy: str) -> None:
    if point not in base.points:
        raise CheckpointError(f"{who} reads {shown(point)}, the base model has {', '.join(base.points)}; {remedy}")


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
    if loaded.config.get(READOUT) == NUMBERS:
        raise CheckpointError(f"{loaded.kind} {directory} says numbers, expected tokens; {remedy}")
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
