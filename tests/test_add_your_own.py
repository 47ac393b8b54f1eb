"""The steps of docs/add_your_own.md, done with the files that stand there."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file

import rsd
from rsd.commands.settings import check_settings
from rsd.decoding import L1, EarlyExit
from rsd.policy import Checkpoints, assemble
from rsd.tokenizer import load_tokenizer, save_tokenizer
from rsd.tokenizer.loading import FAMILIES
from rsd.types import Observation, Request
from scripts.recorded import recorded_observations
from tests.decoding.contract import DecodingContract
from tests.decoding.tables import LEVELS, D, T
from tests.envs.contract import EnvContract
from tests.models.contract import BaseModelContract
from tests.tokenizer.contract import TokenizerContract, random_chunks

ROOT = Path(__file__).parents[1]
VIEWS = ("image", "wrist_image")
FILE = re.compile(r"```(?:python|yaml)\n# (my_[\w/.]+)\n(.*?)```", re.S)  # a block that begins with the file's name


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the files of the page, found by Python and Hydra; their names."""
    folder = tmp_path_factory.mktemp("own")
    page = (ROOT / "docs" / "add_your_own.md").read_text(encoding="utf-8")
    files = dict(FILE.findall(page))
    assert len(files) == 11
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in files:
        sys.modules.pop(Path(name).stem, None)


@pytest.fixture(scope="module")
def composed(own):
    """Composes eval.yaml, or another root, with the folder's groups besides rsd's."""

    def compose_with(*overrides, root="eval"):
        with initialize_config_dir(str(ROOT / "conf"), version_base=None):
            cfg = compose(root, [f"hydra.searchpath=[file://{own}/my_conf]", *overrides])
        check_settings(cfg)
        return cfg

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


class TestDirect(TokenizerContract):
    @pytest.fixture
    def tokenizer(self, composed):
        cfg = composed("phase=rfsq", "quantizer=direct_d3", root="train")
        return instantiate(cfg.quantizer.tokenizer)(action_dim=7)

    def test_three_stages_leave_half_of_the_last_step_and_an_exact_gripper(self, tokenizer):
        chunks = random_chunks(32, 8)
        error = (tokenizer(chunks) - chunks).abs()
        assert error[..., :6].max() <= 1.0001 / 7**3 and error[..., 6].max() == 0

    def test_among_the_families_its_checkpoint_is_read_back(self, tokenizer, monkeypatch, tmp_path):
        monkeypatch.setitem(FAMILIES, "Direct", type(tokenizer))
        save_tokenizer(tokenizer, tmp_path / "direct", {"unnorm_key": "mine", "norm_stats": {}})
        chunks = random_chunks(4, 8)
        again = load_tokenizer(tmp_path / "direct").tokenizer
        assert torch.equal(again.encode(chunks), tokenizer.encode(chunks))


class TestReach(EnvContract):
    @pytest.fixture
    def env(self, composed):
        return instantiate(composed("env=reach", "data=libero_suites").env.make)(task_id=1)

    def succeed(self, env):
        steps = (env.step(np.append(-env.point / 0.05, np.zeros(4)), observe=False) for _ in range(env.task.max_steps))
        return any(step.success for step in steps)

    def test_the_released_policy_acts_in_it(self, env, composed):
        cfg = composed("env=reach", "data=libero_suites", "policy=released")
        policy = rsd.load("released", decoding="l1", offered=dict(cfg.composed.offered))
        policy.check_instructions([task.instruction for task in instantiate(cfg.env.tasks)])
        step = env.step(policy.queue(seed=0).next(env.reset(0)))
        assert step.observation.proprio.shape == (8,) and not step.success


class TestColours(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def cfg(cls, composed, tmp_path_factory):
        folder = tmp_path_factory.mktemp("colours")
        maps = torch.randn(4, 56, 16, 12, generator=torch.Generator().manual_seed(0))  # [layers, K, H, features]
        save_file({"maps": maps}, folder / "weights.safetensors")
        bounds = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "min": [-1.0] * 7, "max": [1.0] * 7}
        statistics = {"libero_spatial_no_noops": {"action": bounds}}
        (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
        return composed("model=colours", "decoding=l1", f"model.backbone.checkpoint={folder}")

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, cfg):
        return instantiate(cfg.model.backbone)

    @pytest.fixture(scope="class")
    @classmethod
    def observations(cls):
        random = np.random.default_rng(0)
        pictures = random.integers(0, 256, (4, 2, 8, 8, 3), dtype=np.uint8)
        return [Observation(dict(zip(VIEWS, both, strict=True)), random.normal(size=8), "reach") for both in pictures]

    @pytest.fixture(scope="class")
    @classmethod
    def grey(cls):
        pictures = [np.full((8, 8, 3), level, dtype=np.uint8) for level in (0, 255)]
        return [Observation(dict.fromkeys(VIEWS, one), np.zeros(8), "reach") for one in pictures]

    def test_it_acts_with_its_own_chunk(self, base, cfg, observations):
        decoding = instantiate(cfg.decoding.decode)
        policy = assemble(
            base=base, decoding=decoding, checkpoints=Checkpoints(), num_open_loop_steps=8, device="cpu",
            offered=dict(cfg.composed.offered),
        )  # fmt: skip
        (chunk,) = policy.predict([Request(observations[0], 0)])
        assert chunk.actions.shape == (8, 7) and chunk.work["base_layers"] == 4


def test_the_data_set_trains(own, composed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(own / "my_recordings.py"))
    frames = ["data=my_arm", "model=oft_tiny", "model.backbone.views=[front]"]
    for overrides, expected in ((["phase=rfsq", "data=my_arm"], (8, 8)), (["phase=oft", *frames], (8, 8))):
        cfg = composed(*overrides, "phase.datamodule.batch_size=4", root="train")
        data = instantiate(cfg.phase.datamodule)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert batch["actions"].shape == (4, *expected)
    gripper = batch["actions"][..., 7]
    assert set(gripper.unique().tolist()) <= {0.0, 1.0}
