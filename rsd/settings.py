"""What a setting may be: its type and range, said once, as the annotation of whoever reads it.

    @checked
    def __init__(self, *, batch_size: Count, learning_rate: Rate, num_stages: Count | None): ...

raises a SettingError for batch_size=0, learning_rate="fast" or num_stages=2.5 before its body runs. From a command line
or from JSON a typo comes as any type, so types are held strictly: True is no number, 2.0 is no whole number, "8" is no
8, nan is none either. What surprises first: only what YAML can say is looked at. Where a class or a function is
expected, what YAML can say is wrong, but for a node with a `_target_`, and anything else passes.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from rsd.errors import SettingError

Held = TypeVar("Held", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `above` leaves out `low` itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in it; NaN lies in none, infinities only where they are a bound."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if -self.low == self.high == FLOAT32_MAX:
            return "that is finite"
        if self.high not in (LARGEST, FLOAT32_MAX, math.inf):
            return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:.10g}"
        return f"above {self.low:g}" if self.above else f"of at least {self.low:g}"


@dataclass(frozen=True)
class Pattern:
    """Texts that match a regular expression as a whole; `words` say which they are."""

    regex: str
    words: str

    def holds(self, value: str) -> bool:
        return re.fullmatch(self.regex, value) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Length:
    """Lists of this many entries, or of at least one."""

    entries: int | None = None

    def holds(self, value: Sequence[Any]) -> bool:
        return len(value) > 0 if self.entries is None else len(value) == self.entries

    def __str__(self) -> str:
        return "of at least one entry" if self.entries is None else f"of {self.entries} entries"


@dataclass(frozen=True)
class Grain:
    """Numbers that are 0, or not below the least that can be told from it: quotients by them are finite."""

    least: float

    def holds(self, value: float) -> bool:
        return value == 0 or abs(value) >= self.least

    def __str__(self) -> str:
        return f"(0, or at least {self.least:g})"


LARGEST = 2**31 - 1  # of counts
FLOAT32_MAX = 3.4e38

Count = Annotated[int, Range(1, LARGEST)]
Natural = Annotated[int, Range(0, LARGEST)]
Total = Annotated[int, Range(0, 2**63 - 1)]  # of bytes, of rows
Seed = Annotated[int, Range(0, 2**32 - 1)]
Processes = Annotated[int, Range(1, 1024)]
LoaderProcesses = Annotated[int, Range(0, 1024)]  # 0 does the work in this process
ChunkLength = Annotated[int, Range(1, 1024)]  # control steps
Width = Annotated[int, Range(1, 2**16)]  # of a layer, a code
Side = Annotated[int, Range(1, 4096)]  # of a picture, pixels
Depth = Annotated[int, Range(1, 1024)]  # layers, heads, stages
Levels = Annotated[int, Range(2, 2**16)]
Finite = Annotated[float, Range(-FLOAT32_MAX, FLOAT32_MAX)]
Positive = Annotated[float, Range(0, FLOAT32_MAX, above=True)]
NotNegative = Annotated[float, Range(0, FLOAT32_MAX)]
Measured = Annotated[float, Range(0, 1e12), Grain(1e-9)]  # by a clock: seconds, milliseconds
Rate = Annotated[float, Range(0, 1e30, above=True)]  # of learning; an optimizer multiplies it, and 1e38 has no room
Decay = Annotated[float, Range(0, 1000)]  # of weights
Share = Annotated[float, Range(0, 1)]
Device = Annotated[str, Pattern(r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:N")]
Dtype = Literal["float32", "bfloat16", "float16"]
Stored = Literal["float32", "bfloat16"]  # dtype of the weights in a checkpoint
Fraction = Annotated[float, Range(0, 1, above=True)]
Views = Annotated[Sequence[str], Length()]
Text = Annotated[str, Pattern(r"[\s\S]+", "text that is not empty")]
Point = Count | Text  # of a base model, see rsd/points.py
Points = Point | Annotated[Sequence[Point], Length()]
Made = Callable[..., Any]  # by a node with a `_target_`
PLAIN = (type(None), bool, int, float, str, list, dict)  # what YAML can say


def checked(made: Held) -> Held:
    """Decorator for a function or a class: hold the arguments of a call to their annotations.

    Raises (the call):
        SettingError: an argument is of another type, or out of range; the message names it, and what is expected.
    """
    if isinstance(made, type):
        made.__init__ = checked(made.__init__)  # type: ignore[misc]  # a dataclass's is made by the time it comes here
        return made
    signature = inspect.signature(made)

    @functools.wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        annotations = hints(call)
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            if name in annotations:
                require(name, value, annotations[name])
        return made(*args, **kwargs)

    call.__checked__ = True  # type: ignore[attr-defined]
    return cast("Held", call)


@functools.cache
def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function that is `checked`; none of another."""
    return get_type_hints(inspect.unwrap(function), include_extras=True) if is_checked(function) else {}


def is_checked(function: Callable[..., Any]) -> bool:
    """Whether a function holds its arguments to their annotations."""
    return hasattr(function, "__checked__")


def require(name: str, value: object, annotation: Any) -> None:
    """Hold a value to an annotation.

    Args:
        name: Of the setting, for the message.

    Raises:
        SettingError: it does not fit.
    """
    if not fits(value, annotation):
        raise SettingError(f"{name} is {shown(value)}, expected {described(annotation)}")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what an annotation says; annotations that YAML has no words for let everything pass."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fits(value, inside[0]) and all(one.holds(value) for one in inside[1:])
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inside)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return type(value) in (int, float) and not math.isnan(value)
    if annotation in (int, bool, str):
        return type(value) is annotation
    if annotation is Path:
        return isinstance(value, str | Path) and value != ""  # which pathlib takes for the present folder
    if origin in (Sequence, list, tuple):
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            return False
        if origin is tuple and inside[-1] is not Ellipsis:
            return len(value) == len(inside) and all(map(fits, value, inside))
        return all(fits(entry, inside[0]) for entry in value)
    if origin in (Mapping, dict) or annotation in (Mapping, dict) or is_typeddict(annotation):
        return isinstance(value, Mapping)
    if origin is Callable or (isinstance(annotation, type) and annotation not in (Any, object)):
        return type(value) not in PLAIN or (isinstance(value, dict) and "_target_" in value)
    return True


def described(annotation: Any) -> str:
    """The annotation in words, to stand behind "expected"."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = " ".join(map(str, inside[1:]))
        return limits if isinstance(inside[1], Pattern) else f"{described(inside[0])} {limits}"
    if origin in (Union, types.UnionType):
        return " or ".join(described(one) for one in inside)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside)) if len(inside) > 1 else str(inside[0])
    if annotation is None or annotation is type(None):
        return "null"
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"a list of {len(inside)}: {', '.join(map(described, inside))}"
    if origin in (Sequence, list, tuple):
        return f"a list (each entry {described(inside[0])})"
    if origin in (Mapping, dict) or annotation in (Mapping, dict) or is_typeddict(annotation):
        return "keys with values"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if origin is None and annotation not in words:
        return f"a {annotation.__name__}"
    return words.get(annotation, "keys with a _target_")


def shown(value: object) -> str:
    """A value as a message quotes it, not longer than a line."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def require_device(name: object) -> None:
    """See that torch can compute on a device of this machine, before anything is loaded there.

    Raises:
        SettingError: it is no device's name, or there is no such device here.
    """
    require("device", name, Device)
    import torch

    device = torch.device(cast("str", name))
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        have = f"cuda:0 to cuda:{count - 1}" if count else "device=cpu, or install its CUDA build and a driver"
        raise SettingError(f"device is {name!r}, but torch sees {count or 'no'} GPUs here; set {have}")
