"""The policy: where a real (small, random) base model, tokenizer, heads and decodings meet."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.decoding import L1, DepthAR, EarlyExit, Exit, FixedHorizon, MeanLogProb, Parallel, Speculative
from rsd.errors import SettingError
from rsd.jpeg import jpeg_round_trip
from rsd.policy import Checkpoints, PolicyError, assemble
from rsd.stages.base_chunk import executed
from rsd.tokenizer import save_tokenizer
from rsd.types import Memory, Request
from tests.models.openvla_tiny import LONG, SHORT, UNNORM_KEY, build_base, observation, plain_observation
from tests.policy.policies import checkpoints_of, make_policy, requests, save_parts
from tests.tokenizer.test_tokenizers import rfsq

SPECULATIVE = Speculative(num_draft_stages=2)


@pytest.fixture(scope="module")
def base():
    return build_base()


@pytest.fixture(scope="module")
def root(tmp_path_factory, base):
    return save_parts(tmp_path_factory.mktemp("parts"), base)


def chunk_of(base, *observations):
    """The base model's own chunks, model space."""
    with torch.inference_mode():
        return base.look(observations).chunk()


def test_l1_is_the_base_models_chunk_in_robot_units(base, root):
    seen = observation(1)
    (chunk,) = make_policy(base, root, L1()).predict([Request(seen, 0)])
    images = {view: jpeg_round_trip(image) for view, image in seen.images.items()}
    expected = base.space.to_robot(chunk_of(base, replace(seen, images=images, stored=True))[0].numpy())
    assert chunk.actions.shape == (8, 7) and chunk.actions.dtype == np.float64
    np.testing.assert_array_equal(chunk.actions, expected)
    assert set(np.unique(chunk.actions[:, 6])) <= {-1.0, 1.0}
    assert (chunk.num_steps, chunk.depth, chunk.bound, chunk.draft_actions) == (8, None, None, None)
    assert chunk.work["target_passes"] == chunk.work["draft_passes"] == 0 and chunk.work["accept_counts"] == []


def test_a_robot_that_executes_what_the_model_says(root):
    other = build_base(gripper="unchanged")
    raw = other.space.action.unnormalize(chunk_of(other, observation(1))[0].numpy())
    (chunk,) = make_policy(other, root, L1()).predict([Request(observation(1), 0)])
    np.testing.assert_array_equal(chunk.actions, raw)
    assert not set(np.unique(raw[:, 6])) <= {-1.0, 1.0}


def test_speculative_gives_the_actions_of_depth_ar(base, root):
    seen = requests([observation(seed, LONG if seed % 2 else SHORT) for seed in range(4)])
    exact, fast = (make_policy(base, root, decoding).predict(seen) for decoding in (DepthAR(), SPECULATIVE))
    for reference, chunk in zip(exact, fast, strict=True):
        np.testing.assert_array_equal(chunk.actions, reference.actions)
        assert reference.work["target_passes"] == 4 and 1 <= chunk.work["target_passes"] <= 4
        assert chunk.work["proposed_stages"] >= 2 and sum(chunk.work["accept_counts"]) == 1
        assert chunk.depth == reference.depth == 4
    (first, *_) = make_policy(base, root, Parallel()).predict(seen)
    assert first.work["target_passes"] == 1


def test_without_a_head_the_base_models_own_chunk_is_the_target(base, root):
    seen = [observation(seed) for seed in range(3)]
    policy = make_policy(base, root, DepthAR(), target="base")
    tokenizer = policy.tokens.tokenizer
    with torch.inference_mode():
        expected = base.space.to_robot(tokenizer.decode(tokenizer.encode(executed(chunk_of(base, *seen)))).numpy())
    exact = policy.predict(requests(seen))
    for chunk, actions in zip(exact, expected, strict=True):
        np.testing.assert_allclose(chunk.actions, actions, atol=1e-5)
    fast = make_policy(base, root, SPECULATIVE, target="base").predict(requests(seen))
    for reference, chunk in zip(exact, fast, strict=True):
        np.testing.assert_array_equal(chunk.actions, reference.actions)


def test_a_base_model_that_speaks_in_tokens_cannot_be_the_target(root):
    other = build_base()
    other.__dict__["spec"] = replace(other.spec, action_head="discrete", continuous=False)
    with pytest.raises(PolicyError, match="makes its chunk with 'discrete'"):
        make_policy(other, root, DepthAR(), target="base")


def test_sampling_depends_on_the_seed_and_not_on_the_batch(base, root):
    policy = make_policy(base, root, Speculative(num_draft_stages=2, temperature=1.0))
    runs = []
    for seeds in ([5], [5, 6], [6]):
        runs.append(policy.predict([Request(observation(3), seed) for seed in seeds])[0].actions)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_black_and_a_white_picture_give_different_actions(base, root):
    for decoding in (L1(), SPECULATIVE, Exit(num_draft_stages=2)):
        seen = [plain_observation(0), plain_observation(255)]
        black, white = make_policy(base, root, decoding).predict(requests(seen))
        assert not np.array_equal(black.actions[:, :6], white.actions[:, :6])


@pytest.mark.parametrize(
    ("decoding", "parts"),
    [
        (L1(), {"preprocess", "base_model", "acceptance", "unnormalize"}),
        (Exit(num_draft_stages=2), {"preprocess", "base_model", "draft", "acceptance", "tokenizer", "unnormalize"}),
        (SPECULATIVE, {"preprocess", "base_model", "draft", "target", "acceptance", "tokenizer", "unnormalize"}),
    ],
)
def test_latency_parts_add_up_to_the_total(base, root, decoding, parts):
    chunks = make_policy(base, root, decoding).predict(requests([observation(0), observation(1)]))
    latency = dict(chunks[0].latency_ms)
    total = latency.pop("total")
    assert set(latency) == parts and all(value >= 0 for value in latency.values())
    assert sum(latency.values()) <= total
    assert all(chunk.model_ms == total / 2 for chunk in chunks)


# --- what a chunk says of itself


def test_the_draft_is_explained_to_who_asks(base, root):
    policy = make_policy(base, root, SPECULATIVE)
    exits = make_policy(base, root, Exit(num_draft_stages=2))
    asked = [Request(observation(0), 0, explain=True), Request(observation(1), 1)]
    explained, silent = policy.predict(asked)
    expected, _ = exits.predict(asked)
    np.testing.assert_allclose(explained.draft_actions, expected.actions, atol=1e-6)  # what the draft alone would do
    assert silent.draft_actions is None
    for decoding in (L1(), DepthAR()):
        (chunk,) = make_policy(base, root, decoding).predict(asked[:1])
        assert chunk.draft_actions is None  # there is no draft


def test_later_stages_stay_within_the_bound_of_a_chunk(base, root):
    """Exit's bound holds for what the same leading stages and any later ones decode to."""
    policy = make_policy(base, root, Exit(num_draft_stages=2))
    tokenizer, seen = policy.tokens.tokenizer, requests([observation(0)])
    (chunk,) = policy.predict(seen)
    assert chunk.depth == 2 and chunk.bound.shape == (7,) and (chunk.bound > 0).all()
    levels, generator = torch.tensor(tokenizer.code_shape.levels), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        leading = torch.randint(0, 7, levels.shape, generator=generator) % levels
        decoded = tokenizer.decode(leading[None, ..., :2])
        for _ in range(8):
            other = torch.randint(0, 7, levels.shape, generator=generator) % levels
            other[..., :2] = leading[..., :2]
            moved = (tokenizer.decode(other[None]) - decoded).abs().amax(dim=(0, 1))
            assert (moved.numpy() <= chunk.bound + 1e-5).all()
    (whole,) = make_policy(base, root, DepthAR()).predict(seen)
    assert (whole.bound <= chunk.bound).all()
    shut = EarlyExit(gate=MeanLogProb(threshold=float("inf")), full=L1(), num_draft_stages=2)
    (own,) = make_policy(base, root, shut).predict(seen)
    assert own.depth == 0 and (own.bound == 0).all()


def test_a_chunk_is_remembered_in_model_space(base, root):
    for decoding in (L1(), SPECULATIVE):
        policy = make_policy(base, root, decoding)
        (chunk,) = policy.predict([Request(observation(0), 0)])
        assert chunk.memory.chunk.shape == (8, 7) and chunk.memory.chunk.dtype == np.float32
        assert chunk.memory.num_executed == 0
        np.testing.assert_array_equal(base.space.to_robot(chunk.memory.chunk), chunk.actions)
        (again,) = policy.predict([Request(observation(0), 0, memory=Memory(chunk.memory.chunk, 8))])
        np.testing.assert_array_equal(again.actions, chunk.actions)  # nobody reads it yet


def test_a_policy_remembers_nothing_between_two_calls(base, root):
    policy = make_policy(base, root, SPECULATIVE)
    first, other, again = (policy.predict([Request(observation(seed), 0)])[0] for seed in (0, 1, 0))
    np.testing.assert_array_equal(first.actions, again.actions)
    assert first.work == again.work and not np.array_equal(first.actions, other.actions)


@pytest.mark.parametrize("decoding", [L1(), SPECULATIVE])
def test_no_requests_get_no_chunks(base, root, decoding):
    assert make_policy(base, root, decoding).predict([]) == []


def test_the_policys_queue_hands_out_its_first_steps_within_the_spaces_limits(base, root):
    policy = make_policy(base, root, L1(), num_open_loop_steps=3)
    queue = policy.queue(seed=5)
    (chunk,) = policy.predict([Request(observation(0), 0)])
    assert chunk.num_steps == 3
    for step in range(3):
        np.testing.assert_array_equal(queue.next(observation(0)), np.clip(chunk.actions[step], -1, 1))
    assert queue.needs_observation and queue.num_chunks == 1


# --- what goes wrong


class Broken:
    """A base model whose passes fail, or give NaN."""

    def __init__(self, base, error=None):
        self.spec, self.prepare = base.spec, base.prepare
        self._base, self._error = base, error

    def look(self, observations):
        looked = self._base.look(observations)
        chunk = looked.chunk

        def fail(*_):
            raise self._error

        if self._error:
            looked.at = looked.chunk = fail
        else:
            looked.chunk = lambda: chunk() * torch.nan
        return looked


def test_a_base_model_that_raises_makes_predict_raise(base, root):
    for decoding in (L1(), SPECULATIVE):
        policy = make_policy(Broken(base, RuntimeError("out of memory")), root, decoding)
        with pytest.raises(RuntimeError, match="out of memory"):
            policy.predict([Request(observation(), 0)])
    with pytest.raises(PolicyError, match="NaN or infinite actions"):
        make_policy(Broken(base), root, L1()).predict([Request(observation(), 0)])
    with pytest.raises(ValueError, match="the base model's chunk is NaN or infinite"):
        make_policy(Broken(base), root, DepthAR(), target="base").predict([Request(observation(), 0)])


def test_parts_that_do_not_belong_together_are_refused(base, root, tmp_path):
    with pytest.raises(CheckpointError, match=r"head .* was made for another base"):
        make_policy(build_base(seed=1), root, DepthAR())
    other = rfsq()
    with torch.no_grad():
        other.encoder[0].bias.add_(1)
    save_tokenizer(other, tmp_path / "retrained", {"unnorm_key": UNNORM_KEY})
    with pytest.raises(CheckpointError, match=r"head .* was made for another tokenizer"):
        make_policy(base, root, DepthAR(), checkpoints=checkpoints_of(root, tokenizer=tmp_path / "retrained"))
    with pytest.raises(CheckpointError, match=r"no draft checkpoint: .* python train.py phase=draft"):
        make_policy(base, root, SPECULATIVE, checkpoints=checkpoints_of(root, draft=tmp_path / "nothing"))
    with pytest.raises(PolicyError, match=r"draft .* was trained for 2 stages, but 3 are asked of it"):
        make_policy(base, root, Speculative(num_draft_stages=3))
    with pytest.raises(PolicyError, match=r"draft .* was trained for 2 stages, but 3 are asked of it"):
        make_policy(base, root, EarlyExit(gate=MeanLogProb(threshold=0), full=SPECULATIVE, num_draft_stages=3))
    for steps in (0, 9):
        with pytest.raises(PolicyError, match=rf"num_open_loop_steps {steps}, expected 1\.\.8"):
            make_policy(base, root, L1(), num_open_loop_steps=steps)
    horizon = FixedHorizon(full=L1(), num_steps=9)
    for decoding in (horizon, EarlyExit(gate=MeanLogProb(threshold=0), full=horizon, num_draft_stages=1)):
        with pytest.raises(SettingError, match=r"num_steps 9, expected 1\.\.8, the steps of a chunk"):
            make_policy(base, root, decoding)
    save_tokenizer(rfsq(chunk_length=16), tmp_path / "long", {"unnorm_key": UNNORM_KEY})
    with pytest.raises(PolicyError, match=r"the tokenizer's chunk is \(16, 7\), the base model's \(8, 7\)"):
        long = Checkpoints(tokenizer=tmp_path / "long")
        make_policy(base, root, DepthAR(), checkpoints=long)
    with pytest.raises(CheckpointError, match="num_stages is 4 in the checkpoint but 8 in the configuration"):
        make_policy(base, root, DepthAR(), tokenizer=rfsq(num_stages=8))


def test_parts_that_a_decoding_needs_and_nobody_names_are_asked_for(base, root):
    with pytest.raises(PolicyError, match="decoding DepthAR writes tokens, and there is no tokenizer; see phase=rfsq"):
        make_policy(base, root, DepthAR(), checkpoints=Checkpoints())
    with pytest.raises(PolicyError, match=r"decoding Exit needs a draft, and the policy has none; .*phase=draft"):
        make_policy(base, root, Exit(num_draft_stages=1), checkpoints=checkpoints_of(root, draft=None))


def test_only_what_a_decoding_needs_is_opened(base, root, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert make_policy(base, root, L1(), checkpoints=Checkpoints(tokenizer=nowhere, head=nowhere)).tokens is None
    make_policy(base, root, DepthAR(), checkpoints=checkpoints_of(root, draft=nowhere))
    make_policy(base, root, Exit(num_draft_stages=2), checkpoints=checkpoints_of(root, head=nowhere))


# --- the contract

OFFERED = {"views": ["image", "wrist_image"], "proprio_dim": 8, "action_dim": 7}


def test_the_contract_names_what_goes_in_and_out(base, root):
    contract = make_policy(base, root, SPECULATIVE, offered=OFFERED).contract
    assert (contract.num_images, contract.views) == (2, ("image", "wrist_image"))
    assert (contract.proprio_dim, contract.action_dim, contract.chunk_length) == (8, 7, 8)
    assert (contract.decoding, contract.action_head, contract.unnorm_key) == ("Speculative", "l1", UNNORM_KEY)
    assert make_policy(base, root, L1()).contract.decoding == "L1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": ["image"]}, r"view 'wrist_image' is needed, offered are \['image'\]"),
        ({"proprio_dim": 9}, "proprio of 8 dims is needed, offered are 9"),
        ({"action_dim": 14}, "actions have 7 dims, executed are 14"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_before_the_first_episode(base, root, change, message):
    with pytest.raises(PolicyError, match=f"policy and environment do not fit: {message}"):
        make_policy(base, root, L1(), offered=OFFERED | change)


def test_a_policy_without_proprio_accepts_any():
    blind = build_base(views=("image",), use_proprio=False)
    policy = assemble(
        base=blind,
        decoding=L1(),
        checkpoints=Checkpoints(),
        num_open_loop_steps=8,
        device="cpu",
        offered=OFFERED | {"proprio_dim": 3},
    )
    assert policy.contract.proprio_dim is None
