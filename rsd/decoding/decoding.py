"""What every decoding is: a frozen record that says which models it needs, and turns their logits into a code."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from rsd.decoding.past import Past
from rsd.decoding.sampling import Noise
from rsd.errors import SettingError
from rsd.stages import StageLogits
from rsd.types import Code

TARGET, DRAFT = "target", "draft"
EARLIER = "earlier"  # a draft at an earlier point, which the draft has at hand (`Twofold`)
ROOM = "rsd.decoding"
KIND = "kind"


class Decoding(Protocol):
    """How logits become a chunk's code."""

    @property
    def needs(self) -> frozenset[str]:
        """Roles that it asks: of TARGET, DRAFT and EARLIER."""

    @property
    def num_draft_stages(self) -> int | None:
        """Stages that it asks the draft for; 0 for none, None for all of the code."""

    def run(
        self, target: StageLogits, draft: StageLogits, levels: Tensor, noise: Noise, past: Past | None = None
    ) -> Code:
        """Decode one chunk for each seed.

        Args:
            target, draft: Bound to the observations. One that is not in `needs` is never called.
            levels: Number of levels of every entry, [T, D, Q], int64, on the models' device; Q is 0 for a policy
                without tokens.
            noise: One seed an observation; what is random depends on it and on nothing else.
            past: What is remembered of the episode of each observation; None where every one of them begins.
        """


def stages_of_draft(decoding: Decoding, num_stages: int, role: str = DRAFT) -> int:
    """Stages, of so many of the code, that it asks the draft (or EARLIER) for, as do the decodings inside of it."""
    if role not in decoding.needs:
        return 0
    inside = [getattr(decoding, one.name) for one in dataclasses.fields(decoding)]  # type: ignore[arg-type]
    own = num_stages if decoding.num_draft_stages is None else decoding.num_draft_stages
    return max([own, *(stages_of_draft(one, num_stages, role) for one in inside if hasattr(one, "run"))])


@runtime_checkable
class TakesNumbers(Protocol):
    """A decoding whose draft may say numbers; one that does not say so needs a draft's tokens."""

    @property
    def asks_tokens(self) -> str | None:
        """Who, in it, asks the draft for tokens all the same; None for nobody."""


def asks_tokens(decoding: Decoding) -> str | None:
    """Who, in a decoding, asks the draft for tokens, in words; None where a draft in numbers serves as well."""
    if DRAFT not in decoding.needs:
        return None
    return decoding.asks_tokens if isinstance(decoding, TakesNumbers) else f"decoding {type(decoding).__name__}"


def to_json(decoding: Decoding) -> dict[str, Any]:
    """A decoding as JSON: its kind and its options, nested ones too.

    Raises:
        SettingError: an option is a function other than the default, which JSON cannot say.
    """
    record: dict[str, Any] = {KIND: type(decoding).__name__}
    for one in dataclasses.fields(decoding):  # type: ignore[arg-type]  # the protocol cannot say "dataclass"
        value = getattr(decoding, one.name)
        if dataclasses.is_dataclass(value):
            record[one.name] = to_json(value)  # type: ignore[arg-type]
        elif isinstance(value, float) and math.isinf(value):
            record[one.name] = str(value)  # JSON has no infinity
        elif not callable(value):
            record[one.name] = value
        elif value is not one.default:
            raise SettingError(
                f"{record[KIND]}.{one.name} is {value!r}, a function, which cannot be written down; "
                f"only a {record[KIND]} with its own {one.name} can"
            )
    return record


def from_json(record: Mapping[str, Any]) -> Any:
    """The decoding, or its gate, that `to_json` has written; only what this room exports is ever made.

    Raises:
        SettingError: no such kind, options that it does not have or that are missing, or a value that cannot be.
    """
    room = importlib.import_module(ROOM)
    made = getattr(room, str(record.get(KIND)), None)
    if not (isinstance(made, type) and dataclasses.is_dataclass(made) and record[KIND] in room.__all__):
        kinds = [name for name in room.__all__ if dataclasses.is_dataclass(getattr(room, name))]
        raise SettingError(f"decoding of kind {record.get(KIND)!r}, expected one of {kinds}")
    fields = {
        one.name: one
        for one in dataclasses.fields(made)
        if not callable(one.default) or isinstance(record.get(one.name), Mapping)
    }
    options = {name: value for name, value in record.items() if name != KIND}
    if unknown := sorted(options.keys() - fields.keys()):
        raise SettingError(f"decoding {record[KIND]} has no options {unknown}; it has {sorted(fields)}")
    needed = {name for name, one in fields.items() if one.default is dataclasses.MISSING}
    if missing := sorted(needed - options.keys()):
        raise SettingError(f"decoding {record[KIND]} lacks its options {missing}")
    return made(**{name: from_json(value) if isinstance(value, Mapping) else value for name, value in options.items()})
