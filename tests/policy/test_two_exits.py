"""A draft that decides where one at an earlier point agrees: what it runs and counts, whom it names, where it lies."""

from collections import Counter

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.decoding import L1, TARGET, DepthAR, EarlyExit, Exit, MeanLogProb, Noise, Speculative, Temporal
from rsd.decoding.past import Past
from rsd.models.openvla import load_base, save_base
from rsd.models.openvla.loading import own_inputs
from rsd.policy import PolicyError, describe_folder, load_folder, write_folder
from rsd.stages import Absent, NotFiniteError, TwoExits
from rsd.types import Memory
from scripts.restamp import restamp
from tests.models.openvla_tiny import SHORT, build_base, observation
from tests.policy.policies import NUM_DRAFT_STAGES, checkpoints_of, make_policy, requests, save_head, save_parts
from tests.policy.test_lazy import NUM_LAYERS, Counted
from tests.records import edit

EARLY, LATE = 1, 2  # layers that the drafts read
CLOSE, FAR = 0.0, 10.0  # tolerances that nothing passes here, and everything


@pytest.fixture(scope="module")
def counted():
    return Counted()


@pytest.fixture(scope="module")
def root(tmp_path_factory, counted):
    root = save_parts(tmp_path_factory.mktemp("parts"), counted.base)
    save_head(root, counted.base, "draft-layer.1", point="layer.1", seed=5)
    save_head(root, counted.base, "draft-layer.2", point="layer.2", seed=6)
    return root


@pytest.fixture
def seen():
    return [observation(seed, SHORT) for seed in range(3)]


def agreeing(tolerance, full=None, gate=None, num_draft_stages=NUM_DRAFT_STAGES):
    return EarlyExit(gate=gate, full=full or L1(), num_draft_stages=num_draft_stages, tolerance=tolerance)


def two(counted, root, decoding, **changes):
    parts = checkpoints_of(root, **({"draft_point": LATE, "earlier_point": EARLY} | changes))
    return make_policy(counted.base, root, decoding, checkpoints=parts)


def distances(policy, observations):
    """Of each observation, by hand: both drafts alone, decoded, and their mean absolute difference."""
    exits, pair, looked = Exit(num_draft_stages=NUM_DRAFT_STAGES), policy.tokens.draft, policy.base.look(observations)
    levels, noise = torch.tensor(policy.tokens.tokenizer.code_shape.levels), Noise(range(len(observations)))
    with torch.inference_mode():
        codes = [exits.propose(one.bind(looked, []), levels, noise)[0] for one in (pair.earlier, pair.later)]
        chunks = [pair.tokenizer.decode(code.indices[..., :NUM_DRAFT_STAGES]) for code in codes]
    return (chunks[0] - chunks[1]).abs().flatten(1).mean(dim=1)


@pytest.mark.parametrize("full", [L1(), Speculative(num_draft_stages=NUM_DRAFT_STAGES), DepthAR()])
@pytest.mark.parametrize("num_exits", [0, 1, 2, 3])
def test_rows_whose_two_chunks_are_close_leave_and_hooks_count_what_was_run(counted, root, seen, full, num_exits):
    """Each layer once, although two points are read; each row is what it is alone, and is charged for both drafts."""
    apart = distances(two(counted, root, agreeing(FAR)), seen)
    tolerance = [CLOSE, *apart.sort().values.tolist()][num_exits] * (1 + 1e-4)
    policy = two(counted, root, agreeing(tolerance, full))
    counted.forget()
    chunks = policy.predict(requests(seen))
    counted.check(chunks)
    left = [chunk.work["early_exits"] for chunk in chunks]
    assert left == (apart <= tolerance).long().tolist() and sum(left) == num_exits
    assert [chunk.work["base_layers"] for chunk in chunks] == [LATE if one else NUM_LAYERS for one in left]
    assert counted.layers == Counter({1: 3, 2: 3, 3: 3 - num_exits})
    policies = [two(counted, root, one) for one in (full, Exit(num_draft_stages=NUM_DRAFT_STAGES))]
    for chunk, request, exits in zip(chunks, requests(seen), left, strict=True):
        (alone,) = policies[exits].predict([request])
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-5)
        passes = chunk.work["draft_passes"] - alone.work["draft_passes"]
        assert passes == (1 if exits else 2) * NUM_DRAFT_STAGES
        assert set(chunk.latency_ms) >= {"draft", "earlier draft", "base_model"}


def test_wide_open_it_is_the_exit_and_shut_the_full_decoding_to_the_bit(counted, root, seen):
    wide, shut = (two(counted, root, agreeing(one)) for one in (FAR, CLOSE))
    for request in requests(seen):
        for policy, decoding in ((wide, Exit(num_draft_stages=NUM_DRAFT_STAGES)), (shut, L1())):
            (chunk,), (expected,) = policy.predict([request]), two(counted, root, decoding).predict([request])
            np.testing.assert_array_equal(chunk.actions, expected.actions)


def test_both_gates_have_to_let_a_row_pass(counted, root, seen):
    shut = two(counted, root, agreeing(FAR, gate=MeanLogProb(threshold=float("inf"))))
    assert [chunk.work["early_exits"] for chunk in shut.predict(requests(seen))] == [0, 0, 0]


@pytest.mark.parametrize("inside", ["full", "of"])
def test_layers_are_run_once_where_the_draft_is_asked_first_and_in_a_part_of_a_pass(counted, root, seen, inside):
    """The later point is asked for first, or of some rows alone; both times the earlier one is read on the way."""
    policy = two(counted, root, agreeing(FAR))
    levels = torch.tensor(policy.tokens.tokenizer.code_shape.levels)
    counted.forget()
    looked = policy.base.look(seen)
    pair = policy.tokens.draft.bind(looked, requests(seen))
    with torch.inference_mode():
        if inside == "full":
            never = MeanLogProb(threshold=float("inf"))
            first = EarlyExit(gate=never, full=agreeing(FAR), num_draft_stages=1)
            first.run(Absent(TARGET), pair, levels, Noise(range(3)))
            assert looked.work.base_layers.tolist() == [LATE] * 3
        else:
            skipping = Temporal(
                gate=MeanLogProb(threshold=float("-inf")), full=agreeing(FAR), num_draft_stages=1, max_unverified=2
            )
            past = Past.remembered([Memory(None), None, None])
            skipping.run(Absent(TARGET), pair, levels, Noise(range(3)), past)
            assert looked.work.base_layers.tolist() == [LATE] * 3
    assert counted.layers == Counter({1: 3, 2: 3})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda pair: pair.earlier.head.output, "what the earlier draft says of stages 0"),
        (lambda pair: pair.later.head.output, "what the draft says of stages 0"),
        (lambda pair: pair.tokenizer.decoder[2].bias, "what the tokenizer makes of the draft's or the earlier draft's"),
    ],
)
@pytest.mark.parametrize("tolerance", [CLOSE, FAR])
def test_a_readout_that_says_no_number_is_named(counted, root, seen, part, message, tolerance):
    """Also where the row would go on to the base model's own chunk: NaN is close to nothing."""
    policy = two(counted, root, agreeing(tolerance))
    with torch.no_grad():
        part(policy.tokens.draft).view(-1)[0] = torch.nan
    with pytest.raises(NotFiniteError, match=message):
        policy.predict(requests(seen[:1]))


def test_the_earlier_draft_is_found_by_its_own_name_or_where_it_is_said_to_be(counted, root, seen):
    policies = [
        two(counted, root, agreeing(FAR)),
        two(counted, root, agreeing(FAR), earlier=root / "draft-layer.1", earlier_point=None),
    ]
    for policy in policies:
        pair = policy.tokens.draft
        assert isinstance(pair, TwoExits) and (pair.earlier.point, pair.later.point) == ("layer.1", "layer.2")
        assert policy.tokens.draft.earlier.head.output.equal(policies[0].tokens.draft.earlier.head.output)
    plain = two(counted, root, Exit(num_draft_stages=1), earlier=root / "nowhere")  # opened where it is needed alone
    assert plain.tokens.draft.point == "layer.2"


def test_an_earlier_draft_that_cannot_be_is_refused(counted, root, tmp_path):
    with pytest.raises(PolicyError, match=r"has a tolerance, which compares two drafts, and no earlier one is named"):
        two(counted, root, agreeing(FAR), earlier_point=None)
    for point in ("layer.2", "layer.3"):
        later = save_head(root, counted.base, f"draft-{point}", point=point, seed=6)
        with pytest.raises(PolicyError, match=rf"reads {point}, expected a point before layer\.2"):
            two(counted, root, agreeing(FAR), earlier=later, earlier_point=None)
    with pytest.raises(CheckpointError, match=r"reads layer\.1, and head is asked for; train both .*\[head,"):
        two(counted, root, agreeing(FAR), earlier_point="head")
    with pytest.raises(CheckpointError, match="no draft checkpoint: "):
        two(counted, root, agreeing(FAR), earlier=tmp_path / "nothing")
    save_head(root, counted.base, "short", point="layer.1", seed=7, num_stages=1)
    assert two(counted, root, agreeing(FAR, num_draft_stages=1), earlier=root / "short")
    with pytest.raises(PolicyError, match=r"short was trained for 1 stages, but 2 are asked of it"):
        two(counted, root, agreeing(FAR), earlier=root / "short")
    with pytest.raises(PolicyError, match="compares two drafts that read the base model, and this draft does not read"):
        two(counted, root, agreeing(FAR), control=lambda tokenizer: None)


@pytest.mark.parametrize(
    ("decoding", "points", "who"),
    [
        (Exit(num_draft_stages=1), {"draft_point": 4}, "draft"),
        (agreeing(FAR), {"earlier_point": 4}, "earlier draft"),
    ],
)
def test_a_point_that_no_draft_was_trained_at_is_named_with_those_that_were(counted, root, decoding, points, who):
    several = root / "several"
    for layer in (EARLY, LATE):
        save_head(root, counted.base, f"several-layer.{layer}", point=f"layer.{layer}", seed=layer)
    said = rf"no {who} at layer\.4: .*several does not exist, and beside it are those at layer\.1, layer\.2; choose one"
    with pytest.raises(CheckpointError, match=said + r".* draft\.layer=\[layer\.1,layer\.2,layer\.4\]"):
        two(counted, root, decoding, draft=several, **points)


def test_a_folder_holds_it_as_a_part(tmp_path):
    save_base(tmp_path / "base", build_base(), {"steps": 0})
    inputs = own_inputs(tmp_path / "base")
    base = load_base(checkpoint=tmp_path / "base", **inputs)
    save_parts(tmp_path, base)
    save_head(tmp_path, base, "draft", point="layer.2", seed=6)
    write_folder(
        tmp_path,
        parts={name: tmp_path / name for name in ("base", "tokenizer", "head", "draft")},
        base=inputs,
        space=base.space.digest,
        num_open_loop_steps=8,
        decoding="early_exit",
        decodings={"early_exit": (agreeing(FAR), None)},
    )
    with pytest.raises(PolicyError, match=r"no earlier one is named; .*add the part 'earlier'"):
        load_folder(tmp_path)
    assert describe_folder(tmp_path, {})["checkpoints"]["earlier"] is None
    save_head(tmp_path, base, "earlier/only", point="layer.1", seed=5)
    restamp(tmp_path)
    policy = load_folder(tmp_path)
    assert policy.decoding == agreeing(FAR) and policy.tokens.draft.earlier.point == "layer.1"
    (chunk,) = policy.predict(requests([observation(0, SHORT)]))
    assert (chunk.work["draft_passes"], chunk.work["base_layers"]) == (2 * NUM_DRAFT_STAGES, LATE)
    assert describe_folder(tmp_path, {})["checkpoints"]["earlier"] == tmp_path / "earlier" / "only"
    assert describe_folder(tmp_path, {"decoding": L1()})["checkpoints"]["earlier"] is None
    edit(tmp_path / "earlier" / "only" / "checkpoint.json", lambda record: record["provenance"].update(note="other"))
    with pytest.raises(CheckpointError, match=r"earlier of .* is not the one that policy\.json names"):
        load_folder(tmp_path)
