"""Law 4: speculative decoding returns what the target alone returns, with at most Q passes, for any draft.

And every decoding keeps the contract of tests/decoding/contract.py.
"""

import json

import pytest
import torch

from rsd.decoding import (
    DRAFT,
    EARLIER,
    L1,
    TARGET,
    Anytime,
    DepthAR,
    EarlyExit,
    Exit,
    FixedHorizon,
    Hold,
    MeanLogProb,
    Noise,
    Parallel,
    Speculative,
    Temporal,
    from_json,
    stages_of_draft,
    to_json,
)
from rsd.decoding.accept import exact
from rsd.decoding.past import Past
from rsd.decoding.sampling import draw
from rsd.errors import SettingError
from rsd.types import Memory
from rsd.work import Work
from tests.decoding.contract import DecodingContract
from tests.decoding.tables import LEVELS, D, Function, L, Pair, PerRow, Q, T, TableModel, four_models, run


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_draft_stages", [1, 2, 3, 4])
def test_greedy_speculative_equals_depth_ar_index_for_index(rate, num_draft_stages):
    target = TableModel(seed=1)
    draft = TableModel(seed=2, agree_with=target, rate=rate)
    # one sample's logits depend on its own prefix only, so a batch of identical samples would be useless: vary seeds
    for seed in range(5):
        target.seed = seed
        reference = run(DepthAR(), target, seeds=range(3))
        code = run(Speculative(num_draft_stages=num_draft_stages), target, draft, seeds=range(3))
        assert torch.equal(code.indices, reference.indices) and torch.equal(code.depth, reference.depth)
        assert (code.work.target_passes <= Q).all() and (code.work.target_passes >= 1).all()
        assert (code.work.accepted_stages <= code.work.proposed_stages).all()
        assert code.work.accept_counts.sum() == 3


def test_perfect_draft_needs_one_pass_and_adversarial_draft_at_most_q():
    target = TableModel(seed=3)
    for num_draft_stages in (Q - 1, Q):
        code = run(Speculative(num_draft_stages=num_draft_stages), target, TableModel(seed=3), seeds=range(2))
        assert code.work.target_passes.tolist() == [1, 1]
        assert code.work.accept_counts[:, num_draft_stages].tolist() == [1, 1]
        assert torch.equal(code.proposal, code.indices[..., :num_draft_stages])

    adversary = Function(lambda *asked: -target(*asked))  # proposes the target's least likely level
    code = run(Speculative(num_draft_stages=Q), target, adversary, seeds=range(2))
    assert torch.equal(code.indices, run(DepthAR(), target, seeds=range(2)).indices)
    assert code.work.target_passes.tolist() == [Q, Q]
    assert code.work.accepted_stages.tolist() == [0, 0]
    assert code.work.accept_counts.tolist() == [[1, 0, 0, 0, 0]] * 2


def test_hand_computed_account():
    """Target always says 1; the draft is right on stages 0 and 1, has one wrong token at stage 2, is right after."""

    def target(known, start, stop):
        logits = torch.zeros(known.shape[0], T, D, stop - start, L)
        logits[..., 1] = 1
        return logits

    def draft(known, start, stop):
        logits = target(known, start, stop)
        if start <= 2 < stop and known.shape[-1] == 2:
            logits[:, 0, 0, 2 - start, 3] = 2
        return logits

    code = run(Speculative(num_draft_stages=4), Function(target), Function(draft))
    assert (code.indices == 1).all() and code.depth.tolist() == [Q]
    work = code.work
    assert work.target_passes.tolist() == [2]  # first pass fixes 0, 1 and corrects 2; second accepts 3
    assert work.draft_passes.tolist() == [4 + 1]
    assert work.proposed_stages.tolist() == [4 + 1]
    assert work.proposed_tokens.tolist() == [[6, 6, 6, 6 + 6]]
    assert work.accepted_stages.tolist() == [2 + 1]
    assert work.accept_counts.tolist() == [[0, 0, 1, 0, 0]]
    assert work.accepted_tokens.tolist() == [[6, 6, 5, 6]] and work.checked_tokens.tolist() == [[6, 6, 6, 6]]
    assert work.base_layers.tolist() == work.vision_calls.tolist() == work.early_exits.tolist() == [0]
    assert code.proposal[0, 0, 0].tolist() == [1, 1, 3, 1]  # as it was proposed, not as it was corrected


@pytest.mark.parametrize("flat", [0.5, 3.0])
def test_sampled_speculative_has_the_targets_distribution(flat):
    """Chi-square of the joint code against its exact distribution, on a code small enough to enumerate."""
    torch.manual_seed(0)
    levels = torch.full((1, 1, 2), 3)
    table = {(): torch.tensor([0.6, 0.3, 0.1])} | {
        (i,): torch.softmax(torch.tensor([i - 1.0, 0.5 * i, 1.0 - i]), 0) for i in range(3)
    }
    wrong = {(): torch.tensor([0.1, 0.3, 0.6])} | {(i,): torch.softmax(flat * torch.randn(3), 0) for i in range(3)}

    def model(rows):
        def logits(known, start, stop):
            out = []
            for q in range(start, stop):
                keys = [tuple(sample.flatten()[:q].tolist()) for sample in known]
                out.append(torch.stack([rows[key].log() for key in keys])[:, None, None, :])
            return torch.stack(out, dim=-2)

        return Function(logits)

    n = 6000
    decoding = Speculative(num_draft_stages=2, temperature=1.0)
    flat_codes = run(decoding, model(table), model(wrong), seeds=range(n), levels=levels).indices[:, 0, 0]  # [n, 2]
    observed = torch.bincount(flat_codes[:, 0] * 3 + flat_codes[:, 1], minlength=9).double()
    expected = torch.stack([table[()][i] * table[(i,)] for i in range(3)]).flatten().double() * n
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_square < 26.1  # 99.9 % quantile of chi-square with 8 degrees of freedom; the seed is fixed
    wrong_joint = torch.stack([wrong[()][i] * wrong[(i,)] for i in range(3)]).flatten().double() * n
    assert ((observed - wrong_joint) ** 2 / wrong_joint).sum().item() > 100  # it is not the draft's


def test_parallel_is_one_pass_and_never_reads_a_stage():
    target = TableModel(seed=4)
    code = run(Parallel(), target, seeds=range(2))
    assert target.calls == 1 and code.work.target_passes.tolist() == [1, 1]
    empty = torch.zeros(2, T, D, 0, dtype=torch.long)
    assert torch.equal(code.indices, TableModel(seed=4)(empty, 0, Q).argmax(-1))


def test_entries_without_a_token_are_not_counted():
    levels = LEVELS.clone()
    levels[0, :, 0] = 1

    def logits(known, start, stop):
        logits = torch.zeros(known.shape[0], T, D, stop - start, L)
        logits[..., 1:] = torch.where(levels[..., start:stop, None] == 1, -torch.inf, 0.5)
        return logits

    target = Function(logits)
    code = run(Speculative(num_draft_stages=1), target, target, levels=levels)
    assert code.work.accepted_tokens.tolist() == code.work.checked_tokens.tolist() == [[D, 0, 0, 0]]
    assert (code.indices[0, 0, :, 0] == 0).all()


def test_equal_distributions_up_to_rounding_are_always_kept():
    target = torch.tensor([[0.5, 0.5]])
    draft = torch.tensor([[0.5 + 6e-8, 0.5]])  # nothing is left over where the target is below the draft by rounding
    for chance in torch.linspace(0, 1 - 1e-12, 200, dtype=torch.float64):
        tokens, kept = exact(torch.tensor([0]), draft, target, (chance[None], chance[None]))
        assert kept.all() and tokens.tolist() == [0]


# --- leaving early


def saying(levels_by_stage, sharpness=20.0):
    """A model that says one level a stage, in every entry, whatever is known."""

    def logits(known, start, stop):
        said = torch.zeros(known.shape[0], T, D, stop - start, L)
        for stage in range(start, stop):
            said[:, :, :, stage - start, levels_by_stage[stage]] = sharpness
        return said

    return Function(logits)


def test_an_exit_is_the_drafts_code_and_nobody_verifies_it():
    code, log_probs = Exit(num_draft_stages=2).propose(saying([1, 3], sharpness=2.0), LEVELS, Noise([0, 1]))
    assert code.indices[0, 0, 0].tolist() == [1, 3, 0, 0] and code.depth.tolist() == [2, 2]
    assert torch.equal(code.proposal, code.indices[..., :2])
    said = 2 - torch.log(torch.exp(torch.tensor(2.0)) + 4)  # one level of weight e², four of weight 1
    torch.testing.assert_close(log_probs, said.expand(2, T, D, 2))
    work = code.work
    assert work.draft_passes.tolist() == [2, 2] and work.early_exits.tolist() == [1, 1]
    assert int(work.target_passes.sum() + work.proposed_stages.sum() + work.accept_counts.sum()) == 0


def test_how_sure_a_draft_is_does_not_depend_on_its_temperature_nor_on_entries_without_a_token():
    levels = LEVELS.clone()
    levels[0, :, 0] = 1

    def logits(known, start, stop):
        said = saying([1, 3], sharpness=2.0)(known, start, stop)
        missing = torch.arange(L) >= levels[..., start:stop, None]  # [T, D, q, L]
        return said.masked_fill(missing, -torch.inf)

    _, greedy = Exit(num_draft_stages=1).propose(Function(logits), levels, Noise([0]))
    code, warm = Exit(num_draft_stages=1, temperature=3.0).propose(Function(logits), levels, Noise([0]))
    assert (greedy[0, 0] == 0).all() and (greedy[0, 1] < 0).all()
    taken = torch.log_softmax(logits(code.indices[..., :0], 0, 1).float(), dim=-1)[..., 0, :]
    expected = taken.gather(-1, code.indices[..., :1])[..., 0]
    torch.testing.assert_close(warm[0, 1, :, 0], expected[0, 1])
    assert not torch.equal(warm[0, 1], greedy[0, 1])  # another level was drawn somewhere


def test_the_gate_by_hand():
    levels = LEVELS.clone()
    levels[0, :, 0] = 1  # three of the twelve entries of two stages have no token
    log_probs = torch.zeros(3, T, D, 2)
    log_probs[0] -= 0.5
    log_probs[0, 0, :, 0] = 0.0
    log_probs[1, 1, 0, 1] = -4.5  # a mean of -0.5, too: -4.5 over nine tokens
    log_probs[2, 1, 0, 1] = -4.6
    assert MeanLogProb(threshold=-0.5)(log_probs, levels).tolist() == [True, True, False]
    assert MeanLogProb(threshold=float("-inf"))(log_probs, levels).all()
    assert not MeanLogProb(threshold=float("inf"))(log_probs, levels).any()


def early(threshold, full, num_draft_stages=2):
    return EarlyExit(gate=MeanLogProb(threshold=threshold), full=full, num_draft_stages=num_draft_stages)


FULL = [L1(), Parallel(), DepthAR(), Speculative(num_draft_stages=3), Speculative(num_draft_stages=2, temperature=1.0)]


@pytest.mark.parametrize("full", FULL, ids=lambda one: type(one).__name__)
def test_open_it_is_the_exit_and_shut_the_full_decoding_with_a_draft_pass_more(full):
    target = TableModel(seed=1)
    draft = TableModel(seed=2, agree_with=target, rate=0.9)
    wide, expected = (
        run(early(float("-inf"), full), target, draft, range(3)),
        run(Exit(num_draft_stages=2), draft=draft),
    )
    for row in range(3):
        assert torch.equal(wide.indices[row], expected.indices[0]) and int(wide.depth[row]) == 2
        assert wide.work.row(row) == expected.work.row(0)
    shut, whole = run(early(float("inf"), full), target, draft, range(3)), run(full, target, draft, range(3))
    assert torch.equal(shut.indices, whole.indices) and torch.equal(shut.depth, whole.depth)
    more = Work.none(3, Q)
    more.draft_passes += 2
    for row in range(3):
        assert shut.work.row(row) == (whole.work + more).row(row)


@pytest.mark.parametrize("full", FULL, ids=lambda one: type(one).__name__)
def test_rows_that_are_decided_are_not_seen_by_the_target_again(full):
    """Row 1's draft is sure; rows 0 and 2 go on."""
    target = PerRow([TableModel(seed) for seed in (1, 2, 3)])
    draft = PerRow([saying([1, 1, 1, 1], sharpness) for sharpness in (1.0, 20.0, 1.0)])
    code = run(early(-0.1, full), target, draft, [5, 6, 7])
    assert code.work.early_exits.tolist() == [0, 1, 0]
    assert all(asked == [0, 2] for asked in target.asked) and bool(target.asked) == (TARGET in full.needs)
    assert draft.asked[:2] == [[0, 1, 2]] * 2 and all(asked == [0, 2] for asked in draft.asked[2:])
    for row in (0, 2):
        keep = torch.tensor([row])
        alone = run(full, target.of(keep), draft.of(keep), [5 + row])
        assert torch.equal(code.indices[row], alone.indices[0]) and code.depth[row] == alone.depth[0]
        assert code.work.draft_passes[row] == alone.work.draft_passes[0] + 2
    assert code.indices[1, 0, 0].tolist() == [1, 1, 0, 0] and code.depth[1] == 2


def agreeing(tolerance, full, gate=None):
    return EarlyExit(gate=gate, full=full, num_draft_stages=2, tolerance=tolerance)


def three_pairs():
    """Rows of which the earlier draft says what the draft says, one level of another stage, and something else."""
    later = PerRow([saying([1, 1, 1, 1], sharpness) for sharpness in (20.0, 1.0, 20.0)])
    return Pair(PerRow([saying(said) for said in ([1, 1, 4, 4], [1, 2, 4, 4], [4, 4, 4, 4])]), later), later


@pytest.mark.parametrize("full", FULL, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    ("tolerance", "gate", "exits"),
    [
        (0, None, [1, 0, 0]),
        (0.49, None, [1, 0, 0]),
        (0.5, None, [1, 1, 0]),  # half of the entries of two stages by one level
        (2.5, None, [1, 1, 0]),
        (3.0, None, [1, 1, 1]),
        (3.0, MeanLogProb(threshold=-0.1), [1, 0, 1]),
        (0.5, MeanLogProb(threshold=-0.1), [1, 0, 0]),
        (3.0, MeanLogProb(threshold=float("inf")), [0, 0, 0]),
    ],
)
def test_a_row_is_decided_where_both_drafts_agree_and_the_gate_does_too(full, tolerance, gate, exits):
    """Each row is that of its own decoding alone, and pays for both drafts."""
    pair, later = three_pairs()
    target = PerRow([TableModel(seed) for seed in (1, 2, 3)])
    code = run(agreeing(tolerance, full, gate), target, pair, [5, 6, 7])
    assert code.work.early_exits.tolist() == exits
    for row in range(3):
        keep = torch.tensor([row])
        alone = run(Exit(num_draft_stages=2) if exits[row] else full, target.of(keep), later.of(keep), [5 + row])
        assert torch.equal(code.indices[row], alone.indices[0]) and code.depth[row] == alone.depth[0]
        assert code.work.draft_passes[row] == alone.work.draft_passes[0] + (2 if exits[row] else 4)
        assert code.work.target_passes[row] == alone.work.target_passes[0]
    assert pair.order[:4] == ["earlier"] * 2 + ["later"] * 2  # in the order in which the base model comes by


def test_without_a_tolerance_the_earlier_draft_is_not_asked():
    pair, later = three_pairs()
    code, plain = (
        run(early(-0.1, L1()), draft=pair, seeds=range(3)),
        run(early(-0.1, L1()), draft=later, seeds=range(3)),
    )
    assert "earlier" not in pair.order and torch.equal(code.indices, plain.indices)
    assert [code.work.row(row) for row in range(3)] == [plain.work.row(row) for row in range(3)]
    assert early(-0.1, L1()).needs == {DRAFT} and agreeing(0, DepthAR()).needs == {DRAFT, EARLIER, TARGET}


def test_a_tolerance_needs_a_draft_that_has_an_earlier_one():
    with pytest.raises(LookupError, match="the decoding asks for a draft that has an earlier one, and the policy has"):
        run(agreeing(0, L1()), draft=three_pairs()[1], seeds=range(3))


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_a_tolerance_that_cannot_be_is_refused(wrong):
    with pytest.raises(SettingError, match=r"tolerance is .*, expected a number of at least 0 or null"):
        agreeing(wrong, L1())


def test_somebody_has_to_decide():
    with pytest.raises(SettingError, match="gate and tolerance are null, and nothing decides"):
        agreeing(None, L1())


def test_two_exits_are_json_and_a_record_of_before_means_none():
    for decoding in (agreeing(0.25, L1()), agreeing(0.25, DepthAR(), MeanLogProb(threshold=float("-inf")))):
        assert from_json(json.loads(json.dumps(to_json(decoding)))) == decoding
    record = to_json(early(-0.1, L1()))
    assert record.pop("tolerance") is None and from_json(record) == early(-0.1, L1())


# --- skipped calls, and the controls


def temporal(threshold, full, max_unverified=3):
    return Temporal(gate=MeanLogProb(threshold=threshold), full=full, num_draft_stages=2, max_unverified=max_unverified)


def past(*unverified):
    """None for an episode that begins."""
    return Past.remembered([None if n is None else Memory(None, num_unverified=n) for n in unverified])


@pytest.mark.parametrize("full", FULL, ids=lambda one: type(one).__name__)
def test_with_one_unverified_chunk_at_most_it_is_the_full_decoding_and_nobody_asks_the_draft_more(full):
    target = TableModel(seed=1)
    draft, other = TableModel(seed=2, agree_with=target, rate=0.9), TableModel(seed=2, agree_with=target, rate=0.9)
    code = run(temporal(float("-inf"), full, 1), target, draft, range(3), past=past(None, 0, 4))
    whole = run(full, target, other, range(3))
    assert torch.equal(code.indices, whole.indices) and torch.equal(code.depth, whole.depth)
    assert draft.calls == other.calls
    assert [code.work.row(row) for row in range(3)] == [whole.work.row(row) for row in range(3)]


@pytest.mark.parametrize("full", FULL, ids=lambda one: type(one).__name__)
def test_the_base_model_decides_the_first_chunk_and_then_one_of_every_n(full):
    target = PerRow([TableModel(seed) for seed in (1, 2, 3, 4)])
    draft = PerRow([saying([1, 1, 1, 1], 20.0)] * 4)
    code = run(temporal(float("-inf"), full), target, draft, [5, 6, 7, 8], past=past(None, 0, 1, 2))
    assert code.work.early_exits.tolist() == [0, 1, 1, 0]
    assert draft.asked[:2] == [[1, 2]] * 2 and all(asked == [0, 3] for asked in draft.asked[2:] + target.asked)
    for row, decoding in enumerate((full, Exit(num_draft_stages=2), Exit(num_draft_stages=2), full)):
        keep = torch.tensor([row])
        alone = run(decoding, target.of(keep), draft.of(keep), [5 + row])
        assert torch.equal(code.indices[row], alone.indices[0]) and code.depth[row] == alone.depth[0]
        assert code.work.row(row) == alone.work.row(0)


def test_where_the_draft_is_not_sure_the_base_model_is_asked_before_its_turn():
    draft = PerRow([saying([1, 1, 1, 1], sharpness) for sharpness in (1.0, 20.0)])
    code = run(temporal(-0.1, L1()), draft=draft, seeds=[5, 6], past=past(0, 0))
    assert code.work.early_exits.tolist() == [0, 1] and code.depth.tolist() == [0, 2]


@pytest.mark.parametrize("wrong", [0, -1])
def test_no_fewer_than_one_unverified_chunk(wrong):
    with pytest.raises(SettingError, match=f"max_unverified is {wrong}, expected a whole number of at least 1"):
        temporal(0.0, L1(), wrong)


@pytest.mark.parametrize("full", [Exit(num_draft_stages=2), Hold(full=Exit(num_draft_stages=2), num_repeats=1)])
def test_skipping_needs_a_full_decoding_that_asks_the_base_model(full):
    with pytest.raises(SettingError, match="full ends in Exit, which never asks the base model"):
        temporal(0.0, full)


def test_controls_decode_what_their_full_decoding_does_and_say_how_much_of_it_is_executed():
    target, draft = four_models()
    full = Speculative(num_draft_stages=3)
    whole = run(full, target, draft, range(4))
    for control, steps in ((Hold(full=full, num_repeats=2), T + 2), (FixedHorizon(full=full, num_steps=1), 1)):
        code = run(control, target, draft, range(4))
        assert torch.equal(code.indices, whole.indices) and code.num_steps.tolist() == [steps] * 4
    assert run(temporal(0.0, Hold(full=L1(), num_repeats=0))).num_steps.tolist() == [T]


@pytest.mark.parametrize("wrong", [0, T + 1])
def test_a_fixed_horizon_is_within_the_chunk(wrong):
    with pytest.raises(
        SettingError,
        match=rf"num_steps (is )?{wrong}, expected (1\.\.{T}, the steps|a whole number of at least 1)",
    ):
        run(FixedHorizon(full=L1(), num_steps=wrong))


def test_nobody_holds_for_less_than_no_step():
    with pytest.raises(SettingError, match="num_repeats is -1, expected a whole number of at least 0"):
        Hold(full=L1(), num_repeats=-1)


# --- the contract of every decoding

SAMPLED = {"temperature": 1.0}
EVERY = {
    "l1": L1(),
    "parallel": Parallel(),
    "parallel sampled": Parallel(**SAMPLED),
    "depth_ar": DepthAR(),
    "depth_ar sampled": DepthAR(**SAMPLED),
    "speculative": Speculative(num_draft_stages=3),
    "speculative sampled": Speculative(num_draft_stages=3, **SAMPLED),
    "exit": Exit(num_draft_stages=2),
    "exit sampled": Exit(num_draft_stages=2, **SAMPLED),
    "early exit": early(-1.4, L1()),
    "temporal": temporal(-1.4, L1()),
    "anytime": Anytime(full=L1(), num_draft_stages=2, budget_passes=0.5),
    "anytime to tokens": Anytime(full=Speculative(num_draft_stages=3, **SAMPLED), num_draft_stages=2, budget_passes=1),
    "hold": Hold(full=Parallel(), num_repeats=2),
    "fixed horizon": FixedHorizon(full=DepthAR(), num_steps=1),
    "early exit to tokens": early(-1.4, Speculative(num_draft_stages=3, **SAMPLED), num_draft_stages=1),
}


class TestEveryDecoding(DecodingContract):
    @pytest.fixture(params=EVERY)
    def decoding(self, request):
        return EVERY[request.param]


def test_the_contracts_early_exits_are_mixed():
    """So that the contract says something of them."""
    for name in ("early exit", "early exit to tokens"):
        assert 0 < int(run(EVERY[name], *four_models(), [100, 101, 102, 103]).work.early_exits.sum()) < 4, name


def test_a_rule_of_ones_own_cannot_be_written_down():
    def generous(*_):
        raise NotImplementedError

    with pytest.raises(SettingError, match=r"Speculative\.accept is <function .*generous.*, which cannot be written"):
        to_json(early(0.0, Speculative(num_draft_stages=2, accept=generous)))


@pytest.mark.parametrize("kind", ["Nobody", "Noise", "Decoding", "__all__", None])
def test_a_kind_that_is_no_decoding_is_refused(kind):
    with pytest.raises(ValueError, match=rf"decoding of kind {kind!r}, expected one of \[.*'Speculative'"):
        from_json({"kind": kind})


def test_options_that_a_decoding_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"decoding DepthAR has no options \['depth'\]; it has \['temperature'\]"):
        from_json({"kind": "DepthAR", "depth": 3})
    with pytest.raises(ValueError, match=r"decoding of kind 'Coin', expected"):
        from_json({"kind": "EarlyExit", "gate": {"kind": "Coin"}, "full": {"kind": "L1"}, "num_draft_stages": 1})


@pytest.mark.parametrize("make", [Speculative, Exit, lambda **options: early(0.0, L1(), **options)])
@pytest.mark.parametrize("number", [0, 5])
def test_num_draft_stages_out_of_range_is_refused(make, number):
    with pytest.raises(ValueError, match=rf"num_draft_stages {number}, expected 1\.\.4"):
        run(make(num_draft_stages=number), TableModel(1), TableModel(1))


# --- chance


def test_noise_depends_on_seed_and_place_alone_and_is_uniform():
    noise = Noise([3, 4, 3])
    first = noise.uniform((50, 40), 1, 2, 0)
    assert first.shape == (3, 50, 40) and torch.equal(first[0], first[2])
    assert torch.equal(first[1], Noise([4]).uniform((50, 40), 1, 2, 0)[0])
    assert torch.equal(first[1:], noise.of(torch.tensor([1, 2])).uniform((50, 40), 1, 2, 0))
    others = [noise.uniform((50, 40), *place) for place in ((1, 2, 1), (2, 1, 0), (1, 2), (0, 2, 0))]
    assert all(not torch.equal(first, other) for other in others)
    numbers = torch.stack([first[:2], *(other[:2] for other in others)]).flatten()  # 20,000 numbers
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
    expected = len(numbers) / 20
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # 99.9 % quantile with 19 degrees of freedom
    pairs = torch.stack([first[0].flatten(), first[1].flatten()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.07  # three standard errors of 2000 pairs


def test_greedy_decoding_needs_no_noise():
    assert Noise([3]).for_stage(LEVELS, 0.0, 1, 2) is None
    assert Noise([3]).for_stage(LEVELS, 0.5, 1, 2).shape == (1, T, D)


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"seeds \[-1\] of the sampling, expected integers in 0"):
        Noise([5, -1])


def test_draw_follows_the_cumulated_probabilities_and_never_takes_an_impossible_level():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(probabilities.expand(5, -1), numbers).tolist() == [1, 1, 3, 3, 3]
    assert draw(probabilities).tolist() == 3


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf"), "abc", None, True])
@pytest.mark.parametrize("make", [Parallel, DepthAR, lambda **options: Exit(num_draft_stages=1, **options)])
def test_a_temperature_that_cannot_be_is_refused(make, temperature):
    with pytest.raises(SettingError, match=r"temperature is .*, expected a number of at least 0"):
        make(temperature=temperature)


@pytest.mark.parametrize("threshold", [float("nan"), "abc", "nan", ".inf", None, True])
def test_a_threshold_that_is_no_number_is_refused(threshold):
    with pytest.raises(SettingError, match=r"threshold .*, expected a number of nats, inf or -inf"):
        MeanLogProb(threshold=threshold)


@pytest.mark.parametrize("threshold", [float("inf"), float("-inf"), -0.5])
def test_every_threshold_is_json(threshold):
    record = json.loads(json.dumps(to_json(early(threshold, L1())), allow_nan=False))
    assert from_json(record).gate.threshold == threshold


@pytest.mark.parametrize("number", [1.0, "2", True])
def test_a_number_of_stages_that_is_not_whole_is_refused(number):
    with pytest.raises(SettingError, match=r"num_draft_stages .*, expected a whole number"):
        Exit(num_draft_stages=number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": 3}, "gate is 3, expected a Gate"),
        ({"gate": {"kind": "L1"}}, r"gate L1\(\), expected a rule"),
        (
            {"full": {"kind": "MeanLogProb", "threshold": 0.0}},
            r"full MeanLogProb\(.*\), expected a decoding",
        ),
        ({"full": {"kind": "Exit"}}, r"decoding Exit lacks its options \['num_draft_stages'\]"),
        ({"full": {"kind": "Speculative", "num_draft_stages": 1, "accept": "exact"}}, r"has no options \['accept'\]"),
    ],
)
def test_a_record_with_parts_that_do_not_fit_is_refused(change, message):
    with pytest.raises(SettingError, match=message):
        from_json(to_json(early(0.0, L1())) | change)


def test_the_draft_is_asked_for_what_any_decoding_inside_asks():
    inside = early(0.0, Speculative(num_draft_stages=3), num_draft_stages=1)
    for decoding, stages in ((inside, 3), (early(0.0, L1()), 2), (L1(), 0), (early(0.0, inside, None), 4)):
        assert stages_of_draft(decoding, 4) == stages
    two = EarlyExit(gate=None, full=Speculative(num_draft_stages=3), num_draft_stages=1, tolerance=0)
    for decoding, stages in ((two, 1), (Hold(full=two, num_repeats=1), 1), (early(0.0, two), 2), (inside, 0)):
        assert stages_of_draft(decoding, 4, EARLIER) == stages
