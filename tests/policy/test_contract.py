"""Law 7: the policy with every kind of decoding, and the small ones that stand for it, keep what Policy promises."""

import numpy as np
import pytest

from rsd.decoding import L1, DepthAR, EarlyExit, Exit, MeanLogProb, Parallel, Speculative
from rsd.types import Observation, Request
from tests.evaluation.policies import RaisingPolicy, SeeingPolicy
from tests.fakes import PointMassEnv
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation
from tests.policy.contract import PolicyContract
from tests.policy.policies import make_policy, save_parts
from tests.serving.policies import SIZE, TellingPolicy

SPECULATIVE = Speculative(num_draft_stages=2)


class VLAContract(PolicyContract):
    """Of a tiny base model, tokenizer, head and draft."""

    decoding = L1()
    target = "head"

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return build_base()

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory, base):
        return save_parts(tmp_path_factory.mktemp("parts"), base)

    @pytest.fixture
    def policy(self, base, root):
        return make_policy(base, root, self.decoding, target=self.target, num_open_loop_steps=5)

    @pytest.fixture
    def requests(self):
        return [Request(observation(seed, LONG if seed == 1 else SHORT), seed) for seed in range(3)]

    @pytest.fixture
    def failing(self, root, requests):
        base = build_base()
        policy = make_policy(base, root, self.decoding, target=self.target)

        def fail(*_):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        base.model.vision_backbone.register_forward_hook(fail)
        return policy, requests


class TestL1(VLAContract): ...


class TestParallel(VLAContract):
    decoding = Parallel()


class TestDepthAR(VLAContract):
    decoding = DepthAR()


class TestSpeculative(VLAContract):
    decoding = SPECULATIVE


class TestSpeculativeOnTheBaseModelsChunk(VLAContract):
    decoding = SPECULATIVE
    target = "base"


class TestSampled(VLAContract):
    decoding = Speculative(num_draft_stages=2, temperature=1.0)
    is_random = True


class TestExit(VLAContract):
    decoding = Exit(num_draft_stages=2)


class TestEarlyExit(VLAContract):
    decoding = EarlyExit(gate=MeanLogProb(threshold=float("inf")), full=SPECULATIVE, num_draft_stages=2)


class TestSeeing(PolicyContract):
    @pytest.fixture
    def policy(self):
        return SeeingPolicy(num_open_loop_steps=5)

    @pytest.fixture
    def requests(self):
        seen = [PointMassEnv(task_id=seed).reset(seed) for seed in range(3)]
        places = [np.r_[[place] * 3, np.zeros(5)] for place in (0.0, 0.5, 0.6)]  # from far and from near the goal
        return [
            Request(Observation(one.images, place, one.instruction), seed)
            for seed, (one, place) in enumerate(zip(seen, places, strict=True))
        ]

    @pytest.fixture
    def failing(self):
        seen = PointMassEnv().reset(0)
        return RaisingPolicy(), [Request(Observation(seen.images, np.ones(8), seen.instruction), 0)]


class TestTelling(PolicyContract):
    shape = (4, 7)

    @pytest.fixture
    def policy(self):
        return TellingPolicy()

    @pytest.fixture
    def requests(self):
        pictures = np.random.default_rng(0).integers(1, 256, (3, 2, SIZE, SIZE, 3), dtype=np.uint8)
        return [
            Request(Observation({"image": one, "wrist_image": other}, np.arange(8.0), "reach"), seed)
            for seed, (one, other) in enumerate(pictures)
        ]

    @pytest.fixture
    def failing(self):
        black = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        return TellingPolicy(), [Request(Observation({"image": black}, np.zeros(8), "reach"), 0)]
