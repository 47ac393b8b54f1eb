"""Which policies of a study are timed: those that differ in more than what is done with their chunks."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rsd.comparison.study import CellRecord, Design
from rsd.errors import SettingError
from rsd.record import write
from scripts.study_latency import arms, measure

CONF = Path(__file__).parents[2] / "conf"
CELLS = {
    "(1)": [],
    "d": ["decoding.decode.num_steps=8"],
    "e": ["delay=2", "async=naive"],
    "hold": ["decoding=hold"],
    "a": ["decoding@decoding.full=exit", "draft=numbers"],
    "ad": ["decoding@decoding.full=exit", "draft=numbers", "decoding.decode.num_steps=8"],
    "layer_3": ["decoding@decoding.full=exit", "draft=numbers", "draft.layer=3"],
    "b": ["visual_tokens=grid", "visual_tokens.num_tokens=49"],
    "c": ["model.backbone.dtype=bfloat16"],
    "never": [],
}


@pytest.fixture
def study(tmp_path) -> Path:
    cells = [CellRecord(name=name, folder=name, signs=[], typed=typed) for name, typed in CELLS.items()]
    write(tmp_path / "design.json", Design(fraction="full", margin=0.02, factors=[], cells=cells))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name, typed in list(CELLS.items())[:-1]:
            (tmp_path / name).mkdir()
            OmegaConf.save(compose("eval", ["experiment=study", *typed]), tmp_path / name / "config.yaml")
    return tmp_path


def test_cells_that_ask_the_same_policy_are_one_arm(study):
    assert {name: folder.name for name, folder in arms(study).items()} == {
        name: name for name in ("(1)", "a", "layer_3", "b", "c")
    }


def test_what_cannot_be_timed_is_one_line(study, tmp_path_factory):
    with pytest.raises(SettingError, match=r"--compiled names \['d'\], expected some of \(1\), a, layer_3, b, c"):
        measure(study, ["d"], calls=1, seconds=1.0)
    with pytest.raises(SettingError, match=r"holds no study; give the folder that python eval.py -m has named"):
        arms(tmp_path_factory.mktemp("empty"))
