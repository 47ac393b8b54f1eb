"""Law 2, unnorm keys, and the reference's recorded numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.envs.rotation import axis_angle
from rsd.space import (
    GRIPPERS,
    Range,
    Space,
    SpaceError,
    UnknownKeyError,
    bounds_of,
    resolve_unnorm_key,
    standardize_gripper,
    with_bounds,
)

STATS = {
    "q01": [-1.0, 2.0, 0.0],
    "q99": [3.0, 2.5, 1.0],
    "min": [-2.0, 1.0, 0.0],
    "max": [4.0, 3.0, 1.0],
    "mean": [1.0, 2.0, 0.5],
    "std": [2.0, 0.5, 0.5],
    "mask": [True, True, False],
}


RANGE = Range.from_entry(STATS)


def space(name="toy", proprio=True, gripper="inverted_sign", **changes) -> Space:
    """Of the statistics above, some of them changed."""
    entry = STATS | changes
    return Space.from_statistics(name, {"action": entry} | ({"proprio": entry} if proprio else {}), gripper=gripper)


def test_normalize_by_hand():
    values = np.array([[-1.0, 2.25, 0.3], [3.0, 9.0, 1.0], [0.0, 2.0, 0.0]])
    expected = [[-1.0, 0.0, 0.3], [1.0, 1.0, 1.0], [-0.5, -1.0, 0.0]]
    np.testing.assert_allclose(RANGE.normalize(values), expected, atol=1e-6)
    assert RANGE.normalize(values).dtype == np.float32 and len(RANGE) == 3


@pytest.mark.parametrize("zero_constant", [True, False])
def test_tensors_and_arrays_are_normalised_to_the_same_bits(zero_constant):
    random = np.random.default_rng(0)
    one = Range.from_entry(STATS | {"min": [-2.0, 2.0, 0.0], "max": [4.0, 2.0, 1.0]})  # the second dim never moves
    for dtype in (np.float32, np.float64):
        values = random.uniform(-3, 4, (5, 8, 3)).astype(dtype)
        expected, got = one.normalize(values, zero_constant), one.normalize(torch.from_numpy(values), zero_constant)
        assert got.dtype == torch.float32 and expected.dtype == np.float32
        np.testing.assert_array_equal(got.numpy(), expected)
        assert (expected[..., 1] == 0).all() == zero_constant


def test_statistics_say_with_which_of_their_numbers_they_normalise():
    entry = with_bounds({"action": STATS, "proprio": STATS, "num_transitions": 9}, "extremes")
    assert bounds_of(STATS) == "quantiles" and bounds_of(entry["action"]) == bounds_of(entry["proprio"]) == "extremes"
    values = np.array([[-2.0, 3.0, 0.3], [1.0, 1.5, 1.0], [9.0, 2.0, 0.0]])
    expected = [[-1.0, 1.0, 0.3], [0.0, -0.5, 1.0], [1.0, 0.0, 0.0]]
    made = Space.from_statistics("toy", entry)
    assert made.bounds == "extremes"
    np.testing.assert_allclose(made.to_model(values), expected, atol=1e-6)
    np.testing.assert_allclose(made.action.unnormalize(made.to_model(values[:2])), values[:2])
    assert with_bounds(entry, "quantiles") == {"action": STATS, "proprio": STATS, "num_transitions": 9}
    with pytest.raises(SpaceError, match=r"bounds 'sigma', expected one of \['extremes', 'quantiles'\]"):
        with_bounds(entry, "sigma")
    with pytest.raises(SpaceError, match=r"bounds 'sigma' of the statistics, expected one of \['extremes'"):
        space(bounds="sigma")


def test_factors_to_quantile_units():
    """Extremes span 6 and 2 where the quantiles span 4 and 0.5; the gripper is not normalised."""
    np.testing.assert_allclose(space(bounds="extremes").quantile_units(), [1.5, 4.0, 1.0])
    np.testing.assert_array_equal(space().quantile_units(), np.ones(3))
    np.testing.assert_array_equal(space(bounds="extremes", q99=STATS["q01"]).quantile_units(), np.ones(3))


def test_unnormalize_inverts_normalize_inside_the_quantiles():
    """Law 2."""
    low, high = np.array(STATS["q01"]), np.array(STATS["q99"])
    values = low + np.linspace(0, 1, 11)[:, None] * (high - low)
    np.testing.assert_allclose(RANGE.unnormalize(RANGE.normalize(values)), values, atol=1e-6)
    assert RANGE.unnormalize(np.array([[3.0, -3.0, 0.0]]))[0].tolist() == pytest.approx([7.0, 1.5, 0.0])  # not clipped


def test_the_gripper_passes_its_mask():
    """Law 2: even far outside the statistics."""
    values = np.array([[0.0, 2.0, 7.5]])
    assert RANGE.normalize(values)[0, 2] == 7.5
    assert RANGE.unnormalize(values)[0, 2] == 7.5


def test_statistics_without_mask_normalise_every_dim():
    stats = {name: values for name, values in STATS.items() if name != "mask"}
    assert Range.from_entry(stats).normalize(np.array([[0.0, 2.0, 0.25]]))[0, 2] == pytest.approx(-0.5)


def test_constant_dims_become_zero_in_training_only():
    still = Range.from_entry({"q01": [0.25], "q99": [0.25], "min": [0.25], "max": [0.25]})
    assert still.normalize(np.array([[0.25]])).tolist() == [[0.0]]
    assert still.normalize(np.array([[0.25]]), zero_constant=False).tolist() == [[-1.0]]


def test_proprio_is_normalised_with_the_evaluations_formula():
    made = space(q99=STATS["q01"], min=STATS["q01"], max=STATS["q01"])  # nothing ever moves
    values = np.array([[-1.0, 2.0, 0.3]])
    np.testing.assert_allclose(made.proprio_to_model(values), [[-1.0, -1.0, 0.3]], atol=1e-6)
    assert (made.to_model(values) == 0).all()
    with pytest.raises(SpaceError, match="statistics 'toy' say nothing about proprio"):
        space(proprio=False).proprio_to_model(values)


def test_entries_of_different_lengths_are_refused():
    with pytest.raises(SpaceError, match=r"statistics have .*'q01': 3, .*'mask': 2} dims, expected as many in each"):
        space(mask=[True, False])


def test_gripper_conventions():
    raw = np.array([-1.0, 0.0, 1.0])  # RLDS and robosuite: -1 open, +1 close
    assert standardize_gripper(raw).tolist() == [1.0, 1.0, 0.0]
    actions = np.zeros((4, 3))
    actions[:, -1] = [1.0, 0.7, 0.5, 0.0]
    assert space().to_robot(actions)[:, -1].tolist() == [-1.0, -1.0, 0.0, 1.0]
    assert space(gripper="unchanged").to_robot(actions)[:, -1].tolist() == [1.0, 0.7, 0.5, 0.0]
    assert actions[:, -1].tolist() == [1.0, 0.7, 0.5, 0.0]  # the argument stays as it was
    np.testing.assert_allclose(space().to_robot(actions)[:, :2], [[1.0, 2.25]] * 4)  # the middle of each range
    with pytest.raises(SpaceError, match=r"gripper 'flipped', expected one of \['inverted_sign', 'unchanged'\]"):
        space(gripper="flipped")


MOVED = {"q01": [-1.0, 2.0, 0.0], "q99": [3.05, 2.5, 1.0]}  # 1.2 % of the first dim's width


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (space(), None),
        (space(gripper="unchanged"), None),  # the model speaks the same numbers
        (space(q99=[3.03, 2.5, 1.0]), None),  # statistics of the same data, computed otherwise
        (space(q99=[3.0, 2.5, 7.0]), None),  # the gripper is not normalised
        (space(**MOVED), "dim 0 spans -1..3 against -1..3.05"),
        (space(mask=[True, False, False]), r"3 dims with mask \[True, True, False\] against 3 with \[True, False"),
        (space(name="other"), r"statistics \(unnorm_key\) 'toy' against 'other'"),
        (space(bounds="extremes"), "data.bounds 'quantiles' against 'extremes'"),
    ],
)
def test_spaces_say_how_they_differ(other, difference):
    found = space().difference(other)
    assert found is None if difference is None else re.match(difference, found), found


def test_the_digest_changes_with_every_meaning_and_with_nothing_else():
    others = [space(name="other"), space(**MOVED), space(bounds="extremes"), space(gripper="unchanged")]
    others += [space(mask=[True, False, False]), space(proprio=False), space(min=STATS["max"])]
    digests = {one.digest for one in (space(), *others)}
    assert len(digests) == len(others) + 1 and all(len(digest) == 12 for digest in digests)
    assert space(mean=[0.0] * 3).digest == space().digest  # nobody normalises with it
    assert space() == space(mean=[0.0] * 3) and space() != space(**MOVED)


def test_unnorm_key():
    stats = {"libero_spatial_no_noops": {}, "libero_goal_no_noops": {}}
    assert resolve_unnorm_key(stats, "libero_spatial") == "libero_spatial_no_noops"
    assert resolve_unnorm_key(stats, "libero_goal_no_noops") == "libero_goal_no_noops"
    assert resolve_unnorm_key({"libero_spatial": {}}, "libero_spatial_no_noops") == "libero_spatial"
    assert resolve_unnorm_key({"libero_10": {}, "libero_10_no_noops": {}}, "libero_10_no_noops") == "libero_10_no_noops"
    assert resolve_unnorm_key({"only": {}}, None) == "only"
    with pytest.raises(UnknownKeyError) as caught:
        resolve_unnorm_key(stats, "libero_space")
    assert str(caught.value) == (
        "unnorm_key 'libero_space' not in norm_stats; available: ['libero_goal_no_noops', 'libero_spatial_no_noops']; "
        "set data.unnorm_key to one of them"
    )
    with pytest.raises(UnknownKeyError, match="unnorm_key None"):
        resolve_unnorm_key(stats, None)


def test_golden_eval_math(golden_dir: Path):
    statistics = json.loads((golden_dir / "ckpt_tiny" / "dataset_statistics.json").read_text())
    key = resolve_unnorm_key(statistics, None)
    made = Space.from_statistics(key, statistics[key])
    with np.load(golden_dir / "eval_math.npz") as arrays:
        names = {"quat_xyzw", "axis_angle", "policy_action", "env_action", "raw_proprio", "normalized_proprio"}
        assert set(arrays.files) == names
        angles = np.stack([axis_angle(quaternion) for quaternion in arrays["quat_xyzw"]])
        np.testing.assert_allclose(angles, arrays["axis_angle"], atol=1e-9, rtol=0)
        np.testing.assert_array_equal(GRIPPERS[made.gripper](arrays["policy_action"]), arrays["env_action"])
        normalized = made.proprio_to_model(arrays["raw_proprio"])
        np.testing.assert_allclose(normalized, arrays["normalized_proprio"], atol=1e-6, rtol=0)
