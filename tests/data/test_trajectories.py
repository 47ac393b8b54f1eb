"""Standardising, statistics and chunking: by hand, and against the reference's recorded arrays."""

import json
from pathlib import Path

import numpy as np
import pytest

from rsd.data import DataError
from rsd.data.trajectories import (
    binarize_gripper,
    check_finite,
    chunk_actions,
    chunk_actions_padded,
    clipped_motion,
    compute_statistics,
    require_chunks,
    standardize_actions,
    standardize_proprio,
)
from rsd.space import EXTREMES, QUANTILES, Range

FLOAT32_NOISE = 1e-5  # the reference computes in float32, this project in float64


def test_chunks_of_a_five_step_trajectory():
    """Law 3: three windows of three steps; steps 3 and 4 start none."""
    trajectory = np.array([[10, 0], [11, 1], [12, 0], [13, 1], [14, 1]])
    expected = [
        [[10, 0], [11, 1], [12, 0]],
        [[11, 1], [12, 0], [13, 1]],
        [[12, 0], [13, 1], [14, 1]],
    ]
    assert chunk_actions(trajectory, 3).tolist() == expected


def test_share_of_the_movement_that_normalisation_cuts_off():
    """0.9 of 1.2 in the first dim lies beyond 0.1; the second is inside; the third hardly moves; the gripper passes."""
    actions = np.array([[1.0, 0.1, 0.001, 1], [0.1, -0.1, 0.0, 0], [-0.1, 0.1, 0.0, 1]])
    statistics = {"q01": [-0.1, -0.1, 0.0, 0], "q99": [0.1, 0.1, 0.0, 0], "mask": [True, True, True, False]}
    expected = [0.9 / 1.2, 0.0, 0.001 / (3 * 0.01), 0.0]
    np.testing.assert_allclose(clipped_motion(actions, statistics), expected)
    statistics |= {"min": actions.min(axis=0), "max": actions.max(axis=0), "bounds": EXTREMES}
    assert not clipped_motion(actions, statistics).any()


def test_padded_chunks_of_a_three_step_trajectory():
    """Original OpenVLA: every step starts a chunk; the relative dim is filled with 0, the gripper repeats its last."""
    trajectory = np.array([[10, 0], [11, 0], [12, 1]])
    expected = [[[10, 0], [11, 0]], [[11, 0], [12, 1]], [[12, 1], [0, 1]]]
    assert chunk_actions_padded(trajectory, 2, absolute=[False, True]).tolist() == expected


@pytest.mark.parametrize(("num_steps", "num_chunks"), [(0, 0), (7, 0), (8, 1), (9, 2)])
def test_number_of_chunks(num_steps: int, num_chunks: int):
    assert chunk_actions(np.zeros((num_steps, 7)), 8).shape == (num_chunks, 8, 7)


def test_short_trajectories_are_counted():
    assert require_chunks([3, 8, 7, 20], 8, "toy") == 2
    with pytest.raises(DataError, match=r"toy: all 2 episodes are shorter than the chunk of 8 steps .*longest has 7"):
        require_chunks([3, 7], 8, "toy")


def test_gripper_is_one_when_open():
    raw = np.array([[0.5, -1.0], [0.5, 0.0], [0.5, 1.0]], dtype=np.float32)
    assert standardize_actions(raw).tolist() == [[0.5, 1.0], [0.5, 1.0], [0.5, 0.0]]


def test_not_a_number_names_episode_and_step():
    values = np.zeros((4, 7))
    values[2, 5] = np.nan
    with pytest.raises(DataError, match=r"toy: episode 3: action is nan at step 2, dim 5 \(1 such"):
        check_finite(values, "action", "toy: episode 3")


def _numbers(arrays: np.lib.npyio.NpzFile, prefix: str) -> list[str]:
    numbers = sorted(name.removeprefix(prefix) for name in arrays.files if name.startswith(prefix))
    assert numbers
    return numbers


def test_golden_rlds_libero(golden_dir: Path):
    statistics = json.loads((golden_dir / "rlds_statistics.json").read_text())
    assert len(statistics) == 1
    expected = next(iter(statistics.values()))
    with np.load(golden_dir / "rlds_libero.npz") as arrays:
        checked = {"binarize_gripper_in", "binarize_gripper_out"}
        np.testing.assert_array_equal(binarize_gripper(arrays["binarize_gripper_in"]), arrays["binarize_gripper_out"])
        actions, proprios = [], []
        for i in _numbers(arrays, "raw_action_"):
            actions.append(standardize_actions(arrays[f"raw_action_{i}"]))
            proprios.append(standardize_proprio(arrays[f"raw_state_{i}"]))
            eef, gripper = arrays[f"EEF_state_{i}"], arrays[f"gripper_state_{i}"]
            np.testing.assert_array_equal(actions[-1], arrays[f"std_action_{i}"])
            np.testing.assert_array_equal(proprios[-1], np.concatenate([eef, gripper], axis=1))
            checked |= {f"{name}_{i}" for name in "raw_action raw_state std_action EEF_state gripper_state".split()}

            entries = (("action", actions[-1], expected["action"]), ("proprio", proprios[-1], expected["proprio"]))
            for kind, values, stats in entries:
                results = {
                    "bounds_q99": Range.from_entry(stats | {"bounds": QUANTILES}).normalize(values),
                    "bounds": Range.from_entry(stats | {"bounds": EXTREMES}).normalize(values),
                }
                checked.add(f"norm_normal_{kind}_{i}")  # by moments: no model here is trained with it
                for name, result in results.items():
                    name = f"norm_{name}_{kind}_{i}"
                    assert result.dtype == arrays[name].dtype
                    np.testing.assert_allclose(result, arrays[name], atol=FLOAT32_NOISE, rtol=FLOAT32_NOISE)
                    checked.add(name)

            chunks = arrays[f"chunk_action_{i}"]
            count, chunk_length = chunks.shape[:2]
            np.testing.assert_array_equal(chunk_actions(arrays[f"norm_bounds_q99_action_{i}"], chunk_length), chunks)
            np.testing.assert_array_equal(
                arrays[f"norm_bounds_q99_proprio_{i}"][:count, None], arrays[f"chunk_proprio_{i}"]
            )
            np.testing.assert_array_equal(np.arange(count)[:, None], arrays[f"chunk_timestep_{i}"])
            assert arrays[f"chunk_pad_mask_{i}"].all()  # nothing is padded
            checked |= {f"chunk_{name}_{i}" for name in "action proprio timestep pad_mask".split()}
        assert checked == set(arrays.files)

    got = compute_statistics(actions, proprios)
    assert got.keys() == expected.keys()
    for kind in ("action", "proprio"):
        assert got[kind].keys() == expected[kind].keys()
        for name, values in expected[kind].items():
            np.testing.assert_allclose(got[kind][name], values, atol=1e-6, rtol=1e-6, err_msg=f"{kind} {name}")
    assert [got[name] for name in ("num_transitions", "num_trajectories")] == [
        expected[name] for name in ("num_transitions", "num_trajectories")
    ]


def test_golden_rlds_chunk_original_openvla(golden_dir: Path):
    with np.load(golden_dir / "rlds_chunk_original_openvla.npz") as arrays:
        actions, expected = arrays["action"], arrays["chunk_action"]
    absolute = np.arange(actions.shape[1]) == actions.shape[1] - 1
    np.testing.assert_array_equal(chunk_actions_padded(actions, expected.shape[1], absolute), expected)
