"""The account: rows are charged for themselves, sums keep what they do not know, the clock's parts add up."""

import time

import pytest
import torch

from rsd.work import Stopwatch, Work, add_counts


def test_rows_and_sums():
    base, code = Work.none(2), Work.none(2, num_stages=3)
    base.base_layers += torch.tensor([3, 1])
    code.proposed_tokens[:, 1] += 6
    code.accept_counts[1, 3] = 1
    code.base_layers += 1
    for total in (base + code, code + base):
        assert total.row(0)["base_layers"] == 4 and total.row(1)["base_layers"] == 2
        assert total.row(1)["proposed_tokens"] == [0, 6, 0] and total.row(1)["accept_counts"] == [0, 0, 0, 1]
    assert base.row(0)["accept_counts"] == [] and len(base) == 2
    assert base.base_layers.tolist() == [3, 1]  # the parts stay as they were


def test_work_of_some_rows_is_charged_to_them():
    whole, some = Work.none(3, 2), Work.none(2, 2)
    some.target_passes += torch.tensor([1, 2])
    some.accept_counts[:, 0] = 1
    whole.target_passes += 5
    whole.add_rows(torch.tensor([0, 2]), some)
    assert whole.target_passes.tolist() == [6, 5, 7]
    assert whole.accept_counts.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_work_with_other_stages_is_not_charged_in_part():
    whole = Work.none(2, 3)
    whole.add_rows(torch.tensor([1]), Work.none(1))  # no stages: all the rest is added
    other = Work.none(1, 2)
    other.base_layers += 6
    with pytest.raises(ValueError, match=r"proposed_tokens of \[1, 2\] cannot be added to rows of \[2, 3\]"):
        whole.add_rows(torch.tensor([1]), other)
    assert whole.base_layers.tolist() == [0, 0]


def test_counts_of_chunks_add_up():
    assert add_counts({}, {"n": 1, "counts": [1, 0]}) == {"n": 1, "counts": [1, 0]}
    assert add_counts({"n": 1, "counts": [1, 0]}, {"n": 2, "counts": [0, 5], "m": 1}) == {
        "n": 3,
        "counts": [1, 5],
        "m": 1,
    }
    for other in ([0, 0, 1], 3):
        with pytest.raises(ValueError, match=r"counter 'counts' is .*, expected as many entries as in"):
            add_counts({"counts": [1, 0]}, {"counts": other})


def test_a_part_inside_another_stops_its_clock():
    clock, start = Stopwatch(), time.perf_counter()
    with clock.part("outer"):
        with clock.part("inner"):
            time.sleep(0.02)
        with pytest.raises(KeyError), clock.part("inner"):
            raise KeyError
    whole = 1000 * (time.perf_counter() - start)
    assert set(clock.elapsed_ms) == {"outer", "inner"}
    assert clock.elapsed_ms["inner"] >= 19 and clock.elapsed_ms["outer"] < whole - 19
    assert sum(clock.elapsed_ms.values()) <= whole
