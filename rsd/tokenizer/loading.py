"""Tokenizer checkpoints: the file says what to build; a configuration and a space may be held against it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from rsd.checkpoint import JSON_FILE, CheckpointError, load_checkpoint, load_weights, save_checkpoint
from rsd.errors import SettingError
from rsd.record import EntryError, arguments, conform, shown
from rsd.settings import Width
from rsd.space import QUANTILES, Space, check_statistics, with_bounds
from rsd.tokenizer.base import ActionTokenizer, gripper_config
from rsd.tokenizer.bins import BinTokenizer
from rsd.tokenizer.rfsq import RFSQTokenizer
from rsd.tokenizer.transform import TransformTokenizer

KIND = "tokenizer"
COMMAND = "python train.py phase=rfsq"
MakesTokenizer = Callable[..., ActionTokenizer]  # of the data's action_dim and grippers: quantizer.tokenizer
FAMILIES = {family.__name__: family for family in (RFSQTokenizer, TransformTokenizer, BinTokenizer)}


class _Provenance(TypedDict):
    """What is read of it."""

    unnorm_key: str
    bounds: NotRequired[str]
    norm_stats: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer in evaluation mode, and what its checkpoint says of it.

    Attributes:
        sha256: Hash of its weights: the same shape with other weights means other tokens.
        unnorm_key, bounds: Of the data set that it was fitted on.
        space: What the numbers that it encodes mean; None in checkpoints that do not hold the statistics.
        others: The other spaces of the mixture that it was fitted on.
    """

    tokenizer: ActionTokenizer
    sha256: str
    unnorm_key: str
    bounds: str
    space: Space | None
    others: tuple[Space, ...] = ()

    def difference(self, space: Space) -> str | None:
        """How it was fitted to other numbers than those of `space`, in words; None when it was not."""
        if self.space is not None:
            return next((one for one in self.others if one.name == space.name), self.space).difference(space)
        if self.unnorm_key != space.name:
            return f"statistics (unnorm_key) {self.unnorm_key!r} against {space.name!r}"
        return None if self.bounds == space.bounds else f"data.bounds {self.bounds!r} against {space.bounds!r}"


def save_tokenizer(tokenizer: ActionTokenizer, directory: Path, provenance: dict[str, Any]) -> None:
    """Write a tokenizer's checkpoint folder; provenance must hold the norm_stats of the actions it was fitted on."""
    config = {"family": type(tokenizer).__name__, **tokenizer.config}
    save_checkpoint(directory, kind=KIND, config=config, weights=tokenizer.state_dict(), provenance=provenance)


def load_tokenizer(
    directory: Path, *, expected: ActionTokenizer | MakesTokenizer | None = None, space: Space | None = None
) -> LoadedTokenizer:
    """Build a tokenizer from its checkpoint.

    Args:
        directory: Folder written by `save_tokenizer`.
        expected: Freshly built from a configuration, which the file has to agree with, or what builds it for the file's
            action dims; None takes what the file says.
        space: What the caller's numbers mean; a tokenizer that was fitted to others is refused.

    Raises:
        CheckpointError: missing, damaged, or made for another configuration or space; every differing value is named.
    """
    loaded = load_checkpoint(directory, kind=KIND, produce=COMMAND)
    config = dict(loaded.config)
    differing: list[str] = []
    if expected is not None and not isinstance(expected, ActionTokenizer):
        expected = _like(expected, config)
    if expected is not None:
        asked = {"family": type(expected).__name__, **expected.config}
        differing = [
            f"{name} is {config.get(name)!r} in the checkpoint but {asked.get(name)!r} in the configuration"
            for name in sorted(asked.keys() | config.keys())
            if asked.get(name) != config.get(name)
        ]
    where, remedy = str(Path(directory) / JSON_FILE), f"copy it again or train one with {COMMAND}"
    family = config.pop("family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(f"tokenizer {directory} is of family {shown(family)}, expected one of {sorted(FAMILIES)}")
    if differing:
        raise CheckpointError(f"tokenizer {directory} does not fit: {'; '.join(differing)}; train one with {COMMAND}")
    try:
        made_with = arguments(FAMILIES[family], config, where, "config")
        for name, value in made_with.items():
            if type(value) is int:
                conform(value, Width, where, f"config.{name}")
        tokenizer = FAMILIES[family](**made_with)
        provenance: _Provenance = conform(loaded.provenance, _Provenance, where, "provenance")
        unnorm_key, bounds = provenance["unnorm_key"], provenance.get("bounds", QUANTILES)
        norm_stats = provenance.get("norm_stats", {})
        made_for = {
            name: _space(name, bounds if name == unnorm_key else None, norm_stats, where) for name in norm_stats
        }
    except (EntryError, SettingError) as error:
        raise CheckpointError(f"{_named(where, error)}; {remedy}") from error
    load_weights(tokenizer, loaded, directory)
    tokenizer.eval().requires_grad_(False)
    others = tuple(one for name, one in made_for.items() if name != unnorm_key)
    result = LoadedTokenizer(tokenizer, loaded.sha256, unnorm_key, bounds, made_for.get(unnorm_key), others)
    if space is not None and (difference := result.difference(space)) is not None:
        raise CheckpointError(
            f"tokenizer {directory} does not fit: {difference} here; train one on the same data set with {COMMAND}"
        )
    return result


def for_space(make: MakesTokenizer, space: Space) -> ActionTokenizer:
    """A fresh tokenizer for the action dims and grippers of a space.

    Raises:
        SettingError: grippers stand anywhere between open and closed, and the tokenizer knows only the two.
    """
    action = space.action
    takes = inspect.signature(make).parameters.values()
    if space.between and not any(one.name == "between" or one.kind is one.VAR_KEYWORD for one in takes):
        raise SettingError(
            "data.gripper.between is true, and this tokenizer knows a gripper as open or closed only; choose one "
            "with levels for it (quantizer=rfsq_d8), or record open and closed only"
        )
    own = gripper_config(len(action), action.grippers, space.between)
    return make(action_dim=len(action), **own)


def _like(make: MakesTokenizer, config: Mapping[str, Any]) -> ActionTokenizer | None:
    """A fresh one for the action dims and grippers of a checkpoint; None for one that is damaged."""
    own = {name: config[name] for name in ("action_dim", "grippers", "between") if name in config}
    try:
        return make(**own)
    except (SettingError, TypeError):
        return None


def _named(where: str, error: Exception) -> str:
    """The message with its file: what a constructor refuses does not know where it stands."""
    return str(error) if isinstance(error, EntryError) else f"{where}: entry 'config': {error}"


def _space(name: str, bounds: str | None, norm_stats: Mapping[str, Any], where: str) -> Space:
    """Of one entry, with these bounds or its own."""
    statistics = check_statistics(norm_stats[name], f"{where}: entry 'provenance.norm_stats.{name}'")
    return Space.from_statistics(name, statistics if bounds is None else with_bounds(statistics, bounds))
