"""Records that are read back: what is damaged is one line that names the file and the entry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest

from rsd.errors import RSDError
from rsd.record import MAX_BYTES, MAX_SHOWN, EntryError, conform, parse, read, read_json, sealed, shown, write
from rsd.settings import Total


@dataclass(frozen=True)
class Part:
    name: str
    size: Total = 0


class Whole(TypedDict):
    number: float
    flag: bool
    parts: list[Part]
    pair: tuple[float, float]
    words: dict[str, str]
    maybe: str | None
    later: NotRequired[int]


GOOD: dict[str, Any] = {
    "number": 2, "flag": True, "parts": [{"name": "a"}], "pair": [1, 2.5], "words": {"x": "y"}, "maybe": None, "more": 1
}  # fmt: skip


def test_a_good_record_comes_as_its_type():
    held = parse(json.dumps(GOOD), Whole, "file")
    assert held["parts"] == [Part("a", 0)]
    assert held["pair"] == (1.0, 2.5) and type(held["number"]) is int  # as it stands in the file
    assert held["more"] == 1  # what a later version added


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"number": True}, "entry 'number' is True, expected a finite number"),
        ({"number": "1"}, "entry 'number' is '1', expected a finite number"),
        ({"number": 10**400}, "entry 'number' is 1000"),
        ({"flag": 1}, "entry 'flag' is 1, expected true or false"),
        ({"parts": {}}, "entry 'parts' is {}, expected a list"),
        ({"parts": [{"name": "a", "size": -1}]}, "entry 'parts.0.size' is -1, expected a whole number from 0"),
        ({"parts": [{"name": "a", "size": 2**70}]}, "expected a whole number from 0 to"),
        ({"parts": [{"size": 1}]}, "lacks entry 'parts.0.name'"),
        ({"parts": [{"name": "a", "siez": 1}]}, "entry 'parts.0.siez' is unknown"),
        ({"pair": [1]}, "entry 'pair' is [1], expected 2 entries"),
        ({"words": {"x": None}}, "entry 'words.x' is None, expected a text"),
        ({"maybe": 3}, "entry 'maybe' is 3, expected a text"),
        ({"later": 1.5}, "entry 'later' is 1.5, expected a whole number"),
        ({"maybe": [["deep"]]}, "entry 'maybe' is [['deep']], expected a text"),
    ],
)
def test_a_mistyped_entry_is_named(change, named):
    with pytest.raises(EntryError) as error:
        parse(json.dumps({**GOOD, **change}), Whole, "some/file.json")
    assert str(error.value).startswith("some/file.json") and named in str(error.value)


@pytest.mark.parametrize("entry", ["number", "flag", "parts", "pair", "words", "maybe"])
def test_a_missing_entry_is_named(entry):
    with pytest.raises(EntryError, match=f"^file lacks entry '{entry}'"):
        parse(json.dumps({name: value for name, value in GOOD.items() if name != entry}), Whole, "file")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b'"word"', b"\xff\xfe", b'{"number": NaN}', b'{"number": -Infinity}', b"[" * 100_000,
     b'{"number": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_record_is_one_short_line(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_bytes(text)
    with pytest.raises(EntryError) as error:
        read(path, Whole, error=EntryError, remedy="copy it again")
    line = str(error.value)
    assert str(path) in line and line.endswith("; copy it again")
    assert "\n" not in line and len(line) < len(str(path)) + 250


def test_a_file_of_200_megabytes_is_not_read(tmp_path):
    path = tmp_path / "file.json"
    with open(path, "wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(EntryError, match=f"has 200000000 bytes, expected a record of at most {MAX_BYTES}"):
        read(path, Whole, error=EntryError, remedy="copy it again")


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    with pytest.raises(RSDError, match="cannot be read: Is a directory; copy it again"):
        read(tmp_path, Whole, error=EntryError, remedy="copy it again")


HUGE = ["x" * 10**6, ["x" * 10**6], {"x": "y" * 10**6}, list(range(10**6)), 10**5000]


@pytest.mark.parametrize("value", HUGE, ids=["text", "list", "object", "numbers", "number"])
def test_no_value_makes_a_message_long(value):
    assert len(shown(value)) <= MAX_SHOWN + 20
    with pytest.raises(EntryError) as error:
        conform(value, bool, "file", "entry")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("bit", range(8))
def test_every_changed_bit_of_a_sealed_record_is_found_or_harmless(bit):
    """Harmless: the same values in another spelling, such as E for e."""
    text = json.dumps(sealed({"number": 2.5, "name": "abc"})).encode()
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1 << bit
        try:
            got = parse(bytes(changed), Sealed, "file")
        except EntryError:
            continue
        assert got == Sealed(2.5, "abc")


@dataclass(frozen=True)
class Sealed:
    number: Any
    name: Any


def test_a_record_without_checksum_is_of_an_earlier_version():
    assert parse('{"name": "a"}', Part, "file") == Part("a")


def test_a_written_record_is_what_is_read_and_a_changed_digit_is_found(tmp_path):
    """Keys that JSON writes as texts, in another order than theirs as numbers, too."""
    path = tmp_path / "r.json"
    write(path, {"counts": {2: 0.5, 10: 1e-7}, "pair": (1, 2)})
    assert read_json(path) == {"counts": {"2": 0.5, "10": 1e-7}, "pair": [1, 2]}
    path.write_text(path.read_text().replace("0.5", "0.7"))
    with pytest.raises(RSDError, match=r"r\.json is damaged or was edited: .*'checksum'.*; remove it, or restore it"):
        read_json(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "r.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_every_record_of_ours_is_written_with_its_checksum():
    """Others' formats have none: TFDS's and published side files. A step's seconds are a number."""
    root = Path(__file__).parents[1]
    bare = [
        path.relative_to(root).as_posix()
        for path in (root / "rsd").rglob("*.py")
        if any("json.dump" in line and "write" in line for line in path.read_text().splitlines())
    ]
    assert sorted(bare) == [
        "rsd/commands/pipeline.py",
        "rsd/data/rlds_writer.py",
        "rsd/models/openvla/published_writer.py",
        "rsd/models/openvla/stored.py",
        "rsd/record.py",
        "rsd/training/oft.py",
    ]


@pytest.mark.parametrize("text", ["a\0b", "\ud800", {"path": "\udfff"}, ["x", "\0"]])
def test_texts_that_no_system_takes_for_names_are_refused(text):
    """Paths in records end in ValueError and UnicodeEncodeError otherwise, wherever they are used."""
    with pytest.raises(EntryError, match=r"a\.json: entry 'part.*expected a text without NUL and half letters"):
        parse(json.dumps({"part": text}), Any, "a.json")


def test_names_that_are_no_utf8_are_texts():
    assert parse(json.dumps({"command": "run \udcff"}), dict, "a.json") == {"command": "run \udcff"}
