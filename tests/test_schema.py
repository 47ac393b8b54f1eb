"""JSON schemas of records accept what records may hold, and refuse what reading refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from jsonschema import Draft202012Validator

from rsd.record import EntryError, conform, sealed
from rsd.schema import schema
from rsd.settings import Count, Device, Measured, Points, Share


class Place(TypedDict):
    """Attributes:
    task: Which, by number,
        from 0.
    """

    task: int
    name: NotRequired[str]


@dataclass(frozen=True)
class Record:
    """A record.

    Attributes:
        count, part: How many,
            and how much of them.

    Raises:
        part: no attribute.
    """

    count: Count
    part: Share | None
    device: Device
    pair: tuple[int, str]
    places: list[Place]
    waited: Measured = 0.0
    state: Literal["on", "off"] = "on"
    layer: Points = 1
    free: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()


GOOD = {"count": 1, "part": 0.5, "device": "cuda:1", "pair": [1, "a"], "places": [{"task": 3, "other": 1}]}
VALIDATOR = Draft202012Validator(schema(Record, title="record.json"))


def test_a_schema_is_one():
    Draft202012Validator.check_schema(VALIDATOR.schema)


def test_attributes_say_what_entries_are():
    made = VALIDATOR.schema
    said = {name: one["description"] for name, one in made["properties"].items() if "description" in one}
    both = "How many, and how much of them."
    assert said == {"count": both, "part": both, "checksum": "SHA-256 of the other entries"}
    assert made["$defs"]["Place"]["properties"]["task"]["description"] == "Which, by number, from 0."


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"part": None},
        {"waited": 1e-9},
        {"waited": 0},
        {"state": "off"},
        {"layer": ["head", 2]},
        {"free": {"a": [1]}},
    ],
)
def test_what_is_read_is_valid(change):
    conform({**GOOD, **change}, Record, "it")
    VALIDATOR.validate(sealed({**GOOD, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"count": "1"},
        {"part": 1.5},
        {"device": "gpu"},
        {"device": "cuda:1 "},
        {"pair": [1]},
        {"pair": [1, "a", 2]},
        {"pair": ["a", 1]},
        {"places": [{"name": "a"}]},
        {"places": [{"task": "3"}]},
        {"waited": 1e-12},
        {"state": "between"},
        {"layer": []},
        {"names": [1]},
        {"unknown": 1},
        {"free": None},
    ],
    ids=str,
)
def test_what_reading_refuses_is_not_valid(change):
    with pytest.raises(EntryError):
        conform({**GOOD, **change}, Record, "it")
    assert list(VALIDATOR.iter_errors({**GOOD, **change}))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_what_lacks_an_entry_is_not_valid(name):
    lacking = {one: value for one, value in GOOD.items() if one != name}
    with pytest.raises(EntryError):
        conform(lacking, Record, "it")
    assert list(VALIDATOR.iter_errors(lacking))


def test_a_type_that_no_record_has_is_refused():
    with pytest.raises(TypeError, match="no type of a record"):
        schema(dict[str, set[int]], title="it")
