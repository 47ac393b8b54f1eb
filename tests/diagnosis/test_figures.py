"""The measures by hand: intervals, closings, the ridge control, movement, jumps, states."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rsd.diagnosis.bootstrap import explained, mean, ratio
from rsd.diagnosis.continuity import jumps, rank_correlation, steps_of, turned
from rsd.diagnosis.features import as_colours
from rsd.diagnosis.gripper_timing import closings, fingers_agree, opening_width, timing
from rsd.diagnosis.movement import absolute_dims, movement
from rsd.diagnosis.page import overlaid
from rsd.diagnosis.proprio_control import held_out_predictions
from rsd.diagnosis.replay import Replay, stride_of
from rsd.diagnosis.token_accuracy import majority


def test_intervals_are_of_episodes():
    """Ten equal frames of each of two episodes are two witnesses, not twenty."""
    values, episodes = np.repeat([0.0, 1.0], 10), np.repeat([3, 7], 10)
    found = mean(values, episodes)
    assert (found.value, found.low, found.high, found.num_episodes) == (0.5, 0.0, 1.0, 2)
    apart = mean(values, np.arange(20))
    assert apart.value == 0.5 and 0.2 < apart.low < 0.4 and 0.6 < apart.high < 0.8
    assert str(found) == "0.5 (95 %: 0 – 1)" and found.percent == "50 % (95 %: 0 – 100 %)"


def test_of_one_episode_frames_are_drawn():
    found = mean(np.array([0.0, 1.0] * 10), np.zeros(20))
    assert found.num_episodes == 1 and found.low < found.value < found.high


def test_a_ratio_is_of_sums():
    assert ratio(np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([0, 1])).value == 1.0


def test_explained_variance():
    truth = np.array([[0.0], [2.0], [4.0]])
    assert explained(truth, truth, np.arange(3)).value == 1
    assert explained(np.full_like(truth, 2), truth, np.arange(3)).value == 0
    assert explained(truth[::-1], truth, np.arange(3)).value == -3  # 32 missed of 8


def test_closings():
    assert closings(np.array([1, 1, 0, 0, 1, 0])) == [2, 5]
    assert closings(np.array([0, 0])) == []


@pytest.mark.parametrize(
    ("executed", "delays"),
    [
        ([1, 1, 1, 1, 0, 0, 0, 0], [0]),
        ([1, 1, 1, 1, 1, 1, 0, 0], [2]),
        ([1, 1, 0, 0, 0, 0, 0, 0], [-2]),
        ([1, 1, 1, 1, 1, 1, 1, 0], [None]),  # beyond the window
        ([1, 1, 1, 1, 1, 1, 1, 1], [None]),
        ([0, 0, 0, 0, 0, 0, 0, 0], [-2]),  # closed all along: early by the window at least
    ],
)
def test_a_closing_may_be_on_time_late_early_or_missed(executed, delays):
    demonstrated = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    found = timing(demonstrated, np.array(executed), window=2)
    assert found.delays == delays and found.num_steps == 8


def test_agreement_of_open_and_closed():
    found = timing(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 1]), window=1)
    assert (found.open_share, found.closed_share) == (0.5, 0.0)
    assert timing(np.ones(3), np.ones(3), window=1).closed_share is None


def test_fingers_tell_an_inverted_rule():
    width = np.r_[np.full(10, 0.04), np.full(10, 0.01)]
    proprio = np.stack([np.arange(20.0), width, -width], axis=1)
    assert opening_width(proprio) == pytest.approx(2 * width)
    assert opening_width(proprio[:, :2]) is None and opening_width(np.zeros((5, 3))) is None
    command = (width > 0.02).astype(float)
    assert fingers_agree([command], [width], lag=1) > 0.8
    assert fingers_agree([1 - command], [width], lag=1) < -0.8
    assert fingers_agree([np.ones(20)], [width], lag=1) == 0


def test_the_ridge_has_not_seen_the_episode():
    """Within an episode the chunk is a constant of its own: only a control that cheats could know it."""
    random = np.random.default_rng(0)
    episodes = np.repeat(np.arange(20), 10)
    felt = random.normal(size=(200, 3))
    told = felt @ np.array([[1.0], [2.0], [0.0]]) + 5
    own = random.normal(size=(20, 1))[episodes]
    assert explained(held_out_predictions(felt, told, episodes), told, episodes).value > 0.99
    assert explained(held_out_predictions(felt, own, episodes), own, episodes).value < 0.05


def test_movement_of_changes_and_of_positions():
    chunks = np.array([[[1.0, 10.0], [3.0, 14.0]]])  # one chunk of two steps
    scale = np.array([1.0, 2.0])
    assert movement(chunks, [0], scale, np.array([False, False])) == pytest.approx([2.0])
    assert movement(chunks, [1], scale, np.array([False, True])) == pytest.approx([1.0])  # 0 and 4 of 2
    felt = np.linspace(0, 1, 50)[:, None]
    actions = np.concatenate([felt + 0.01, np.random.default_rng(0).normal(size=(50, 1))], axis=1)
    assert absolute_dims(actions, felt).tolist() == [True, False]


def replayed(chunks, stride) -> Replay:
    chunks = np.asarray(chunks, dtype=float)
    return Replay(0, np.arange(len(chunks)) * stride, stride, chunks, chunks, np.zeros((len(chunks), 1)))


def test_jumps_are_against_what_the_last_chunk_would_have_done():
    one = replayed([[[0.0], [1.0], [2.0], [3.0]], [[2.5], [3.5], [4.5], [5.5]]], stride=2)
    assert jumps(one) == pytest.approx([0.5])  # 2.5 where the last chunk says 2
    assert steps_of(one, one.chunks) == pytest.approx([1.0])
    assert one.executed(one.chunks)[:, 0].tolist() == [0, 1, 2.5, 3.5, 4.5, 5.5]
    single = replayed([[[0.0]], [[1.0]]], stride=1)
    assert jumps(single) == pytest.approx([1.0]) and steps_of(single, single.chunks) == pytest.approx([1.0])


def test_strides_leave_an_overlap():
    assert [stride_of(8, 8), stride_of(8, 5), stride_of(1, 1)] == [4, 5, 1]


def test_how_far_states_turn():
    a = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert turned(a, b) == pytest.approx([0, 1, 2])
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 11.0])) == pytest.approx(1)
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None


def test_the_majority_guess():
    assert majority(np.array([[[1], [5]], [[1], [6]], [[2], [6]]])).tolist() == [[1], [6]]


def test_colours_are_the_same_in_all_pictures():
    """Two things in two pictures: two colours, and each has the same in both."""
    things = np.eye(5)[[0, 1]]
    grids = [things[np.array([[0, 1], [1, 0]])], things[np.array([[1, 1], [0, 0]])]]
    first, second = as_colours(grids)
    assert first.shape == (2, 2, 3) and (first[0, 0] == second[1, 1]).all() and (first[0, 1] == second[0, 0]).all()
    assert (first[0, 0] != first[0, 1]).any()


def test_heat_is_hottest_where_it_is_largest():
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    shown = overlaid(np.full((64, 64, 3), 100, dtype=np.uint8), heat).astype(int)
    assert shown[5, 5, 0] > shown[-5, -5, 0] + 50
    assert overlaid(np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((2, 2))).shape == shown.shape


def test_moments_are_spread_over_tasks_and_parts(tmp_path):
    from rsd.diagnosis.moments import EpisodeIndex, choose_moments, episodes_of
    from tests.diagnosis import made_up_arm

    index = EpisodeIndex(made_up_arm.write(tmp_path))
    moments = choose_moments(index, "val", 8, seed=0)
    assert set(episodes_of(moments)) == {9, 19, 29, 39}
    for one in moments:
        own, other, same = (getattr(one, name)["observation"].instruction for name in ("own", "other", "same"))
        assert own == same != other and one.same["episode"] != one.own["episode"]
        assert one.first["step"] == 0 and one.following["step"] == one.own["step"] + 1
        assert abs(one.own["step"] - one.other["step"]) <= 1  # episodes are equally long
    again = choose_moments(index, "val", 8, seed=0)
    assert [(m.own["step"], m.other["episode"]) for m in again] == [
        (m.own["step"], m.other["episode"]) for m in moments
    ]
    assert len(set(episodes_of(choose_moments(index, "all", 40, seed=1)))) == 40


def test_with_one_task_the_other_frame_is_half_an_episode_away(tmp_path, monkeypatch):
    from rsd.diagnosis.moments import EpisodeIndex, choose_moments
    from tests.diagnosis import made_up_arm

    monkeypatch.setattr(made_up_arm, "WORDS", ("stack it", "stack it"))
    index = EpisodeIndex(made_up_arm.write(tmp_path))
    for one in choose_moments(index, "val", 6, seed=0):
        assert one.other["episode"] != one.own["episode"]
        assert abs(one.other["step"] - one.own["step"]) >= 3


def test_words_without_meaning_are_taken_from_the_data_set_where_no_others_are_known():
    from rsd.diagnosis.interventions import NONSENSE_WORDS
    from rsd.diagnosis.measure import nonsense
    from rsd.models.openvla.text import WordText

    text = WordText.from_instructions(["push the cup", "lift the lid"])
    said = nonsense(text, ["push the cup", "lift the lid"], seed=0)
    assert len(said.split()) == 5 and set(said.split()) <= set(text.words)
    anything = SimpleNamespace(encode=lambda words: [1])
    assert nonsense(anything, ["push the cup"], seed=0) == NONSENSE_WORDS
    assert text.without_words() == [1, 3] and text.piece(4) == "cup" and text.piece(3) == "(end)"
