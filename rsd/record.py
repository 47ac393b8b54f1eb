"""Records on disk that are read back: held to types and to their own checksum, so that damage is named where it is.

A record is a JSON object. What it must hold is said by a Python type: a TypedDict or a dataclass with `int`, `float`,
`bool`, `str`, `list[...]`, `tuple[...]`, `dict[str, ...]`, unions, literals, and `Annotated` as in `rsd.settings`.
What surprises first: numbers are finite (JSON's NaN and Infinity are refused), a whole number serves as a float, and a
truth value as nothing else. A record without a checksum was written by a version before there were any: its types are
checked, and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from rsd.errors import RSDError
from rsd.files import stranger, write_atomically
from rsd.settings import described, fits

CHECKSUM = "checksum"  # SHA-256 of a record's other entries
MAX_BYTES = 32 * 2**20  # of a record; the largest that is written, a plan of 50 000 episodes, has a sixth of it
MAX_TEXT = 20_000  # letters of a text in a record
MAX_SHOWN = 60  # letters of a value in a message

Kind = TypeVar("Kind")


class ReadError(RSDError, ValueError):
    """A file is not the record that was written."""


class EntryError(RSDError, ValueError):
    """A record lacks something, or holds something else than it must; the message names the file and the entry."""


def read(path: Path, kind: type[Kind], *, error: Callable[[str], RSDError], remedy: str, raw: bool = False) -> Kind:
    """A record from its file.

    Args:
        kind: What it must hold.
        error: Makes the room's own error of a message.
        remedy: What to do about a damaged one.
        raw: Leave the checksum in, for a caller that compares it himself, after a look at the entries.

    Raises:
        RSDError: `error`, of a file that is not JSON or too long, has other entries or types, or was changed since.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise EntryError(f"{path} has {size} bytes, expected a record of at most {MAX_BYTES}")
        return parse(path.read_bytes(), kind, str(path), raw=raw)
    except EntryError as wrong:
        raise error(stranger(path, remedy) or f"{wrong}; {remedy}") from wrong
    except OSError as wrong:
        raise error(f"{path} cannot be read: {wrong.strerror}; {remedy}") from wrong


def read_json(path: Path) -> Any:
    """A record of any entries; None when there is none.

    Raises:
        ReadError: it is not JSON, or was changed since it was written.
    """
    if not path.is_file():
        return None
    return read(path, Any, error=ReadError, remedy="remove it, or restore it as it was written")


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its checksum, whole or not at all.

    Raises:
        WriteError: the disk is full, or the folder cannot be written.
        ValueError: a number is not finite.
    """
    write_atomically(path, json.dumps(sealed(record), indent=1) + "\n")


def line_of(record: Mapping[str, Any]) -> bytes:
    """A record with its checksum in one line, for files that grow.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(sealed(record)).encode() + b"\n"


def parse(text: bytes | str, kind: type[Kind], where: str, *, raw: bool = False) -> Kind:
    """A record from JSON.

    Args:
        where: Its file, for messages.
        raw: See `read`.

    Raises:
        EntryError: see `read`.
    """
    try:
        record = json.loads(text, parse_constant=_no_number)
    except RecursionError as wrong:
        raise EntryError(f"{where} is not valid JSON (nested too deeply)") from wrong
    except ValueError as wrong:  # not JSON, not UTF-8, or NaN
        raise EntryError(f"{where} is not valid JSON ({wrong})") from wrong
    check_texts(record, where)
    own = record if raw else unsealed(record)
    held = conform(own, kind, where)  # first: it names the entry
    _check_names(own, where)
    if not raw:
        check_seal(record, where)
    return held


def check_texts(value: Any, where: str, entry: str = "") -> None:
    """See that no text of a record is too long to stand in a message.

    Raises:
        EntryError: one is.
    """
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise EntryError(
            f"{where}: entry {shown(entry)} is a text of {len(value)} letters, expected at most {MAX_TEXT}"
        )
    named = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in named:
        if isinstance(one, str | dict | list):
            check_texts(one, where, _inside(entry, name))


def conform(value: Any, kind: Any, where: str, entry: str = "") -> Any:
    """`value` as `kind`: dataclasses are made, lists become tuples where the type says so.

    Args:
        kind: A type; or a dict of some entries' types, for an object that may hold more.
        where: The file, for messages.
        entry: Dotted name of the place in it.

    Raises:
        EntryError: it is of another type, out of range, lacks an entry, or (of a dataclass) has an unknown one.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        held = conform(value, arguments[0], where, entry)
        if not fits(value, kind):
            raise _wrong(value, described(kind), where, entry)
        return held
    if origin is Literal and fits(value, kind):
        return value
    if origin in (Union, types.UnionType):
        return _conform_union(value, arguments, where, entry)
    if origin in (list, Sequence) and isinstance(value, list | tuple):
        return [conform(one, arguments[0], where, _inside(entry, i)) for i, one in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(value):
            raise _wrong(value, f"{len(kinds)} entries", where, entry)
        pairs = enumerate(zip(value, kinds, strict=True))
        return tuple(conform(one, own, where, _inside(entry, i)) for i, (one, own) in pairs)
    if origin is dict and isinstance(value, dict):
        return {name: conform(one, arguments[1], where, _inside(entry, name)) for name, one in value.items()}
    if isinstance(kind, dict) and isinstance(value, dict):
        return {**value, **_conform_named(value, kind, where, entry)}
    if (is_typeddict(kind) or dataclasses.is_dataclass(kind)) and isinstance(value, dict):
        return _conform_entries(value, kind, where, entry)
    if kind is float and type(value) in (int, float) and _is_finite(value):
        return value
    if kind in (int, str, bool, dict, list) and type(value) is kind:
        return value
    if kind in (None, type(None)) and value is None:
        return None
    raise _wrong(value, _name(kind), where, entry)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON types, with its checksum, as it is written.

    Raises:
        ValueError: a number is not finite.
    """
    own = json.loads(json.dumps(unsealed(record), allow_nan=False))  # keys as they are read again, in their order
    return {**own, CHECKSUM: _checksum(own)}


def unsealed(record: Any) -> Any:
    """A record as it was read, without its checksum."""
    if not isinstance(record, dict):
        return record
    return {name: value for name, value in record.items() if name != CHECKSUM}


def check_seal(record: Any, where: str) -> None:
    """Compare a record's checksum, where it has one.

    Raises:
        EntryError: the record is another one than was written.
    """
    if isinstance(record, dict) and CHECKSUM in record and record[CHECKSUM] != _checksum(unsealed(record)):
        raise EntryError(
            f"{where} is damaged or was edited: its entry {CHECKSUM!r} is not that of its other entries (whoever edits "
            "on purpose removes it)"
        )


def arguments(function: Callable[..., Any], value: Any, where: str, entry: str = "") -> dict[str, Any]:
    """An object as the arguments of a constructor, whose signature is the schema.

    Raises:
        EntryError: see `conform`; an argument is missing, unknown, or of another type.
    """
    given = conform(value, dict[str, Any], where, entry)
    made = function.__init__ if inspect.isclass(function) else function
    hints, known = get_type_hints(made, include_extras=True), inspect.signature(function).parameters
    for name, one in known.items():
        if one.default is inspect.Parameter.empty and name not in given:
            raise EntryError(f"{where} lacks entry {_inside(entry, name)!r}")
    if strange := sorted(given.keys() - known.keys()):
        raise EntryError(f"{where}: entry {shown(_inside(entry, strange[0]))} is unknown")
    return {name: conform(one, hints[name], where, _inside(entry, name)) for name, one in given.items()}


def shown(value: Any, limit: int = MAX_SHOWN) -> str:
    """A value in a message: as Python writes it, and never longer than `limit` letters."""
    try:
        text = repr(value[:limit]) if isinstance(value, str | list | tuple) else repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a whole number of more digits than Python writes
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= limit else f"{text[:limit]}…"


def _check_names(value: Any, where: str, entry: str = "") -> None:
    """See that each text of a record could be a file's name."""
    if isinstance(value, str) and not _is_text(value):
        raise EntryError(
            f"{where}: entry {shown(entry)} is {shown(value)}, expected a text without NUL and half letters"
        )
    named = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in named:
        _check_names(one, where, _inside(entry, name))


def _is_text(value: str) -> bool:
    """Whether the operating system takes it; bytes of names that are no UTF-8 stand for themselves."""
    try:
        value.encode("utf-8", "surrogateescape")
        return "\0" not in value
    except UnicodeEncodeError:
        return False


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _conform_union(value: Any, kinds: tuple[Any, ...], where: str, entry: str) -> Any:
    """As the first of the kinds that fits; the message is that of the only one beside None, where there is one."""
    problems = []
    for kind in kinds:
        try:
            return conform(value, kind, where, entry)
        except EntryError as wrong:
            problems += [] if kind in (None, type(None)) else [wrong]
    if len(problems) == 1 and value is not None:
        raise problems[0]
    raise _wrong(value, " or ".join(map(_name, kinds)), where, entry)


def _conform_entries(value: dict[str, Any], kind: Any, where: str, entry: str) -> Any:
    """An object as a TypedDict, whose unknown entries are kept, or as a dataclass, which has none."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        needed = {name for name, own in hints.items() if get_origin(own) is not NotRequired}
    else:
        made = {one.name: one for one in dataclasses.fields(kind)}
        nothing = dataclasses.MISSING
        needed = {n for n, one in made.items() if one.default is nothing and one.default_factory is nothing}
        if strange := sorted(value.keys() - made.keys()):
            raise EntryError(f"{where}: entry {shown(_inside(entry, strange[0]))} is unknown")
    if missing := sorted(needed - value.keys()):
        raise EntryError(f"{where} lacks entry {_inside(entry, missing[0])!r}")
    held = {n: conform(value[n], _bare(own), where, _inside(entry, n)) for n, own in hints.items() if n in value}
    return {**value, **held} if is_typeddict(kind) else kind(**held)


def _conform_named(value: dict[str, Any], kinds: dict[str, Any], where: str, entry: str) -> dict[str, Any]:
    if missing := [name for name in kinds if name not in value]:
        raise EntryError(f"{where} lacks entry {_inside(entry, missing[0])!r}")
    return {name: conform(value[name], own, where, _inside(entry, name)) for name, own in kinds.items()}


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is NotRequired else kind


def _inside(entry: str, name: str | int) -> str:
    return f"{entry}.{name}" if entry else str(name)


def _wrong(value: Any, expected: str, where: str, entry: str) -> EntryError:
    place = f"entry {entry[:MAX_SHOWN]!r} is" if entry else "it is"
    return EntryError(f"{where}: {place} {shown(value)}, expected {expected}")


def _name(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) in (Annotated, Literal):
        return described(kind)
    if is_typeddict(kind) or dataclasses.is_dataclass(kind) or isinstance(kind, dict):
        return "an object"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a finite number",
        str: "a text",
        bool: "true or false",
        dict: "an object",
    }
    words |= {list: "a list", tuple: "a list", Sequence: "a list", None: "null", type(None): "null"}
    return words[get_origin(kind) or kind]
