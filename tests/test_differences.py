"""Two nested configurations, key by key."""

from rsd.differences import Difference, differences, told


def test_values_and_missing_keys_are_named_with_their_place():
    left = {"oft": {"lr": 0.1, "heads": [1]}, "seed": 0}
    right = {"oft": {"lr": 0.2, "heads": [1, 2]}, "seed": 0, "draft": {}}
    found = differences(left, right)
    assert [str(one) for one in found] == ["draft: (absent) → {}", "oft.heads: [1] → [1, 2]", "oft.lr: 0.1 → 0.2"]
    assert differences(left, left) == []


def test_ignored_keys_take_their_branch_along():
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [2]}, ignore=("a",)) == [
        Difference("c", [1], [2])
    ]


def test_sides_can_have_names():
    assert Difference("model.size", "7b", None).named("cache", "configuration") == (
        "model.size: cache '7b', configuration None"
    )


def test_a_foreign_file_of_thousands_of_differences_makes_a_short_line():
    line = told(differences({f"{index:04}" + "k" * 1000: "v" * 9000 for index in range(1000)}, {}))
    assert line.startswith("0000kkk") and line.endswith("; and 980 more") and len(line) < 10_000
