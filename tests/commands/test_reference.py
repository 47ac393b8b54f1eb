"""The reference of conf/: nothing in it is without a comment, and comments are found where people write them."""

import re
from functools import partial
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from rsd.commands.reference import entries, page, settings
from rsd.errors import SettingError
from tests.commands.test_settings import composed, keys
from tests.test_configs import CONF

select = partial(OmegaConf.select, throw_on_resolution_failure=False)

SHAPES = """\
# What it is for
first: 1
behind: 2  # pixels
below: 3  # nats a token, and
  # what inf means
node:  # of all clients
  # right above
  inside: [1, 2]
quoted: "# 4"  # not a comment in it
lines:  # before the others
  - one
  - two
idle_s: 5  # without a message
other: ${behind}
sibling:
  one: ${..behind}
  two: ${.one}
"""


def made(tmp_path: Path, text: str) -> Path:
    (tmp_path / "command.yaml").write_text(text)
    return tmp_path


def test_every_key_of_conf_has_a_comment():
    assert len(settings(CONF)) > 500


def test_comments_are_found_where_they_stand(tmp_path):
    said = {entry.key: entry.comment for entry in entries(made(tmp_path, SHAPES))}
    assert said == {
        "first": "",
        "behind": "pixels",
        "below": "nats a token, and what inf means",
        "node": "of all clients",
        "node.inside": "right above",
        "quoted": "not a comment in it",
        "lines": "before the others",
        "idle_s": "without a message",
        "other": "",
        "sibling": "",
        "sibling.one": "",
        "sibling.two": "",
    }


def test_a_key_without_a_comment_is_named_with_its_file(tmp_path):
    with pytest.raises(SettingError, match=r"^1 keys of conf/ have no comment .*: first \(command\.yaml\); write it"):
        settings(made(tmp_path, SHAPES))


def test_a_key_that_is_another_one_means_what_that_means(tmp_path):
    text = SHAPES.replace("first: 1\n", "")
    meanings = {one.key: one.meaning for one in settings(made(tmp_path, text))}
    assert (meanings["other"], meanings["sibling.one"]) == ("as `behind`", "as `behind`")
    assert meanings["sibling.two"] == "as `sibling.one`"


def test_types_are_those_of_the_reader_and_units_those_of_name_or_comment(tmp_path):
    group = tmp_path / "decoding"
    group.mkdir()
    (group / "_shared.yaml").write_text("decode:\n  _target_: rsd.decoding.DepthAR\n  temperature: 0.0\n")
    for name, value in (("warm", "1.0  # of the softmax"), ("cold", "0.0")):
        (group / f"{name}.yaml").write_text(f"# {name}\ndefaults: [_shared]\ndecode:\n  temperature: {value}\n")
    shown = page(made(tmp_path, SHAPES.replace("first: 1\n", "")))
    row = r"\| `decoding.decode.temperature` \| `0.0` shared, cold<br>`1.0` warm \| a number of at least 0 \|"
    assert re.search(row + r"  \| of the softmax \|", shown)
    assert "| `behind` | `2` | a whole number | pixels | pixels |" in shown
    assert "| `idle_s` | `5` | a whole number | s | without a message |" in shown
    assert "* `decoding=warm`: warm" in shown and "decoding=_shared" not in shown


def test_every_key_of_an_evaluation_and_a_training_is_in_it():
    known = {one.key for one in settings(CONF)}
    for command in (("eval", "decoding=early_exit", "stopping=decided"), ("train", "phase=oft")):
        own = {key for key in keys(composed(command)) if not isinstance(select(composed(command), key), DictConfig)}
        inside = "decoding.full."  # another decoding's, put inside of this one
        assert {key for key in own if not key.startswith(inside)} - known == set()
