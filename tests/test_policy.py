"""The policy: where a real (small, random) base model, tokenizer, heads and decodings meet."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.decoding import depth_ar, parallel, speculative
from rsd.jpeg import jpeg_round_trip
from rsd.models.base_target import executed
from rsd.models.loading import save_stage_head
from rsd.models.stage_head import StageHead
from rsd.normalization import robot_actions, unnormalize
from rsd.policy import PolicyError, load_policy
from rsd.tokenizer import save_tokenizer
from rsd.types import Observation
from tests.models.openvla_tiny import LONG, UNNORM_KEY, build_backbone, observation, plain_observation
from tests.tokenizer.test_tokenizers import rfsq


@pytest.fixture(scope="module")
def backbone():
    return build_backbone()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, backbone):
    """Folders of a tokenizer, a head on the L1 head's states, a draft on the first layer, random weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    tokenizer = rfsq()
    save_tokenizer(tokenizer, root / "tokenizer", {"unnorm_key": UNNORM_KEY})
    sha256 = json.loads((root / "tokenizer" / "checkpoint.json").read_text())["sha256"]
    made_for = {"tokenizer": sha256, "base": backbone.fingerprint(), "unnorm_key": UNNORM_KEY}
    for seed, kind, point, states, num_stages in ((4, "head", "head", 1, 4), (1, "draft", "layer.1", 7, 2)):
        torch.manual_seed(seed)
        head = StageHead(
            code_shape=tokenizer.code_shape,
            hidden_dim=32,
            states_per_step=states,
            num_stages=num_stages,
            width=16,
            num_layers=1,
            num_heads=2,
        )
        save_stage_head(head, root / kind, kind=kind, point=point, provenance=made_for)
    return root


def make_policy(backbone, checkpoints, decode, draft=True, **changes):
    arguments = {
        "backbone": backbone,
        "tokenizer": rfsq(),
        "tokenizer_checkpoint": checkpoints / "tokenizer",
        "head_checkpoint": checkpoints / "head",
        "draft_checkpoint": checkpoints / "draft" if draft else None,
        "decode": decode,
        "num_open_loop_steps": 8,
        "device": "cpu",
    }
    return load_policy(**{**arguments, **changes})


SPECULATIVE = partial(speculative, num_draft_stages=2)


def test_l1_is_the_base_models_chunk_in_robot_units(backbone, checkpoints):
    policy = make_policy(backbone, checkpoints, decode=None)
    seen = observation(1)
    (prediction,) = policy.predict([seen], [0])
    images = {view: jpeg_round_trip(image) for view, image in seen.images.items()}
    stored = Observation(images, seen.proprio, seen.instruction)
    with torch.inference_mode():
        normalized = backbone.forward(backbone.prepare([stored]), []).actions[0].numpy()
    expected = robot_actions(unnormalize(normalized, backbone.norm_stats["action"]))
    assert prediction.actions.shape == (8, 7) and prediction.actions.dtype == np.float64
    np.testing.assert_array_equal(prediction.actions, expected)
    assert set(np.unique(prediction.actions[:, 6])) <= {-1.0, 1.0}
    assert prediction.stats == {}


def test_a_robot_that_executes_what_the_model_says(checkpoints):
    other = build_backbone()
    raw = unnormalize(other.forward(other.prepare([observation(1)]), []).actions[0].numpy(), other.norm_stats["action"])
    other.gripper = "unchanged"
    policy = make_policy(other, checkpoints, decode=None, jpeg=False)
    np.testing.assert_array_equal(policy.predict([observation(1)], [0])[0].actions, raw)


def test_speculative_gives_the_actions_of_depth_ar(backbone, checkpoints):
    seen = [observation(seed, LONG if seed % 2 else "pick up the bowl") for seed in range(4)]
    exact = make_policy(backbone, checkpoints, depth_ar, draft=False).predict(seen, range(4))
    fast = make_policy(backbone, checkpoints, SPECULATIVE).predict(seen, range(4))
    for reference, prediction in zip(exact, fast, strict=True):
        np.testing.assert_array_equal(prediction.actions, reference.actions)
        assert reference.stats["target_passes"] == 4 and 1 <= prediction.stats["target_passes"] <= 4
        assert prediction.stats["proposed_stages"] >= 2 and sum(prediction.stats["accept_counts"]) == 1
    (first, *_) = make_policy(backbone, checkpoints, parallel, draft=False).predict(seen, range(4))
    assert first.stats["target_passes"] == 1


def test_without_a_head_the_base_models_own_chunk_is_the_target(backbone, checkpoints):
    seen = [observation(seed) for seed in range(3)]
    exact = make_policy(backbone, checkpoints, depth_ar, draft=False, head_checkpoint=None)
    tokenizer = exact.tokens.tokenizer
    images = [Observation({v: jpeg_round_trip(o.images[v]) for v in o.images}, o.proprio, o.instruction) for o in seen]
    with torch.inference_mode():
        chunk = executed(backbone.forward(backbone.prepare(images), []).actions)
        expected = unnormalize(tokenizer.decode(tokenizer.encode(chunk)).numpy(), backbone.norm_stats["action"])
    for prediction, raw in zip(exact.predict(seen, range(3)), expected, strict=True):
        np.testing.assert_allclose(prediction.actions, robot_actions(raw), atol=1e-5)
    fast = make_policy(backbone, checkpoints, SPECULATIVE, head_checkpoint=None).predict(seen, range(3))
    for reference, prediction in zip(exact.predict(seen, range(3)), fast, strict=True):
        np.testing.assert_array_equal(prediction.actions, reference.actions)


def test_a_base_model_that_speaks_in_tokens_cannot_be_the_target(backbone, checkpoints, monkeypatch):
    monkeypatch.setattr(type(backbone), "decoder", property(lambda self: "discrete"))
    with pytest.raises(PolicyError, match="makes its chunk with 'discrete'"):
        make_policy(backbone, checkpoints, depth_ar, draft=False, head_checkpoint=None)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(backbone, checkpoints):
    policy = make_policy(backbone, checkpoints, partial(speculative, num_draft_stages=2, temperature=1.0))
    runs = []
    for seeds in ([5], [5, 6], [6]):
        runs.append(policy.predict([observation(3)] * len(seeds), seeds)[0].actions)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_black_and_a_white_picture_give_different_actions(backbone, checkpoints):
    for decode in (None, SPECULATIVE):
        policy = make_policy(backbone, checkpoints, decode)
        black, white = policy.predict([plain_observation(0), plain_observation(255)], [0, 0])
        assert not np.array_equal(black.actions[:, :6], white.actions[:, :6])


def test_latency_parts_add_up_to_the_total(backbone, checkpoints):
    (prediction,) = make_policy(backbone, checkpoints, SPECULATIVE).predict([observation()], [0])
    parts = dict(prediction.latency_ms)
    total = parts.pop("total")
    names = {"preprocess", "backbone", "draft", "target", "acceptance", "tokenizer", "unnormalize"}
    assert set(parts) == names and all(value >= 0 for value in parts.values())
    assert sum(parts.values()) <= total


class Raising:
    """A base model whose forward pass fails, or gives NaN."""

    def __init__(self, backbone, error=None):
        self._backbone, self._error = backbone, error

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def forward(self, inputs, layers):
        if self._error:
            raise self._error
        output = self._backbone.forward(inputs, layers)
        output.actions = output.actions * torch.nan
        return output


def test_a_base_model_that_raises_makes_predict_raise(backbone, checkpoints):
    policy = make_policy(Raising(backbone, RuntimeError("out of memory")), checkpoints, SPECULATIVE)
    with pytest.raises(RuntimeError, match="out of memory"):
        policy.predict([observation()], [0])
    with pytest.raises(PolicyError, match="NaN or infinite actions"):
        make_policy(Raising(backbone), checkpoints, None).predict([observation()], [0])


def test_parts_that_do_not_belong_together_are_refused(backbone, checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match=r"head .* was made for another base"):
        make_policy(build_backbone(seed=1), checkpoints, depth_ar)
    other = rfsq()
    with torch.no_grad():
        other.encoder[0].bias.add_(1)
    save_tokenizer(other, tmp_path / "retrained", {"unnorm_key": UNNORM_KEY})
    with pytest.raises(CheckpointError, match=r"head .* was made for another tokenizer"):
        make_policy(backbone, checkpoints, depth_ar, tokenizer_checkpoint=tmp_path / "retrained")
    with pytest.raises(CheckpointError, match=r"no draft checkpoint: .* python train.py phase=draft"):
        make_policy(backbone, checkpoints, SPECULATIVE, draft_checkpoint=tmp_path / "nothing")
    with pytest.raises(PolicyError, match=r"draft .* was trained for 2 stages, but 3 are asked of it"):
        make_policy(backbone, checkpoints, partial(speculative, num_draft_stages=3))
    with pytest.raises(PolicyError, match=r"num_open_loop_steps 9, expected 1\.\.8"):
        make_policy(backbone, checkpoints, None, num_open_loop_steps=9)


OFFERED = {"views": ["image", "wrist_image"], "proprio_dim": 8, "action_dim": 7}


def test_the_contract_names_what_goes_in_and_out(backbone, checkpoints):
    contract = make_policy(backbone, checkpoints, SPECULATIVE, offered=OFFERED).contract
    assert (contract.num_images, contract.views) == (2, ("image", "wrist_image"))
    assert (contract.proprio_dim, contract.action_dim, contract.chunk_length) == (8, 7, 8)
    assert (contract.center_crop, contract.decoder, contract.unnorm_key) == (True, "speculative", UNNORM_KEY)
    assert make_policy(backbone, checkpoints, decode=None).contract.decoder == "l1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": ["image"]}, r"view 'wrist_image' is needed, offered are \['image'\]"),
        ({"proprio_dim": 9}, "proprio of 8 dims is needed, offered are 9"),
        ({"action_dim": 14}, "actions have 7 dims, executed are 14"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_before_the_first_episode(backbone, checkpoints, change, message):
    with pytest.raises(PolicyError, match=f"policy and environment do not fit: {message}"):
        make_policy(backbone, checkpoints, decode=None, offered=OFFERED | change)


def test_a_policy_without_proprio_accepts_any():
    blind = build_backbone(views=("image",), use_proprio=False)
    arguments = {"tokenizer": None, "tokenizer_checkpoint": None, "head_checkpoint": None, "draft_checkpoint": None}
    arguments |= {"backbone": blind, "decode": None, "num_open_loop_steps": 8, "device": "cpu"}
    policy = load_policy(**arguments, offered=OFFERED | {"proprio_dim": 3})
    assert policy.contract.proprio_dim is None
