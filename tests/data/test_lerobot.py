"""LeRobot v3 → RLDS: the picture of every step is its own, also in a video of several; errors name the place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rsd.data import DataError
from rsd.data.conversion import command, convert
from rsd.data.lerobot import LeRobotSet, rlds_name
from rsd.data.lerobot_videos import pictures_at
from rsd.data.pictures import JPEG, PNG, decode_picture
from rsd.data.rlds import RLDSDataset
from tests.data.foreign_formats import FPS, HEIGHT, WIDTH, shade, write_lerobot, write_video

pytest.importorskip("av", reason="pip install -e '.[dev]'")

FRONT = "observation.images.front"
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"
EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "pick-up")


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "pick-up"))


def changed(root: Path, file: str, column: str, value: list | None) -> Path:
    """A column of a table replaced, or removed."""
    table = pq.read_table(root / file)
    index = table.column_names.index(column)
    table = table.remove_column(index) if value is None else table.set_column(index, column, pa.array(value))
    pq.write_table(table, root / file)
    return root


def info(root: Path, **values) -> Path:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return root


@pytest.mark.parametrize("pictures", ["jpeg", "png"])
def test_every_step_has_its_own_picture_and_numbers(written: Path, tmp_path: Path, pictures):
    source = LeRobotSet(written, pictures=pictures)
    directory = tmp_path / "out" / "pick_up" / "1.0.0"
    assert convert(source, directory) == 3
    data = RLDSDataset(directory)
    assert data.file_paths() == [f"pick-up/episode_00000{number}" for number in range(3)]
    for number, length in enumerate((5, 4, 3)):
        read = data.episode(number, images=True)
        for camera, view in enumerate(("front", "wrist")):
            decoded = [decode_picture(one) for one in read[f"observation/{view}"]]
            assert [one.shape for one in decoded] == [(HEIGHT, WIDTH, 3) if view == "front" else (8, 12, 3)] * length
            expected = [shade(number, step, camera) for step in range(length)]
            np.testing.assert_allclose([one.mean() for one in decoded], expected, atol=2.5)
            assert all(one.startswith({"jpeg": JPEG, "png": PNG}[pictures]) for one in read[f"observation/{view}"])
        assert read["observation/state"].tolist() == [[number, step, 0.5] for step in range(length)]
        assert read["observation/environment_state"].tolist() == [[[1, 2], [3, step]] for step in range(length)]
        np.testing.assert_allclose(read["action"][:, 1], 0.1 * np.arange(length), rtol=1e-6)
        tasks = ["lift the left one", "lift the right one"]
        assert read["language_instruction"] == [tasks[(number + step // 4) % 2] for step in range(length)]
        assert read["operator"] == ["A"] * length and read["reward"].tolist() == [0] * (length - 1) + [1]
        assert read["is_terminal"].tolist() == [False] * (length - 1) + [True]
    assert source.notes == [f"{written}: feature observation.audio.mic is left out: of audio"]
    assert "shoulder.pos, elbow.pos, gripper.pos" in (directory / "features.json").read_text()
    assert command(source, directory) == [
        f"python train.py phase=rfsq data=rlds data.root={tmp_path / 'out'} data.name=pick_up data.rate=10 "
        "data.gripper.open=OPEN data.gripper.closed=CLOSED",
        "Words in capitals are for you to say: action dim 2 has 0 and 1",
    ]


def test_a_picture_that_is_stored_as_wanted_is_kept(written: Path):
    stored = pq.read_table(written / DATA)["observation.images.wrist"].to_pylist()
    wrist = LeRobotSet(written, pictures="png").episode("pick-up/episode_000000")["steps/observation/wrist"]
    assert wrist == [one["bytes"] for one in stored[:5]]


def test_lerobots_own_codec_is_read(tmp_path: Path):
    shades = [40 * step for step in range(6)]
    write_video(tmp_path / "a.mp4", shades, codec="libsvtav1")
    frames = list(pictures_at(tmp_path / "a.mp4", np.arange(2, 6) / FPS, FPS, "episode 0"))
    np.testing.assert_allclose([frame.mean() for frame in frames], shades[2:], atol=4)


def test_interrupted_and_grown(written: Path, tmp_path: Path, monkeypatch):
    once, twice = tmp_path / "once" / "set" / "1.0.0", tmp_path / "twice" / "set" / "1.0.0"
    convert(LeRobotSet(written), once)
    source = LeRobotSet(written)
    read, asked = source.episode, []

    def interrupted(file_path):
        asked.append(file_path)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return read(file_path)

    monkeypatch.setattr(source, "episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, twice)
    assert len(RLDSDataset(twice)) == 1
    assert convert(LeRobotSet(written), twice) == 2 and convert(LeRobotSet(written), twice) == 0
    for path in once.iterdir():
        assert path.read_bytes() == (twice / path.name).read_bytes(), path.name
    with pytest.raises(
        DataError, match=r"was begun with others: pictures: jpeg → png; give the same, or another --name"
    ):
        convert(LeRobotSet(written, pictures="png"), twice)
    (twice / "conversion.json").unlink()
    with pytest.raises(DataError, match=r"holds 3 episodes that were not converted; choose another --name"):
        convert(LeRobotSet(written), twice)


def test_cameras_and_splits_are_chosen(root: Path, tmp_path: Path):
    info(root, splits={"train": "0:2", "val": "2:3"})
    source = LeRobotSet(root, views=["wrist"])
    convert(source, tmp_path / "out" / "set" / "1.0.0")
    data = RLDSDataset(tmp_path / "out" / "set" / "1.0.0")
    assert len(data) == 2 and [name for name, spec in data.features.items() if spec.kind == "image"] == [
        "steps/observation/wrist"
    ]
    assert [note.split(": ")[1] for note in source.notes] == [
        "feature observation.audio.mic is left out",
        "camera front is left out (--views)",
        "split 'val' (2:3) is left out (--splits)",
    ]
    assert LeRobotSet(root, splits=["val"]).file_paths() == ["pick-up/episode_000002"]
    with pytest.raises(DataError, match=r"no camera 'top'; there are \['front', 'wrist'\]; set --views"):
        LeRobotSet(root, views=["top"])
    with pytest.raises(DataError, match=r"no split 'test'; there are \{'train': '0:2', 'val': '2:3'\}"):
        LeRobotSet(root, splits=["test"])


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("v2.1", r"format v2\.1, expected v3\.0; convert it: python -m lerobot\.scripts\.convert_dataset_v21_to_v30 "),
        ("v2.0", r"format v2\.0, expected v3\.0; bring it to v2\.1 by LeRobot's older converters, then convert it"),
        ("v4.0", r"format v4\.0, expected v3\.0; export it as v3\.0"),
    ],
)
def test_other_versions_are_refused_by_name(root: Path, version: str, message: str):
    with pytest.raises(DataError, match=message):
        LeRobotSet(info(root, codebase_version=version))


def test_names():
    names = {
        "observation.images.front": "steps/observation/front",
        "observation.image": "steps/observation/image",
        "observation.state": "steps/observation/state",
        "observation.states.joint": "steps/observation/states_joint",
        "action": "steps/action",
        "action.left": "steps/action_left",
        "next.reward": "steps/reward",
        "next.success": "steps/next_success",
    }
    assert {key: rlds_name(key) for key in names} == names


def feature(**spec):
    return {"dtype": "float32", "shape": [2], "names": None} | spec


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"observation.state": feature()}, r"no feature 'action'; there are \['observation\.state'\]"),
        ({"action": feature(), "a.b": feature(), "a_b": feature()}, r"two features become steps/a_b; rename a_b"),
        ({"action": feature(shape=[0])}, r"feature action is .*, expected its dtype and its shape, sizes from 1"),
        ({"action": feature(dtype=None)}, "expected its dtype and its shape"),
        (
            {"action": feature(), "observation.image": feature(dtype="video", shape=[4, 5])},
            r"has shape \[4, 5\], expected",
        ),
    ],
)
def test_features_that_cannot_become_others(root: Path, features, message):
    info(root, features=features)
    with pytest.raises(DataError, match=message):
        LeRobotSet(root)


def test_depth_maps_are_left_out(root: Path):
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[FRONT]["info"]["video.is_depth_map"] = True
    source = LeRobotSet(info(root, features=features))
    assert f"{root}: feature {FRONT} is left out: a depth map, no picture in colours" in source.notes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "meta/info.json").unlink(), r"pick-up is no LeRobot data set: it has no meta/info\.json"),
        (lambda root: (root / "meta/info.json").write_text("{"), r"info\.json .* not valid JSON"),
        (lambda root: info(root, fps=0), r"fps is 0, expected frames a second above 0"),
        (lambda root: info(root, splits={"train": "all"}), r"a split is 'all', expected episodes as 0:50"),
        (lambda root: (root / "meta/tasks.parquet").unlink(), r"meta/tasks\.parquet: no such file; fetch"),
        (lambda root: shutil.rmtree(root / "meta/episodes"), r"meta/episodes holds no chunk-000/file-000\.parquet"),
        (lambda root: (root / DATA).write_bytes(b"PAR1"), r"file-000\.parquet is no parquet file, or a damaged one"),
        (lambda root: (root / DATA).write_bytes(b"version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
        (lambda root: (root / VIDEO).unlink(), r"file-000\.mp4: no such file, with episode 0, feature observation\.im"),
        (
            lambda root: (root / VIDEO).write_bytes(b"nothing"),
            r"file-000\.mp4: episode 0, feature .*: cannot be decoded",
        ),
        (
            lambda root: info(root, fps=7),
            r"episode 0, feature .*, step 1: expected a frame at 0\.1429 \(±0\.0357\) s, got",
        ),
        (lambda root: write_video(root / VIDEO, [0] * 7), r"episode 1, .*, step 2: expected a frame at 0\.7000"),
        (lambda root: info(root, video_path="../{video_key}"), r"path '\.\./.*' leads out of the data set"),
        (lambda root: info(root, video_path="{other}"), r"'\{other\}' has no place for episode 0"),
        (lambda root: changed(root, DATA, "action", None), r"episode 0, feature action: no such column; there are"),
        (lambda root: changed(root, DATA, "task_index", None), r"no column task_index; there are"),
        (lambda root: changed(root, DATA, "task_index", [7] * 12), r"episode 0, feature task_index: task 7 is not in"),
        (
            lambda root: changed(root, DATA, "frame_index", [0] * 12),
            r"episode 0: meta/episodes counts 5 steps, expected",
        ),
        (
            lambda root: changed(root, DATA, "action", [[0.0, 1.0]] * 12),
            r"expected \[5, 3\] numbers, got 10 of float64",
        ),
        (
            lambda root: changed(root, DATA, "action", [[0.0, None, 1.0]] * 12),
            r"feature action: expected \[5, 3\] numbers, got 5 missing ones",
        ),
        (lambda root: changed(root, DATA, "action", [[0.0, np.nan, 1.0]] * 12), r"action is nan at step 0, dim 1"),
        (lambda root: changed(root, DATA, "operator", [None] * 12), r"feature operator: expected texts, got None"),
        (
            lambda root: changed(root, DATA, "observation.images.wrist", [{"bytes": b"x", "path": ""}] * 12),
            r"step 0, feature obs",
        ),
        (
            lambda root: changed(root, DATA, "observation.images.wrist", [{"bytes": None, "path": "a.png"}] * 12),
            r"no file .*a\.png",
        ),
        (lambda root: changed(root, EPISODES, "length", [6, 4, 3]), r"counts 6 steps, .*got 5 rows"),
        (lambda root: changed(root, EPISODES, "episode_index", [0, 0, 2]), r"episode 0 is there twice"),
        (lambda root: changed(root, EPISODES, "length", None), r"no column length; there are"),
        (
            lambda root: changed(root, EPISODES, f"videos/{FRONT}/from_timestamp", None),
            r"episode 0 has no videos/.*from_tim",
        ),
    ],
)
def test_damage_is_named_with_its_place(root: Path, tmp_path: Path, damage, message):
    damage(root)
    with pytest.raises(DataError, match=message):
        convert(LeRobotSet(root), tmp_path / "out" / "set" / "1.0.0")


def test_names_tell_which_dims_are_grippers(root: Path, tmp_path: Path):
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["action"]["names"] = ["left_gripper", "elbow", "Right Gripper"]
    source = LeRobotSet(info(root, features=features), views=["wrist"])
    directory = tmp_path / "out" / "set" / "1.0.0"
    convert(source, directory)
    train, question = command(source, directory)
    assert "'data.gripper.dims=[0,2]'" in train and question.startswith(
        "Words in capitals are for you to say: action dim 0, 2 "
    )
