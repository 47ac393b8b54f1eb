"""What weights mean, and the order of what is drawn."""

import numpy as np
import pytest

from rsd.data.mixture import EpochMixture, check_weights, epoch_length, shares
from rsd.data.shuffle import ShuffledLoader
from rsd.errors import SettingError


def test_a_weight_multiplies_the_size():
    assert shares([100, 300], [1.0, 1.0]).tolist() == [0.25, 0.75]
    assert shares([100, 300], [3.0, 1.0]).tolist() == [0.5, 0.5]
    assert shares([100, 300], [3.0, 1.0], balance=False).tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("sizes", "weights", "balance", "length"),
    [
        ([100, 300], [1.0, 1.0], True, 400),
        ([100, 300], [1.0, 0.5], True, 250),  # 100 / 0.4
        ([100, 300], [1.0, 1.0], False, 600),  # 300 / 0.5
        ([100, 300], [0.5, 0.25], True, 250),  # none of weight 1: the largest
    ],
)
def test_an_epoch_shows_data_sets_of_weight_1_whole(sizes, weights, balance, length):
    assert epoch_length(sizes, weights, balance) == length


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "data.members is empty"),
        ({"a": 0, "b": 0.0}, r"weights in data.members \(a, b\) sum to zero"),
        ({"a": 1.0, "b": -0.5}, "data.members.b is -0.5, expected a weight of at least 0; set data.members.b=1.0"),
        ({"a": float("nan")}, "data.members.a is nan"),
        ({"a": float("inf")}, "data.members.a is inf"),
        ({"a": "much"}, "data.members.a is 'much'"),
        ({"a": True}, "data.members.a is True"),
    ],
)
def test_weights_that_nothing_can_be_drawn_with(weights, message):
    with pytest.raises(SettingError, match=message):
        check_weights(weights)


def test_weight_0_leaves_a_data_set_out():
    assert check_weights({"a": 1, "b": 0}) == {"a": 1.0}


def test_rows_come_by_weight_and_each_once_before_any_comes_twice():
    order = EpochMixture([4, 40], [1.0, 0.1], seed=3, balance=False)
    rows = order.order()
    assert len(rows) == order.length
    small = EpochMixture([4, 400], [50.0, 1.0], seed=0)
    rows = small.order()
    own = rows[rows < 4]
    assert abs(len(own) / len(rows) - 200 / 600) < 0.1
    for start in range(0, len(own) - 3, 4):
        assert sorted(own[start : start + 4]) == [0, 1, 2, 3]
    assert len(set(rows[rows >= 4])) == min(len(rows) - len(own), 400)


def test_the_order_depends_on_seed_and_epoch_alone():
    one, two = EpochMixture([5, 7], [1.0, 1.0], seed=1), EpochMixture([5, 7], [1.0, 1.0], seed=1)
    first = one.order()
    assert np.array_equal(first, two.order())
    one.set_epoch(1)
    assert not np.array_equal(first, one.order())
    assert not np.array_equal(first, EpochMixture([5, 7], [1.0, 1.0], seed=2).order())


def test_rows_are_told_apart():
    order = EpochMixture([2, 3], [1.0, 1.0], seed=0)
    split = order.split([4, 0, 2, 1])
    assert [(member, places.tolist(), own.tolist()) for member, places, own in split] == [
        (0, [1, 3], [0, 1]),
        (1, [0, 2], [2, 0]),
    ]


def test_a_loader_resumes_in_the_middle_of_an_epoch():
    def loader():
        return ShuffledLoader(EpochMixture([5, 9], [1.0, 2.0], seed=4), list, batch_size=4)

    whole, stopped, resumed = list(loader()), loader(), loader()
    iterator = iter(stopped)
    seen = [next(iterator) for _ in range(3)]
    resumed.load_state_dict(stopped.state_dict())
    assert [*seen, *resumed] == whole
