"""The six steps of docs/add_your_own.md, done with the files that stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import rsd
from rsd.decoding import L1, EarlyExit
from rsd.types import Request
from scripts.recorded import recorded_observations
from tests.decoding.contract import DecodingContract
from tests.decoding.tables import LEVELS, D, T

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"```(?:python|yaml)\n# (my_[\w/.]+)\n(.*?)```", re.S)  # a block that begins with the file's name


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the files of the page, found by Python and Hydra; their names."""
    folder = tmp_path_factory.mktemp("own")
    page = (ROOT / "docs" / "add_your_own.md").read_text(encoding="utf-8")
    files = dict(FILE.findall(page))
    assert sorted(files) == ["my_conf/decoding/coarse.yaml", "my_conf/visual_tokens/middle.yaml", "my_ideas.py"]
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("my_ideas", None)


@pytest.fixture(scope="module")
def composed(own):
    """Composes eval.yaml with the folder's groups besides rsd's."""

    def compose_with(*overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base=None):
            return compose("eval", [f"hydra.searchpath=[file://{own}/my_conf]", *overrides])

    return compose_with


@pytest.fixture(scope="module")
def asked() -> Request:
    return Request(recorded_observations()[0], 0)


class TestCoarse(DecodingContract):
    @pytest.fixture
    def decoding(self, composed):
        return instantiate(composed("decoding=coarse").decoding.decode)


def test_the_decoding_runs_in_the_released_policy(composed, asked):
    decoding = instantiate(composed("decoding=coarse", "decoding.decode.num_stages=3").decoding.decode)
    (chunk,) = rsd.load("released", decoding=decoding, target="head").predict([asked])
    assert chunk.depth == 3 and chunk.work["target_passes"] == 1 and chunk.work["base_layers"] == 6
    (parallel,) = rsd.load("released", decoding="parallel").predict([asked])
    assert (chunk.actions == parallel.actions).all()


def test_the_gate_decides_by_the_least_likely_token(composed):
    overrides = ["decoding.decode.gate._target_=my_ideas.WorstToken", "decoding.decode.gate.threshold=-0.5"]
    decoding = instantiate(composed("decoding=early_exit", *overrides).decoding.decode)
    assert isinstance(decoding, EarlyExit) and decoding.full == L1()
    log_probs = torch.full((2, T, D, 1), -0.4)
    log_probs[1, 0, 0, 0] = -0.6  # on average likelier than the threshold
    assert decoding.gate(log_probs, LEVELS).tolist() == [True, False]


def test_the_selection_reaches_the_language_model(composed, asked):
    cfg = composed("visual_tokens=middle", "visual_tokens.num_tokens=4")
    selection = instantiate(cfg.visual_tokens.select)
    policy = rsd.load("released", decoding="l1", visual_tokens=selection)
    (chunk,) = policy.predict([asked])
    assert chunk.work["visual_tokens"] == 8  # 4 of each of two views
