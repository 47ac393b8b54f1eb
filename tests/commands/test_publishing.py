"""Names of checkpoints: links to runs, and offers of a multirun's jobs."""

import os
import subprocess
import sys

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from rsd.commands import run_publishing
from rsd.commands.publishing import (
    Offer,
    PublishError,
    check_publishable,
    names_of,
    publish,
    read_offer,
    rivals,
    write_offer,
)
from rsd.errors import RSDError, SettingError
from rsd.points import draft_folder


def test_a_name_is_a_relative_link_that_moves_on(tmp_path, capsys):
    name = tmp_path / "checkpoints" / "head" / "one"
    for run in ("a", "b"):
        (tmp_path / run / "checkpoint").mkdir(parents=True)
        publish(tmp_path / run / "checkpoint", name)
        assert name.resolve() == (tmp_path / run / "checkpoint").resolve()
    assert not os.path.isabs(os.readlink(name))
    assert f"from now on it points to {tmp_path / 'b' / 'checkpoint'}" in capsys.readouterr().out


PUBLISH = """
import sys
from pathlib import Path
from rsd.commands.publishing import publish
for _ in range(100):
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_many_processes_publish_under_one_name_and_none_fails(tmp_path):
    runs, name = [tmp_path / f"run {number}" for number in range(4)], tmp_path / "names" / "one"
    for run in runs:
        run.mkdir()
    commands = [[sys.executable, "-c", PUBLISH, str(run), str(name)] for run in runs]
    publishers = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    assert [publisher.communicate()[1] for publisher in publishers] == [""] * 4
    assert name.resolve() in runs and [path.name for path in name.parent.iterdir()] == ["one"]


def test_a_folder_put_there_by_hand_stays(tmp_path):
    (tmp_path / "name").mkdir()
    with pytest.raises(PublishError, match="name is a folder of its own, not a link to a run; move it away"):
        publish(tmp_path / "checkpoint", tmp_path / "name")


def test_a_place_where_no_link_can_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RSDError, match=r"file/name cannot be made a link to .*: .*; set paths.checkpoints"):
        publish(tmp_path / "checkpoint", tmp_path / "file" / "name")


def test_offers(tmp_path):
    name, other = tmp_path / "names" / "one", tmp_path / "names" / "two"
    for job, offered in (("0", name), ("1", other), ("2", name)):
        (tmp_path / job / "checkpoint").mkdir(parents=True)
        write_offer(tmp_path / job, Offer(tmp_path / job / "checkpoint", offered))
    (tmp_path / "3").mkdir()
    assert read_offer(tmp_path / "3") is None
    offers = [read_offer(tmp_path / job) for job in "012"]
    assert rivals(offers) == [[offers[0], offers[2]], [offers[1]]]
    publish(offers[2].checkpoint, name)
    assert [offer.is_published for offer in offers] == [False, False, True]


@pytest.mark.parametrize("taken", ["folder", "file in its place", "links in a circle", "link to nowhere"])
def test_what_cannot_be_published_is_said_before_it_is_made(tmp_path, taken):
    name = tmp_path / "head" / "a"
    check_publishable(name)
    assert not name.parent.exists()
    if taken == "folder":
        name.mkdir(parents=True)
    elif taken == "links in a circle":
        name = tmp_path / "circle" / "a"
        name.parent.symlink_to(name.parent)
    elif taken == "link to nowhere":
        name = tmp_path / "link" / "a"
        name.parent.symlink_to(tmp_path / "gone")
    else:
        name = tmp_path / "file" / "a"
        name.parent.write_text("")
    with pytest.raises(PublishError, match=r"a (cannot be made: .*; set paths.checkpoints|is a folder of its own)"):
        check_publishable(name)


def test_nothing_is_published_into_a_policys_folder(tmp_path):
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(PublishError, match=r"in a policy's folder.*paths.draft=outputs/checkpoints/draft/mine"):
        check_publishable(tmp_path / "draft" / "a-layer.2")


def test_what_belongs_to_a_point_is_found_under_the_name_it_was_published_under(tmp_path):
    plain = tmp_path / "draft"
    assert names_of({"checkpoint": str(plain)}) == {"": plain}
    assert names_of({"checkpoint": str(plain), "points": 3}) == {"": plain}
    several = names_of({"checkpoint": str(plain), "points": [2, "layer.3", 2]})
    assert several == {"layer.2": tmp_path / "draft-layer.2", "layer.3": tmp_path / "draft-layer.3"}
    (tmp_path / "run").mkdir()
    publish(tmp_path / "run", several["layer.3"])
    assert names_of({"checkpoint": str(plain), "points": 3}) == {"": several["layer.3"]}  # the newer one, from now on
    assert names_of({"checkpoint": str(plain), "points": 2}) == {"": plain}


def test_a_job_of_a_multirun_offers_one_checkpoint(tmp_path, monkeypatch):
    hydra = OmegaConf.create({"mode": RunMode.MULTIRUN})
    monkeypatch.setattr(run_publishing.HydraConfig, "get", lambda: hydra)
    cfg = OmegaConf.create({"phase": {"checkpoint": str(tmp_path / "draft"), "points": [2, 3]}})
    with pytest.raises(SettingError, match=r"draft.layer is \['layer.2', 'layer.3'\] in a multirun"):
        run_publishing.published_names(cfg)
    cfg.phase.points = 2
    assert run_publishing.published_names(cfg) == {"": tmp_path / "draft"}


def test_a_draft_whose_run_is_gone_is_not_replaced_by_another_one(tmp_path):
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft-layer.3").symlink_to(tmp_path / "gone")
    assert draft_folder(tmp_path / "draft", 3) == tmp_path / "draft-layer.3"
