"""Drafts in numbers in a policy: what is executed, run and counted; who else may be asked; where they lie."""

from collections import Counter

import numpy as np
import pytest
import torch

from rsd.checkpoint import CheckpointError
from rsd.decoding import L1, DepthAR, EarlyExit, Exit, FixedHorizon, MeanLogProb, Speculative, Temporal
from rsd.models.openvla import load_base, save_base
from rsd.models.openvla.loading import own_inputs
from rsd.policy import Checkpoints, PolicyError, describe_folder, load_folder, write_folder
from rsd.policy.assemble import in_numbers_alone
from rsd.policy.examination import parts_of
from rsd.stages import NotFiniteError, NumberHead, NumbersAt
from rsd.stages.base_chunk import executed
from rsd.stages.files import save_numbers
from scripts.restamp import restamp
from tests.models.openvla_tiny import SHORT, UNNORM_KEY, build_base, observation
from tests.policy.policies import make_policy, requests, save_head, save_parts
from tests.policy.test_lazy import NUM_LAYERS, Counted
from tests.records import edit

EXIT = Exit(num_draft_stages=None)
OPEN = MeanLogProb(threshold=float("-inf"))
FAR = 10.0  # a tolerance that everything passes
NO_TOKENS = {"tokenizer": None, "head": None}


def save_readout(root, base, name, *, point, seed, states_per_step=7):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = NumberHead(
            chunk_length=8, action_dim=7, hidden_dim=32, states_per_step=states_per_step, width=16, num_layers=1,
            num_heads=2,
        )  # fmt: skip
    save_numbers(
        head, root / name, point=point, provenance={"base": dict(base.spec.fingerprint), "unnorm_key": UNNORM_KEY}
    )
    return root / name


@pytest.fixture(scope="module")
def counted():
    return Counted()


@pytest.fixture(scope="module")
def root(tmp_path_factory, counted):
    root = save_parts(tmp_path_factory.mktemp("parts"), counted.base)
    for point, states in (("layer.1", 7), ("layer.2", 7), ("layer.3", 7), ("head", 1)):
        save_readout(root, counted.base, f"numbers-{point}", point=point, seed=len(point), states_per_step=states)
    return root


@pytest.fixture
def seen():
    return [observation(seed, SHORT) for seed in range(3)]


def said(counted, root, decoding, point=2, **changes):
    parts = Checkpoints(**({"draft": root / "numbers", "draft_point": point, "readout": "numbers"} | changes))
    return make_policy(counted.base, root, decoding, checkpoints=parts)


def agreeing(tolerance, full=None, gate=None):
    return EarlyExit(gate=gate, full=full or L1(), num_draft_stages=None, tolerance=tolerance)


def by_hand(counted, policy, observations, number_head=None):
    """Model space, [B, T, A]."""
    place = policy.tokens.draft if number_head is None else number_head
    with torch.inference_mode():
        return place.head(counted.base.look(observations).at(place.point))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("point", "num_layers"), [(1, 1), (2, 2), (3, 3), ("head", NUM_LAYERS)])
def test_the_exit_executes_what_is_said_at_any_point_and_runs_no_layer_behind_it(
    counted, root, seen, point, num_layers, batch
):
    """And opens no tokenizer: there is none."""
    policy = said(counted, root, EXIT, point)
    assert policy.tokens.tokenizer is None and parts_of(policy) == "base model, draft"
    expected = counted.base.space.to_robot(by_hand(counted, policy, seen[:batch]).numpy())
    counted.forget()
    chunks = policy.predict(requests(seen[:batch], explain=True))
    counted.check(chunks)
    assert counted.layers == Counter({number: batch for number in range(1, num_layers + 1)})
    for row, chunk in enumerate(chunks):
        np.testing.assert_allclose(chunk.actions, expected[row], atol=1e-5)
        names = ("base_layers", "draft_passes", "early_exits", "target_passes", "proposed_stages")
        assert [chunk.work[one] for one in names] == [num_layers, 1, 1, 0, 0]
        assert (chunk.depth, chunk.bound) == (None, None)
        assert set(chunk.latency_ms) >= {"draft", "base_model"} and "tokenizer" not in chunk.latency_ms


@pytest.mark.parametrize("full", [L1(), DepthAR(), EXIT])
@pytest.mark.parametrize("num_exits", [0, 1, 3])
def test_two_of_them_that_agree_end_the_pass_and_hooks_count_what_was_run(counted, root, seen, full, num_exits):
    """Each row is what it is alone, and is charged for both; who goes on is decoded as `full` does it."""
    tokens = {} if full == EXIT or full == L1() else {"tokenizer": root / "tokenizer"}
    both = {"earlier_point": 1, **tokens}
    pair = said(counted, root, agreeing(FAR), **both).tokens.draft
    two = [executed(by_hand(counted, None, seen, place)) for place in (pair.earlier, pair.later)]
    apart = (two[0] - two[1]).abs().mean(dim=(1, 2))  # [B]
    tolerance = [0.0, *apart.sort().values.tolist()][num_exits] * (1 + 1e-4)
    policy = said(counted, root, agreeing(tolerance, full), **both)
    counted.forget()
    chunks = policy.predict(requests(seen))
    counted.check(chunks)
    left = (apart <= tolerance).tolist()
    assert sum(left) == num_exits
    layers = [2 if one or full == EXIT else NUM_LAYERS for one in left]
    assert [chunk.work["base_layers"] for chunk in chunks] == layers
    assert counted.layers == Counter({1: 3, 2: 3} | ({3: layers.count(3)} if NUM_LAYERS in layers else {}))
    whole = (
        said(counted, root, full, **tokens) if full == EXIT else make_policy(counted.base, root, full, target="base")
    )
    alone = [said(counted, root, EXIT), whole]
    for chunk, request, exits in zip(chunks, requests(seen), left, strict=True):
        (expected,) = alone[not exits].predict([request])
        np.testing.assert_allclose(chunk.actions, expected.actions, atol=1e-5)
        assert chunk.work["draft_passes"] - expected.work["draft_passes"] == (1 if exits else 2)
        assert chunk.work["early_exits"] == (exits or full == EXIT)
    assert set(chunks[0].latency_ms) >= {"draft", "earlier draft"}


def test_it_is_bit_for_bit_the_exit_or_the_full_decoding_where_it_is_open_or_shut(counted, root, seen):
    for tolerance, full in ((FAR, EXIT), (0.0, L1())):
        policy, whole = said(counted, root, agreeing(tolerance), earlier_point=1), said(counted, root, full)
        for request in requests(seen):
            np.testing.assert_array_equal(policy.predict([request])[0].actions, whole.predict([request])[0].actions)


def test_one_that_says_tokens_may_be_held_against_one_that_says_numbers(counted, root, seen):
    save_head(root, counted.base, "draft-layer.1", point="layer.1", seed=5)
    mixed = {"earlier": root / "draft-layer.1", "tokenizer": root / "tokenizer"}
    decoding = EarlyExit(gate=None, full=L1(), num_draft_stages=2, tolerance=FAR)
    policy = said(counted, root, decoding, **mixed)
    counted.forget()
    chunks = policy.predict(requests(seen))
    counted.check(chunks)
    assert [chunk.work["draft_passes"] for chunk in chunks] == [2 + 1] * 3
    expected = said(counted, root, EXIT).predict(requests(seen))
    np.testing.assert_allclose(chunks[0].actions, expected[0].actions, atol=1e-5)
    assert chunks[0].depth == 0 and not chunks[0].bound.any()  # no stage of it is in tokens, and none is left out


def test_a_horizon_may_stand_around_it(counted, root, seen):
    (chunk,) = said(counted, root, FixedHorizon(full=EXIT, num_steps=3)).predict(requests(seen[:1]))
    (whole,) = said(counted, root, EXIT).predict(requests(seen[:1]))
    assert chunk.num_steps == 3
    np.testing.assert_array_equal(chunk.actions[:3], whole.actions[:3])


@pytest.mark.parametrize(
    ("decoding", "who"),
    [
        (EarlyExit(gate=OPEN, full=L1(), num_draft_stages=None), "the gate MeanLogProb"),
        (agreeing(FAR, gate=OPEN), "the gate MeanLogProb"),
        (agreeing(FAR, full=Speculative(num_draft_stages=1)), "decoding Speculative"),
        (Speculative(num_draft_stages=1), "decoding Speculative"),
        (Temporal(gate=OPEN, full=L1(), num_draft_stages=None, max_unverified=2), "decoding Temporal"),
        (FixedHorizon(full=Speculative(num_draft_stages=1), num_steps=3), "decoding Speculative"),
    ],
)
def test_whoever_asks_it_for_tokens_is_named_before_anything_is_run(counted, root, decoding, who):
    message = rf"^{who} asks the draft for tokens, and draft .*numbers-layer\.2 says numbers; use a draft in tokens"
    with pytest.raises(PolicyError, match=message):
        said(counted, root, decoding, tokenizer=root / "tokenizer", earlier_point=1)


def test_a_point_that_no_draft_was_trained_at_is_named_with_those_that_were(counted, root):
    said_where = r"does not exist, and beside it are those at head, layer\.1, layer\.2, layer\.3; choose one"
    command = r"phase=draft draft=numbers draft\.layer=\[head,layer\.1,layer\.2,layer\.3,layer\.4\]"
    with pytest.raises(CheckpointError, match=rf"no draft at layer\.4: .*numbers {said_where} .* {command}"):
        said(counted, root, EXIT, 4)
    elsewhere = (
        r"numbers-layer\.2 reads layer\.2, and layer\.1 is asked for; give its own draft\.layer, or train one with "
        r"python train\.py phase=draft draft=numbers draft\.layer=1$"
    )
    with pytest.raises(CheckpointError, match=elsewhere):
        said(counted, root, EXIT, 1, draft=root / "numbers-layer.2")
    with pytest.raises(CheckpointError, match=r"no draft checkpoint: .*; .*phase=draft draft=numbers"):
        said(counted, root, EXIT, None, draft=root / "nothing")
    with pytest.raises(PolicyError, match=r"earlier draft reads layer\.3, expected a point before layer\.2"):
        said(counted, root, agreeing(FAR), earlier_point=3)
    with pytest.raises(PolicyError, match=r"compares two drafts, and no earlier one is named; set draft\.earlier"):
        said(counted, root, agreeing(FAR))


def test_a_draft_that_says_something_else_than_it_is_asked_for_is_refused(counted, root):
    tokens = {"tokenizer": root / "tokenizer", "draft_point": None}
    with pytest.raises(CheckpointError, match="says tokens, and one that says numbers is asked for; use draft=early"):
        said(counted, root, EXIT, draft=root / "draft", **tokens)
    with pytest.raises(CheckpointError, match="says numbers, and one that says tokens is asked for; use draft=numbers"):
        said(counted, root, EXIT, draft=root / "numbers-layer.2", readout="tokens", **tokens)


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace('"config"', '"c"')])
def test_a_damaged_one_is_called_damaged_and_not_one_of_another_kind(counted, root, damage):
    folder = save_readout(root, counted.base, "damaged", point="layer.2", seed=0)
    record = folder / "checkpoint.json"
    record.write_text(damage(record.read_text()))
    with pytest.raises(CheckpointError, match=r"damaged/checkpoint\.json") as raised:
        said(counted, root, EXIT, None, draft=folder)
    assert "is asked for" not in str(raised.value)


@pytest.mark.parametrize(("earlier", "who"), [(False, "draft"), (True, "earlier draft")])
def test_a_readout_that_says_no_number_is_named(counted, root, seen, earlier, who):
    policy = said(counted, root, agreeing(0.0), earlier_point=1)
    pair = policy.tokens.draft
    with torch.no_grad():
        (pair.earlier if earlier else pair.later).head.output.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match=f"the chunk that the {who} says"):
        policy.predict(requests(seen[:1]))


@pytest.fixture
def folder(tmp_path):
    save_base(tmp_path / "base", build_base(), {"steps": 0})
    base = load_base(checkpoint=tmp_path / "base", **own_inputs(tmp_path / "base"))
    save_parts(tmp_path, base)
    save_readout(tmp_path, base, "numbers/only", point="layer.2", seed=2)
    save_readout(tmp_path, base, "earlier/only", point="layer.1", seed=1)
    return tmp_path


def test_a_folder_holds_one_beside_the_draft_in_tokens(folder, seen):
    space = build_base().space.digest
    write_folder(
        folder,
        parts={name: folder / name for name in ("base", "tokenizer", "head", "draft")},
        base=own_inputs(folder / "base"),
        space=space,
        num_open_loop_steps=8,
        decoding="exit",
        decodings={"exit": (Exit(num_draft_stages=2), None)},
    )
    with pytest.raises(PolicyError, match=r"needs a draft, the part 'numbers', .* phase=draft draft=numbers, copy it"):
        load_folder(folder, draft="numbers")
    with pytest.raises(PolicyError, match=r"^decoding Speculative asks the draft for tokens, and draft=numbers says"):
        load_folder(folder, draft="numbers", decoding=Speculative(num_draft_stages=2), target="base")
    restamp(folder)
    tokens, numbers = load_folder(folder), load_folder(folder, draft="numbers")
    assert tokens.tokens.draft.point == "layer.1" and isinstance(numbers.tokens.draft, NumbersAt)
    (chunk,) = numbers.predict(requests(seen[:1]))
    assert (chunk.work["base_layers"], chunk.work["draft_passes"]) == (2, 1)
    agreed = load_folder(folder, decoding=agreeing(FAR), draft="numbers").predict(requests(seen[:1]))[0]
    np.testing.assert_array_equal(agreed.actions, chunk.actions)
    parts = describe_folder(folder, {"draft": "numbers"})["checkpoints"]
    assert {name for name, path in parts.items() if path is not None} == {"base", "numbers"}
    parts = describe_folder(folder, {"draft": "numbers", "decoding": agreeing(FAR)})["checkpoints"]
    assert {name for name, path in parts.items() if path is not None} == {"base", "numbers", "earlier"}
    edit(folder / "numbers/only/checkpoint.json", lambda record: record["provenance"].update(note="other"))
    with pytest.raises(CheckpointError, match=r"numbers of .* is not the one that policy\.json names"):
        load_folder(folder, draft="numbers")


def test_a_folder_without_tokens_ends_at_it(folder, seen, capsys):
    for name in ("tokenizer", "head", "draft"):
        (folder / name / "checkpoint.json").unlink()
    base, numbers = folder / "base", folder / "numbers" / "only"
    base.rename(folder / "part")
    base.mkdir()
    (folder / "part").rename(base / "only")
    restamp(folder)
    assert "decodings l1, exit;" in capsys.readouterr().out
    (chunk,) = load_folder(folder, decoding="exit").predict(requests(seen[:1]))
    assert chunk.work["base_layers"] == 2
    edit(numbers / "checkpoint.json", lambda record: record["provenance"]["base"].update(weights_sha256="0"))
    with pytest.raises(CheckpointError, match=r"only was made for something else: base\.weights_sha256 is '0'"):
        restamp(folder)


def test_the_tokenizer_is_left_alone_where_nobody_asks_for_tokens(root):
    drafts = Checkpoints(draft=root / "numbers", draft_point=2, earlier_point=1)
    assert in_numbers_alone(EXIT, drafts) and in_numbers_alone(agreeing(FAR), drafts)
    for decoding in (DepthAR(), agreeing(FAR, full=DepthAR())):
        assert not in_numbers_alone(decoding, drafts)
    assert not in_numbers_alone(EXIT, Checkpoints(draft=root / "draft"))
    assert in_numbers_alone(EXIT, Checkpoints(draft=root / "nothing", readout="numbers"))
