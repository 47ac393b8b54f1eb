"""Law 11: what a decoding does not ask for is not run, and the account equals what hooks have counted."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rsd.decoding import L1, DepthAR, EarlyExit, Exit, MeanLogProb, Noise, Parallel, Speculative
from rsd.types import Chunk, Request
from tests.models.openvla_tiny import LONG, SHORT, build_base, observation
from tests.policy.policies import NUM_DRAFT_STAGES, make_policy, requests, save_parts

NUM_LAYERS, DRAFT_LAYER, NUM_VIEWS = 3, 1, 2
NEVER, ALWAYS = float("inf"), float("-inf")  # thresholds of a gate that decides nothing, and everything


class Counted:
    """The tiny base model with hooks on everything that costs something.

    Attributes:
        pictures: Prepared so far.
        towers: Name of a vision tower to the pictures that went through it.
        layers: Number of a language model's layer, from 1, to the observations that went through it.
    """

    def __init__(self) -> None:
        self.base = build_base()
        self.forget()
        prepare = self.base.prepare

        def counted(observations):
            self.pictures += sum(len(one.images) for one in observations)
            return prepare(observations)

        self.base.prepare = counted
        for name, tower in self.base.model.vision_backbone.named_children():
            tower.register_forward_hook(lambda _, inputs, __, name=name: self.towers.update({name: len(inputs[0])}))
        for number, layer in enumerate(self.base.model.language_model.model.layers, start=1):
            layer.register_forward_hook(lambda _, inputs, __, n=number: self.layers.update({n: len(inputs[0])}))

    def forget(self) -> None:
        self.pictures, self.towers, self.layers = 0, Counter(), Counter()

    def check(self, chunks: Sequence[Chunk]) -> None:
        """Hold the hooks to the account that the chunks came with, layer by layer."""
        work = [chunk.work for chunk in chunks]
        assert self.pictures == sum(one["pictures_prepared"] for one in work)
        calls = sum(one["vision_calls"] for one in work)
        assert dict(self.towers) == (
            {name: NUM_VIEWS * calls for name in ("featurizer", "fused_featurizer")} if calls else {}
        )
        patches = NUM_VIEWS * self.base.model.architecture.num_patches
        assert [one["visual_tokens"] for one in work] == [patches * one["vision_calls"] for one in work]
        reached = {number: sum(one["base_layers"] >= number for one in work) for number in range(1, NUM_LAYERS + 1)}
        assert self.layers == Counter(reached)


@pytest.fixture(scope="module")
def counted():
    return Counted()


@pytest.fixture(scope="module")
def root(tmp_path_factory, counted):
    return save_parts(tmp_path_factory.mktemp("parts"), counted.base)


@pytest.fixture
def seen():
    return [observation(seed, LONG if seed == 1 else SHORT) for seed in range(3)]


def early(threshold, full):
    return EarlyExit(gate=MeanLogProb(threshold=threshold), full=full, num_draft_stages=NUM_DRAFT_STAGES)


SPECULATIVE = Speculative(num_draft_stages=NUM_DRAFT_STAGES)
EXIT = Exit(num_draft_stages=NUM_DRAFT_STAGES)
CASES = {
    "l1": (L1(), "head", NUM_LAYERS),
    "parallel": (Parallel(), "head", NUM_LAYERS),
    "parallel, base": (Parallel(), "base", NUM_LAYERS),
    "depth_ar": (DepthAR(), "head", NUM_LAYERS),
    "depth_ar, base": (DepthAR(), "base", NUM_LAYERS),
    "speculative": (SPECULATIVE, "head", NUM_LAYERS),
    "speculative, base": (SPECULATIVE, "base", NUM_LAYERS),
    "speculative, sampled": (Speculative(num_draft_stages=NUM_DRAFT_STAGES, temperature=1.0), "head", NUM_LAYERS),
    "exit": (EXIT, "head", DRAFT_LAYER),
    "open to l1": (early(ALWAYS, L1()), "head", DRAFT_LAYER),
    "open to tokens": (early(ALWAYS, SPECULATIVE), "base", DRAFT_LAYER),
    "shut to l1": (early(NEVER, L1()), "head", NUM_LAYERS),
    "shut to tokens": (early(NEVER, SPECULATIVE), "head", NUM_LAYERS),
    "shut to tokens, base": (early(NEVER, SPECULATIVE), "base", NUM_LAYERS),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_account_is_what_hooks_count(counted, root, seen, name, batch):
    """Each row sees its pictures once and goes through the layers that its decoding needs, once."""
    decoding, target, num_layers = CASES[name]
    policy = make_policy(counted.base, root, decoding, target=target)
    counted.forget()
    chunks = policy.predict(requests(seen[:batch], explain=True))
    counted.check(chunks)
    for chunk in chunks:
        names = ("base_layers", "vision_calls", "pictures_prepared")
        assert [chunk.work[one] for one in names] == [num_layers, 1, NUM_VIEWS]
        assert chunk.work["early_exits"] == (num_layers < NUM_LAYERS)


@pytest.mark.parametrize("name", ["exit", "open to l1", "open to tokens"])
def test_nothing_is_run_behind_the_draft(counted, root, seen, name):
    decoding, target, _ = CASES[name]
    counted.forget()
    make_policy(counted.base, root, decoding, target=target).predict(requests(seen))
    assert set(counted.layers) == {DRAFT_LAYER}


def threshold_between(base, root, observations, wanted) -> float:
    """A threshold that as many of the observations pass as wanted."""
    policy = make_policy(base, root, EXIT)
    looked = base.look(observations)
    levels = torch.tensor(policy.tokens.tokenizer.code_shape.levels)
    with torch.inference_mode():
        draft = policy.tokens.draft.bind(looked, [None] * len(observations))
        _, log_probs = EXIT.propose(draft, levels, Noise(range(len(observations))))
    means = sorted(log_probs.flatten(1).mean(dim=1).tolist(), reverse=True)
    assert means[wanted - 1] - means[wanted] > 1e-4
    return (means[wanted - 1] + means[wanted]) / 2


@pytest.mark.parametrize(("full", "target"), [(L1(), "head"), (SPECULATIVE, "head"), (SPECULATIVE, "base")])
@pytest.mark.parametrize("num_exits", [1, 2])
def test_in_a_batch_some_rows_leave_and_the_others_go_on(counted, root, seen, full, target, num_exits):
    """Each row is what it is alone: with the draft's layer and no more, or with all of them."""
    decoding = early(threshold_between(counted.base, root, seen, num_exits), full)
    mixed = make_policy(counted.base, root, decoding, target=target)
    counted.forget()
    chunks = mixed.predict(requests(seen))
    counted.check(chunks)
    left = [chunk.work["early_exits"] for chunk in chunks]
    assert sorted(left) == [0] * (3 - num_exits) + [1] * num_exits
    assert [chunk.work["base_layers"] for chunk in chunks] == [DRAFT_LAYER if one else NUM_LAYERS for one in left]
    assert counted.layers == Counter({1: 3, 2: 3 - num_exits, 3: 3 - num_exits})
    policies = [make_policy(counted.base, root, one, target=target) for one in (full, EXIT)]
    for chunk, request, exits in zip(chunks, requests(seen), left, strict=True):
        (alone,) = policies[exits].predict([request])
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-5)
        assert chunk.depth == (alone.depth or 0)  # l1 alone has no tokens, and no depth


@pytest.mark.parametrize(("full", "target"), [(L1(), "head"), (SPECULATIVE, "head"), (SPECULATIVE, "base")])
def test_shut_it_is_its_full_decoding_and_open_the_exit_to_the_bit(counted, root, seen, full, target):
    """At batch 1: the layers are cut where the draft reads, and no number changes by that."""
    shut, whole, wide, leaving = (
        make_policy(counted.base, root, one, target=target)
        for one in (early(NEVER, full), full, early(ALWAYS, full), EXIT)
    )
    for request in requests(seen):
        for one, other in ((shut, whole), (wide, leaving)):
            (chunk,), (expected,) = one.predict([request]), other.predict([request])
            np.testing.assert_array_equal(chunk.actions, expected.actions)
            more = NUM_DRAFT_STAGES if one is shut else 0
            work = chunk.work | {"draft_passes": chunk.work["draft_passes"] - more}
            if full != L1() or one is wide:
                assert (work, chunk.depth) == (expected.work, expected.depth)
    assert not np.array_equal(shut.predict(requests(seen))[0].actions, wide.predict(requests(seen))[0].actions)


def test_nothing_is_prepared_before_somebody_asks(counted, seen):
    counted.forget()
    looked = counted.base.look(seen)
    some = looked.of(torch.tensor([2]))
    assert (counted.pictures, counted.towers, counted.layers) == (0, Counter(), Counter())
    some.at("layer.1")
    assert (counted.pictures, dict(counted.layers)) == (NUM_VIEWS, {1: 1})
    looked.chunk()
    assert counted.pictures == 4 * NUM_VIEWS and looked.work.pictures_prepared.tolist() == [2, 2, 4]


def test_only_the_pictures_of_the_models_views_are_counted(root):
    base = build_base(views=("image",))
    (chunk,) = make_policy(base, root, L1()).predict([Request(observation(0), 0)])
    assert chunk.work["pictures_prepared"] == 1
    assert chunk.work["visual_tokens"] == base.model.architecture.num_patches
