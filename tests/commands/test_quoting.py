"""Folders whose names Hydra's grammar stumbles over reach it as they were typed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rsd.commands.quoting import quoted

NAMES = ["a=b", "a b", "a,b", "it's", 'a"b', "größe–动作", "a(b)", "a[b]", "a{b}", "a$b", "a#b", "a:b", "a\\b", "-a"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["hydra.run.dir", "paths.root", "data.root", "resume"])
def test_a_path_arrives_as_it_was_typed(key, name):
    override = OverridesParser.create().parse_override(quoted(f"{key}=/data/{name}/x"))
    assert override.value() == f"/data/{name}/x" and not override.is_sweep_override()


@pytest.mark.parametrize("name", ["a,b", "2024", "1e5", "true", "a=b", "a b,c"])
@pytest.mark.parametrize("key", ["hydra.run.dir", "paths.root", "+data.root", "policy", "resume"])
def test_a_folder_without_a_slash_is_a_path_too(key, name):
    override = OverridesParser.create().parse_override(quoted(f"{key}={name}"))
    assert override.value() == name and not override.is_sweep_override()


UNTOUCHED = ["decoding=l1,depth_ar", "tasks=[0,1]", "paths.root=/a/b", "-m", "a='b,c/d'", "policy=null", "seed=7", "a="]
UNTOUCHED += ["policy.delay_s=0.1", "+policy.num_steps=5"]


@pytest.mark.parametrize("argument", UNTOUCHED)
def test_anything_else_stays_as_it_is(argument):
    assert quoted(argument) == argument


def test_in_a_multirun_commas_stand_between_values():
    assert quoted("data.root=/a,/b", is_sweep=True) == "data.root=/a,/b"
