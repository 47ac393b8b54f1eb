"""Law 7: the base models, tiny ones of every kind and the fake that stands for them, keep what BaseModel promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.models.openvla import load_base
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.random_weights import openvla_architecture, write_random_checkpoint
from rsd.types import Observation
from tests.data.fake_base import LinearBase, P
from tests.models.contract import BaseModelContract
from tests.models.openvla_tiny import build_base


class TestTwoViewsAndProprio(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return build_base()


class TestOneViewAlone(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return build_base(views=("image",), use_proprio=False, seed=1)


class TestAnotherRobotAndPictureSize(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return build_base(gripper="unchanged", image_size=42, seed=2)


class PublishedContract(BaseModelContract):
    """A checkpoint in the published layout, with random weights."""

    action_head: str

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tmp_path_factory):
        return cls.written(tmp_path_factory.mktemp("published"))

    @classmethod
    def written(cls, root: Path) -> OpenVLABase:
        alone = cls.action_head == "autoregressive"  # the original OpenVLA: one action, and no proprio
        directory = root / "c"
        proprio_dim = None if alone else 8
        architecture = openvla_architecture(action_head=cls.action_head, proprio_dim=proprio_dim, size="tiny")
        write_random_checkpoint(directory, architecture=architecture)
        return load_base(
            checkpoint=directory, unnorm_key="libero_goal", views=["image"], use_proprio=not alone,
            chunk_length=1 if alone else 8, action_head=cls.action_head, canaries=False,
        )  # fmt: skip


class TestAutoregressive(PublishedContract):
    action_head = "autoregressive"


class TestDiscrete(PublishedContract):
    action_head = "discrete"


class TestDiffusion(PublishedContract):
    """A random head amplifies rounding ten million times in its 50 steps; a weaker one in few steps does not."""

    action_head = "diffusion"

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tmp_path_factory):
        base = cls.written(tmp_path_factory.mktemp("published"))
        with torch.no_grad():
            base.model.action_head.noise_predictor.mlp_resnet.fc2.weight.mul_(0.1)
        base.model.num_diffusion_steps = 5
        return base


class TestLinear(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return LinearBase()

    @pytest.fixture(scope="class")
    @classmethod
    def observations(cls):
        random = np.random.default_rng(0)
        pictures = random.integers(0, 256, (4, 2, 8, 8, 3), dtype=np.uint8)
        return [
            Observation(dict(zip(LinearBase.views, both, strict=True)), random.normal(size=P), "reach")
            for both in pictures
        ]

    @pytest.fixture(scope="class")
    @classmethod
    def grey(cls):
        pictures = [np.full((8, 8, 3), level, dtype=np.uint8) for level in (0, 255)]
        return [Observation(dict.fromkeys(LinearBase.views, one), np.zeros(P), "reach") for one in pictures]

    def test_its_states_are_products_with_its_maps(self, base, observations):
        features = base.prepare(observations)["features"]
        expected = torch.einsum("khf,bf->bkh", base.maps[1], features)
        assert torch.equal(base.look(observations).at("layer.2"), expected)
