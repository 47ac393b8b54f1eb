"""LIBERO's HDF5 files → RLDS as published: turned pictures, words of the name, the published rule for idle steps."""

from pathlib import Path

import numpy as np
import pytest

from rsd.data import DataError
from rsd.data.conversion import command, convert
from rsd.data.libero_hdf5 import HDF5Demonstrations, moving, name_in_words
from rsd.data.pictures import decode_picture
from rsd.data.rlds import RLDSDataset
from rsd.jpeg import encode_jpeg
from tests.data.demonstrations import write_dataset
from tests.data.foreign_formats import libero_demo, write_hdf5

pytest.importorskip("h5py", reason="pip install -e '.[dev]'")

FILE = "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
BDDL = {"problem_info": {"language_instruction": "Turn the stove on"}}


def test_as_published(tmp_path: Path):
    demos = {f"demo_{number}": libero_demo(number, side=256) for number in (10, 0, 2)}
    source = HDF5Demonstrations(write_hdf5(tmp_path / FILE, demos, BDDL).parent)
    directory = tmp_path / "out" / "libero_10" / "1.0.0"
    assert convert(source, directory) == 3
    data, stem = RLDSDataset(directory), FILE.removesuffix(".hdf5")
    assert data.file_paths() == [f"{stem}/demo_0", f"{stem}/demo_2", f"{stem}/demo_10"]
    read, demo = data.episode(1, images=True), demos["demo_2"]
    turned = demo["obs/agentview_rgb"][4][::-1, ::-1]
    assert read["observation/image"][4] == encode_jpeg(np.ascontiguousarray(turned))
    assert read["observation/wrist_image"][0] == encode_jpeg(demo["obs/eye_in_hand_rgb"][0][::-1, ::-1].copy())
    state = np.concatenate([demo["obs/ee_pos"], demo["obs/ee_ori"], demo["obs/gripper_states"]], axis=1)
    np.testing.assert_array_equal(read["observation/state"], state.astype(np.float32))
    np.testing.assert_array_equal(read["observation/joint_state"], demo["obs/joint_states"].astype(np.float32))
    np.testing.assert_array_equal(read["action"], demo["actions"].astype(np.float32))
    assert read["language_instruction"] == ["turn on the stove"] * 6
    assert source.notes == [
        f"{FILE}: problem_info says 'Turn the stove on'; taken from the name: 'turn on the stove' (--language)"
    ]
    published = write_dataset(tmp_path / "published", [3])
    assert (directory / "features.json").read_bytes() == (published / "features.json").read_bytes()
    assert (directory / "dataset_statistics.json").exists()
    assert command(source, directory) == [
        f"python train.py phase=rfsq data=rlds data.root={tmp_path / 'out'} data.name=libero_10 data.rate=20 "
        "data.gripper.open=-1 data.gripper.closed=1"
    ]


def test_the_published_rule_for_idle_steps():
    """Kept: what moves the arm, and what changes the gripper; against the last one that was kept, not the last one."""
    arm = [0, 0, 1, 0, 0, 0, 0, 1, 0]
    grip = [1, -1, -1, -1, 1, 1, -1, -1, -1]
    actions = np.zeros((9, 7))
    actions[:, 0], actions[:, -1] = arm, grip
    assert moving(actions).astype(int).tolist() == [0, 0, 1, 0, 1, 0, 1, 1, 0]
    assert moving(np.full((1, 7), 4e-5)).tolist() == [False] and moving(np.full((1, 7), 5e-5)).tolist() == [True]


def test_idle_steps_are_left_out_of_every_feature(tmp_path: Path):
    demo, still = libero_demo(0), libero_demo(1)
    still["actions"][:, :6], still["actions"][:, 6] = 0, -1
    write_hdf5(tmp_path / FILE, {"demo_0": demo, "demo_1": still})
    source = HDF5Demonstrations(tmp_path / FILE, no_noops=True, pictures="png")
    assert convert(source, tmp_path / "out" / "x" / "1.0.0") == 1
    read = RLDSDataset(tmp_path / "out" / "x" / "1.0.0").episode(0, images=True)
    kept = [0, 1, 3, 4]
    np.testing.assert_array_equal(read["action"], demo["actions"][kept].astype(np.float32))
    assert len(read["observation/state"]) == 4 and read["reward"].tolist() == [0, 0, 0, 1]
    for view, key in (("image", "agentview_rgb"), ("wrist_image", "eye_in_hand_rgb")):
        pictures = np.stack([decode_picture(one) for one in read[f"observation/{view}"]])
        np.testing.assert_array_equal(pictures, demo[f"obs/{key}"][kept][:, ::-1, ::-1])
    assert source.notes == [f"{tmp_path / FILE}: demo_1: left out: 6 steps, of which none moves the arm"]


def test_another_robot_in_the_same_layout(tmp_path: Path):
    random = np.random.default_rng(0)
    demo = {
        "actions": random.uniform(0, 1, (4, 9)),
        "obs/front": random.integers(0, 256, (4, 20, 30, 3), dtype=np.uint8),
        "obs/q": random.normal(size=(4, 8)),
        "obs/force": random.normal(size=(4, 1)),
    }
    attributes = {"env_args": {"env_kwargs": {"control_freq": 30}}, "problem_info": {"language_instruction": ["grasp"]}}
    write_hdf5(tmp_path / "arm" / "day1.h5", {"demo_0": demo}, attributes)
    source = HDF5Demonstrations(
        tmp_path / "arm", views={"main": "front"}, state=["q", "force"], rotate=False, pictures="png"
    )
    directory = tmp_path / "out" / "arm" / "1.0.0"
    convert(source, directory)
    read = RLDSDataset(directory).episode(0, images=True)
    np.testing.assert_array_equal(decode_picture(read["observation/main"][3]), demo["obs/front"][3])
    assert read["observation/state"].shape == (4, 9) and "observation/joint_state" not in read
    assert read["language_instruction"] == ["grasp"] * 4 and read["episode_metadata/file_path"] == "day1/demo_0"
    train, open_question = command(source, directory)
    assert train.endswith("data.rate=30 data.gripper.open=OPEN data.gripper.closed=CLOSED")
    assert "action dim 8 has 0." in open_question and open_question.endswith("need data.gripper.between=true")


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (
            {},
            {"obs/eye_in_hand_rgb": None},
            r"data/demo_0/obs has no eye_in_hand_rgb; there are \['agentview_rgb', .*--views",
        ),
        (
            {},
            {"obs/ee_ori": None},
            r"has no ee_states\+gripper_states or ee_pos\+ee_ori\+gripper_states; .* --state KEY",
        ),
        ({"state": ["robot0"]}, {}, r"obs has no robot0; there are \["),
        ({}, {"actions": None}, r"no data/demo_0/actions; data/demo_0 has \['obs', 'states'\]"),
        ({}, {"actions": np.zeros(6)}, r"data/demo_0/actions: expected 2 dims and at least one step, got \[6\]"),
        ({}, {"obs/agentview_rgb": np.zeros((6, 3, 8, 8), np.uint8)}, r"expected pictures \[n, H, W, 3\] of uint8"),
        ({}, {"obs/ee_pos": np.zeros((5, 3))}, r"data/demo_0/obs/ee_pos has 5 steps, data/demo_0/actions 6"),
        (
            {},
            {"obs/ee_pos": np.full((6, 3), np.nan)},
            r"episode '\w+/demo_0': steps/observation/state is nan at step 0",
        ),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, options, change, message):
    demo = {key: value for key, value in (libero_demo(0) | change).items() if value is not None}
    write_hdf5(tmp_path / FILE, {"demo_0": demo})
    with pytest.raises(DataError, match=message):
        convert(HDF5Demonstrations(tmp_path / FILE, **options), tmp_path / "out" / "x" / "1.0.0")


def test_a_later_demonstration_of_another_size_is_named_and_the_earlier_are_kept(tmp_path: Path):
    write_hdf5(tmp_path / FILE, {"demo_0": libero_demo(0), "demo_1": libero_demo(1, side=64)})
    directory = tmp_path / "out" / "x" / "1.0.0"
    with pytest.raises(DataError, match=r"_demo/demo_1', step 0: feature steps/observation/image: .*\[128, 128, 3\]"):
        convert(HDF5Demonstrations(tmp_path), directory)
    assert len(RLDSDataset(directory)) == 1


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no \.hdf5 or \.h5 files"):
        HDF5Demonstrations(tmp_path)
    (tmp_path / "a_demo.hdf5").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="is a Git LFS pointer"):
        HDF5Demonstrations(tmp_path)
    (tmp_path / "a_demo.hdf5").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a_demo\.hdf5 is no HDF5 file, or a damaged one"):
        HDF5Demonstrations(tmp_path)
    write_hdf5(tmp_path / "a_demo.hdf5", {"episode_0": libero_demo(0)})
    with pytest.raises(DataError, match=r"no data/demo_0 and so on; there are \['episode_0'\]"):
        HDF5Demonstrations(tmp_path)
    whole = write_hdf5(tmp_path / "a_demo.hdf5", {"demo_0": libero_demo(0)}).read_bytes()
    (tmp_path / "a_demo.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="or a damaged one"):
        HDF5Demonstrations(tmp_path)


def test_the_instruction(tmp_path: Path):
    assert name_in_words("LIVING_ROOM_SCENE2_put_both_cans_in_the_basket_demo") == "put both cans in the basket"
    path = write_hdf5(tmp_path / "day_1.hdf5", {"demo_0": libero_demo(0)})
    with pytest.raises(DataError, match=r"day_1\.hdf5: no instruction: .* --language name takes the name as it is"):
        HDF5Demonstrations(path)
    assert HDF5Demonstrations(path, language="name").episode("day_1/demo_0")["steps/language_instruction"] == "day 1"
    write_hdf5(path, {"demo_0": libero_demo(0)}, BDDL)
    assert HDF5Demonstrations(path).episode("day_1/demo_0")["steps/language_instruction"] == "Turn the stove on"
    path = write_hdf5(tmp_path / FILE, {"demo_0": libero_demo(0)}, BDDL)
    chosen = HDF5Demonstrations(path, language="problem_info")
    assert chosen.episode(chosen.file_paths()[0])["steps/language_instruction"] == "Turn the stove on"
    path = write_hdf5(
        tmp_path / "set" / FILE,
        {"demo_0": libero_demo(0)},
        {"problem_info": 3, "env_args": {"env_kwargs": {"control_freq": 10}}},
    )
    assert HDF5Demonstrations(path).rate == 10
    write_hdf5(tmp_path / "set" / "other_demo.hdf5", {"demo_0": libero_demo(0)})
    with pytest.raises(DataError, match=r"files of \['10.0', '20.0'\] Hz"):
        HDF5Demonstrations(tmp_path / "set")
