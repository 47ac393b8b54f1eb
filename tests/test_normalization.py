"""Law 2, unnorm keys, and the reference's recorded numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from rsd.envs.rotation import axis_angle
from rsd.normalization import (
    UnknownKeyError,
    bounds_of,
    normalize,
    normalize_gaussian,
    quantile_units,
    resolve_unnorm_key,
    robot_actions,
    standardize_gripper,
    unnormalize,
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


def test_normalize_by_hand():
    values = np.array([[-1.0, 2.25, 0.3], [3.0, 9.0, 1.0], [0.0, 2.0, 0.0]])
    expected = [[-1.0, 0.0, 0.3], [1.0, 1.0, 1.0], [-0.5, -1.0, 0.0]]
    np.testing.assert_allclose(normalize(values, STATS), expected, atol=1e-6)
    assert normalize(values, STATS).dtype == np.float32
    np.testing.assert_allclose(normalize_gaussian(values, STATS)[0], [-1.0, 0.5, 0.3], atol=1e-6)


def test_statistics_say_with_which_of_their_numbers_they_normalise():
    entry = with_bounds({"action": STATS, "proprio": STATS, "num_transitions": 9}, "extremes")
    assert bounds_of(STATS) == "quantiles" and bounds_of(entry["action"]) == bounds_of(entry["proprio"]) == "extremes"
    values = np.array([[-2.0, 3.0, 0.3], [1.0, 1.5, 1.0], [9.0, 2.0, 0.0]])
    expected = [[-1.0, 1.0, 0.3], [0.0, -0.5, 1.0], [1.0, 0.0, 0.0]]
    np.testing.assert_allclose(normalize(values, entry["action"]), expected, atol=1e-6)
    np.testing.assert_allclose(unnormalize(normalize(values[:2], entry["action"]), entry["action"]), values[:2])
    assert with_bounds(entry, "quantiles") == {"action": STATS, "proprio": STATS, "num_transitions": 9}
    with pytest.raises(ValueError, match=r"bounds 'sigma', expected one of \['extremes', 'quantiles'\]"):
        with_bounds(entry, "sigma")


def test_factors_to_quantile_units():
    """Extremes span 6 and 2 where the quantiles span 4 and 0.5; the gripper is not normalised."""
    np.testing.assert_allclose(quantile_units(STATS | {"bounds": "extremes"}), [1.5, 4.0, 1.0])
    np.testing.assert_array_equal(quantile_units(STATS), np.ones(3))
    still = STATS | {"bounds": "extremes", "q99": STATS["q01"]}
    np.testing.assert_array_equal(quantile_units(still), np.ones(3))


def test_unnormalize_inverts_normalize_inside_the_quantiles():
    """Law 2."""
    low, high = np.array(STATS["q01"]), np.array(STATS["q99"])
    values = low + np.linspace(0, 1, 11)[:, None] * (high - low)
    np.testing.assert_allclose(unnormalize(normalize(values, STATS), STATS), values, atol=1e-6)


def test_the_gripper_passes_its_mask():
    """Law 2: even far outside the statistics."""
    values = np.array([[0.0, 2.0, 7.5]])
    assert normalize(values, STATS)[0, 2] == 7.5
    assert unnormalize(values, STATS)[0, 2] == 7.5


def test_statistics_without_mask_normalise_every_dim():
    stats = {name: values for name, values in STATS.items() if name != "mask"}
    assert normalize(np.array([[0.0, 2.0, 0.25]]), stats)[0, 2] == pytest.approx(-0.5)


def test_constant_dims_become_zero_in_training_only():
    stats = {"q01": [0.25], "q99": [0.25], "min": [0.25], "max": [0.25]}
    assert normalize(np.array([[0.25]]), stats).tolist() == [[0.0]]
    assert normalize(np.array([[0.25]]), stats, zero_constant=False).tolist() == [[-1.0]]


def test_gripper_conventions():
    raw = np.array([-1.0, 0.0, 1.0])  # RLDS and robosuite: -1 open, +1 close
    assert standardize_gripper(raw).tolist() == [1.0, 1.0, 0.0]
    actions = np.zeros((4, 7))
    actions[:, -1] = [1.0, 0.7, 0.5, 0.0]
    assert robot_actions(actions)[:, -1].tolist() == [-1.0, -1.0, 0.0, 1.0]
    assert robot_actions(actions, "unchanged")[:, -1].tolist() == [1.0, 0.7, 0.5, 0.0]
    assert actions[:, -1].tolist() == [1.0, 0.7, 0.5, 0.0]  # the argument stays as it was


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
    stats = statistics[resolve_unnorm_key(statistics, None)]
    with np.load(golden_dir / "eval_math.npz") as arrays:
        names = {"quat_xyzw", "axis_angle", "policy_action", "env_action", "raw_proprio", "normalized_proprio"}
        assert set(arrays.files) == names
        angles = np.stack([axis_angle(quaternion) for quaternion in arrays["quat_xyzw"]])
        np.testing.assert_allclose(angles, arrays["axis_angle"], atol=1e-9, rtol=0)
        np.testing.assert_array_equal(robot_actions(arrays["policy_action"]), arrays["env_action"])
        normalized = normalize(arrays["raw_proprio"], stats["proprio"], zero_constant=False)
        np.testing.assert_allclose(normalized, arrays["normalized_proprio"], atol=1e-6, rtol=0)
