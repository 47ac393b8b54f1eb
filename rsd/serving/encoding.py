"""Bytes ↔ plain types: msgpack, and JSON with arrays as json-numpy writes them.

What surprises first: a message of a few bytes can ask for gigabytes of lists. What it may consist of is bounded before
or while it is unpacked. Both decode to the same: an array is a dict with "__ndarray__", its bytes, dtype and shape, and
is made an array only where one is expected (`rsd.serving.messages.decode_array`).
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np

from rsd.serving.messages import MessageError, encode_array

MAX_CONTAINERS = 1000  # lists and maps in a message; the harness sends about ten
MAX_ENTRIES = 1000  # of each of them
MAX_DEPTH = 16
MAX_COMMAS = 20_000  # in a JSON text
MARK = "__numpy__"


def unpack(data: bytes | str) -> Any:
    """A message in msgpack as plain types, maps with text for keys.

    Raises:
        MessageError: it is not msgpack, or has too many or too deeply nested parts; before memory is taken for them.
    """
    import msgpack

    containers = itertools.count(1)

    def counted(entries: list[Any]) -> list[Any]:
        if next(containers) > MAX_CONTAINERS:
            raise MessageError(f"the message has more than {MAX_CONTAINERS} lists and maps")
        return entries

    def as_dict(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        strange = [key for key, _ in counted(pairs) if not isinstance(key, str)]
        if strange:
            raise MessageError(f"a map has keys of type {type(strange[0]).__name__}, expected text")
        return dict(pairs)

    bounds = {"max_array_len": MAX_ENTRIES, "max_map_len": MAX_ENTRIES, "max_ext_len": 0}
    try:
        if isinstance(data, str):
            raise TypeError("it is text")
        message = msgpack.unpackb(data, list_hook=counted, object_pairs_hook=as_dict, **bounds)
    except MessageError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # msgpack's own errors are ValueErrors
        raise MessageError(f"a message of {len(data)} bytes is not msgpack, or out of bounds: {error}") from error
    _check_depth(message)
    return message


def _check_depth(message: Any) -> None:
    level, depth = [message], 0
    while level := [one for entry in level for one in _entries(entry)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise MessageError(f"the message is nested more than {MAX_DEPTH} deep")


def _entries(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def pack(message: Any) -> bytes:
    """msgpack of plain types and arrays."""
    import msgpack

    packed: bytes = msgpack.packb(message, default=_encoded)
    return packed


def parse_json(text: bytes | str) -> Any:
    """A message in JSON as plain types; what json-numpy has marked as an array is a dict as in msgpack.

    Raises:
        MessageError: it is no JSON, has NaN or infinite numbers, or too many or too deeply nested parts.
    """
    openings = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
    lists, maps, commas = (text.count(one) for one in openings)  # type: ignore[arg-type]
    if lists + maps > MAX_CONTAINERS or commas > MAX_COMMAS:
        raise MessageError(
            f"the message has {lists + maps} lists and maps and {commas} commas, expected {MAX_CONTAINERS} and "
            f"{MAX_COMMAS} at most; send arrays as json-numpy encodes them"
        )
    try:
        message = json.loads(text, object_pairs_hook=_from_pairs, parse_constant=_refuse_constant)
    except MessageError:
        raise
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the message is not JSON: {str(error)[:100]}") from error
    _check_depth(message)
    return message


def dump_json(message: Any) -> str:
    """JSON of plain types and arrays, as json-numpy writes it."""
    return json.dumps(message, default=_json_numpy, allow_nan=False, separators=(",", ":"))


def _from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if MARK not in entry:
        return entry
    try:
        data = base64.b64decode(entry[MARK], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise MessageError(f"an array's {MARK} is not base64: {error}") from error
    return {"__ndarray__": True, "data": data, "dtype": entry.get("dtype"), "shape": entry.get("shape")}


def _refuse_constant(name: str) -> NoReturn:
    raise MessageError(f"the message has the number {name}, expected finite numbers")


def _json_numpy(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} has no place in JSON")
    return {
        MARK: base64.b64encode(value.tobytes()).decode(),
        "dtype": value.dtype.str,
        "shape": list(value.shape),
    }


def _encoded(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} has no place in msgpack")
    return encode_array(np.asarray(value))
