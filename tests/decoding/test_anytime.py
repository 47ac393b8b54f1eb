"""Anytime: whose code is whose, how many steps fall due too early, and what is refused."""

import pytest
import torch

from rsd.decoding import L1, Anytime, DepthAR, EarlyExit, Exit, FixedHorizon, Hold, MeanLogProb, from_json, to_json
from rsd.decoding.anytime import check_anytime
from rsd.errors import SettingError
from rsd.types import Ahead
from tests.decoding.tables import Q, TableModel, four_models, run


def anytime(full, passes=1.0, ms=None):
    return Anytime(full=full, num_draft_stages=2, budget_passes=passes, budget_ms=ms)


def test_the_code_is_that_of_the_full_decoding_and_what_is_ahead_that_of_the_draft():
    target, draft = TableModel(seed=1), TableModel(seed=2)
    code = run(anytime(DepthAR()), target, draft, range(3))
    full, first = run(DepthAR(), target, draft, range(3)), run(Exit(num_draft_stages=2), target, draft, range(3))
    assert torch.equal(code.indices, full.indices) and torch.equal(code.depth, full.depth)
    assert torch.equal(code.ahead.code.indices, first.indices) and code.ahead.code.depth.tolist() == [2] * 3
    assert torch.equal(code.proposal, first.proposal)
    assert code.work.draft_passes.tolist() == [2] * 3 and code.work.target_passes.tolist() == [Q] * 3
    assert code.work.early_exits.tolist() == [0] * 3


@pytest.mark.parametrize(
    ("full", "passes", "steps"),
    [
        (DepthAR(), 1, Q - 1),  # pass Q is done when step Q - 1 falls due
        (DepthAR(), 2, 1),
        (DepthAR(), 3, 1),
        (DepthAR(), Q, 0),  # it all fits into the first control step
        (DepthAR(), 0.5, 7),
        (DepthAR(), 0.1, 8),  # never within this chunk
        (L1(), 1, 0),  # the base model's run is a pass
        (L1(), 0.5, 1),
        (L1(), 0.25, 3),
    ],
)
def test_steps_that_fall_due_before_so_many_passes_are_done(full, passes, steps):
    code = run(anytime(full, passes), *four_models(), range(4))
    drafted, late = code.ahead.steps(8, 1e9, 1e9)  # the clock does not matter
    assert drafted.tolist() == [steps] * 4 and late.tolist() == [0] * 4


def test_rows_that_ended_at_the_draft_waited_for_nothing():
    early = EarlyExit(gate=MeanLogProb(threshold=-1.4), full=DepthAR(), num_draft_stages=2)
    code = run(anytime(early), *four_models(), range(100, 104))
    ended = code.work.early_exits
    assert 0 < int(ended.sum()) < 4
    assert code.ahead.steps(8, 0.0, 0.0)[0].tolist() == [0 if one else Q - 1 for one in ended.tolist()]


@pytest.mark.parametrize(
    ("elapsed_ms", "draft_ms", "steps"),
    [(49.9, 10.0, (0, 0)), (50.1, 10.0, (1, 0)), (120.0, 51.0, (2, 1)), (500.0, 100.1, (8, 2)), (1e30, 1e30, (8, 8))],
)
def test_steps_that_fall_due_before_so_many_milliseconds_have_passed(elapsed_ms, draft_ms, steps):
    code = run(anytime(DepthAR(), None, 50.0), *four_models(), range(4))
    drafted, late = code.ahead.steps(8, elapsed_ms, draft_ms)
    assert (drafted.tolist(), late.tolist()) == ([steps[0]] * 4, [steps[1]] * 4)


def test_nothing_is_late_for_more_steps_than_there_are():
    code = run(anytime(DepthAR(), 1e-30), *four_models(), range(4))
    assert isinstance(code.ahead, Ahead) and code.ahead.steps(3, 0.0, 0.0)[0].tolist() == [3] * 4


@pytest.mark.parametrize(("passes", "ms"), [(None, None), (1.0, 50.0)])
def test_there_is_one_budget(passes, ms):
    message = rf"budget_passes {passes} and budget_ms {ms}, expected exactly one of them and null for the other"
    with pytest.raises(SettingError, match=message):
        anytime(DepthAR(), passes, ms)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "soon"])
@pytest.mark.parametrize("name", ["budget_passes", "budget_ms"])
def test_a_budget_that_cannot_be_is_refused(name, wrong):
    with pytest.raises(SettingError, match=f"{name} is .*, expected"):
        Anytime(full=L1(), num_draft_stages=2, **{name: wrong})


def test_full_is_a_decoding():
    with pytest.raises(SettingError, match="full is 3, expected a"):
        Anytime(full=3, num_draft_stages=2, budget_passes=1.0)


def test_it_is_json():
    for one in (anytime(DepthAR()), anytime(Hold(full=L1(), num_repeats=1), None, 50.0)):
        assert from_json(to_json(one)) == one


@pytest.mark.parametrize(
    ("decoding", "num_steps", "least"),
    [
        (anytime(L1(), 0.12), 8, "1/8"),
        (anytime(L1(), 0.125), 7, "1/7"),
        (FixedHorizon(full=anytime(L1(), 0.25), num_steps=3), 8, "1/3"),
    ],
)
def test_a_budget_that_never_lets_the_target_act_is_refused(decoding, num_steps, least):
    with pytest.raises(SettingError, match=f"budget_passes .* in a control step, expected at least {least}: else none"):
        check_anytime(decoding, 8, num_steps)


def test_budgets_that_do_are_not():
    for decoding in (
        anytime(L1(), 0.125),
        anytime(L1(), None, 1e-3),
        Hold(full=anytime(L1(), 0.25), num_repeats=2),
        FixedHorizon(full=anytime(L1(), 0.25), num_steps=4),
        anytime(EarlyExit(gate=MeanLogProb(threshold=0.0), full=L1(), num_draft_stages=2)),
        L1(),
    ):
        check_anytime(decoding, 8, 8)


@pytest.mark.parametrize(
    "decoding",
    [
        EarlyExit(gate=MeanLogProb(threshold=0.0), full=anytime(L1()), num_draft_stages=2),
        EarlyExit(gate=MeanLogProb(threshold=0.0), full=Hold(full=anytime(L1()), num_repeats=1), num_draft_stages=2),
        anytime(anytime(L1())),
    ],
)
def test_inside_of_a_decoding_that_would_not_know_of_it_it_is_refused(decoding):
    with pytest.raises(SettingError, match="Anytime inside of another decoding than Hold and FixedHorizon"):
        check_anytime(decoding, 8, 8)
