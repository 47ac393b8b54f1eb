"""JSON schemas of records, made of the types that `rsd.record` holds them to.

What surprises first: a schema accepts what `rsd.record.conform` accepts, and says nothing of what readers check beside
types, such as a checksum, or two lists of the same length. 2.0 is a whole number to JSON schema, and not to rsd.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from rsd.record import CHECKSUM, MAX_TEXT
from rsd.settings import FLOAT32_MAX, Grain, Length, Pattern, Range

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: dict[Any, dict[str, Any]] = {
    Any: {},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string", "maxLength": MAX_TEXT},
    bool: {"type": "boolean"},
    dict: {"type": "object"},
    list: {"type": "array"},
    None: {"type": "null"},
    type(None): {"type": "null"},
}
ATTRIBUTE = re.compile(r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", re.M)


def schema(kind: Any, *, title: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The schema of a record in a file.

    Args:
        kind: A dataclass, a TypedDict, or `dict[str, …]`.
        title: The file's name.
        more: Type by name of entries that the file has beside those of `kind`.
    """
    shared: dict[str, Any] = {}
    made = _schema(kind, shared)
    if "$ref" in made:
        made = shared.pop(made["$ref"].rpartition("/")[2])
    beside = {name: _schema(one, shared) for name, one in (more or {}).items()}
    seal = {"type": "string", "description": "SHA-256 of the other entries"}
    made["properties"] = {**beside, **made.get("properties", {}), CHECKSUM: seal}
    made["required"] = [*beside, *made.get("required", [])]
    return {"$schema": DIALECT, "title": title, **made, **({"$defs": shared} if shared else {})}


def _schema(kind: Any, shared: dict[str, Any]) -> dict[str, Any]:
    """Of any type; objects with names of their own are put among the shared ones."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind in PLAIN:
        return dict(PLAIN[kind])
    if origin is Annotated:
        return _limited(_schema(inside[0], shared), inside[1:])
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(one, shared) for one in inside]}
    if origin in (list, Sequence) or (origin is tuple and inside[1:] == (...,)):
        return {"type": "array", "items": _schema(inside[0], shared)}
    if origin is tuple:
        count = len(inside)
        items = [_schema(one, shared) for one in inside]
        return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inside[1], shared)}
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        name = kind.__name__.lstrip("_")
        if name not in shared:
            shared[name] = {}  # a type may hold itself
            shared[name] = _object(kind, shared)
        return {"$ref": f"#/$defs/{name}"}
    raise TypeError(f"{kind} is no type of a record")


def _object(kind: Any, shared: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        needed = [name for name, own in hints.items() if get_origin(own) is not NotRequired]
    else:
        nothing = dataclasses.MISSING
        made = dataclasses.fields(kind)
        hints = {one.name: hints[one.name] for one in made}
        needed = [one.name for one in made if one.default is nothing and one.default_factory is nothing]
    said = _descriptions(inspect.getdoc(kind) or "")
    properties = {}
    for name, own in hints.items():
        own = get_args(own)[0] if get_origin(own) is NotRequired else own
        properties[name] = {**_schema(own, shared), **({"description": said[name]} if name in said else {})}
    open_ended = {} if is_typeddict(kind) else {"additionalProperties": False}
    return {"type": "object", "properties": properties, "required": needed, **open_ended}


def _descriptions(docstring: str) -> dict[str, str]:
    """What a docstring's attributes are, by name; several of a line share it."""
    _, _, attributes = docstring.partition("Attributes:\n")
    found = ATTRIBUTE.findall(textwrap.dedent(attributes.partition("\n\n")[0]))
    return {name: re.sub(r"\s+", " ", text) for names, text in found for name in names.split(", ")}


def _limited(made: dict[str, Any], limits: Sequence[Any]) -> dict[str, Any]:
    for one in limits:
        if isinstance(one, Range):
            if math.isfinite(one.low) and one.low != -FLOAT32_MAX:
                made["exclusiveMinimum" if one.above else "minimum"] = one.low
            if math.isfinite(one.high) and one.high != FLOAT32_MAX:
                made["maximum"] = one.high
        elif isinstance(one, Pattern):
            made["pattern"] = f"^({one.regex})$"
        elif isinstance(one, Length):
            made["minItems"] = one.entries or 1
            made |= {} if one.entries is None else {"maxItems": one.entries}
        elif isinstance(one, Grain):
            made["anyOf"] = [{"const": 0}, {"minimum": one.least}, {"maximum": -one.least}]
    return made
