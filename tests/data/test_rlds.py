"""The RLDS reader on sets that the writer made, and on sets that are damaged in every way a user meets."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rsd.data import DataError
from rsd.data.libero_records import episode_features
from rsd.data.rlds import RLDSDataset, check_dataset
from rsd.data.tf_example import encode_example
from rsd.data.tfrecord import frame, scan
from rsd.jpeg import decode_jpeg, jpeg_round_trip
from tests.data.demonstrations import NAME, demonstration, write_dataset

LENGTHS = [5, 12, 3]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), LENGTHS)


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / NAME / "1.0.0"))


def _shard(directory: Path) -> Path:
    return next(directory.glob("*.tfrecord*"))


def test_reads_what_was_written(written: Path):
    dataset = RLDSDataset(written)
    assert (dataset.name, dataset.version, len(dataset)) == (NAME, "1.0.0", 3)
    assert dataset.file_paths() == [f"toy/demo_{number}" for number in range(3)]
    for number in (2, 0, 1):  # random access
        expected, got = demonstration(number, LENGTHS[number]), dataset.episode(number, images=True)
        steps, n = expected["steps"], LENGTHS[number]
        np.testing.assert_array_equal(got["action"], steps["action"])
        for name in ("state", "joint_state"):
            np.testing.assert_array_equal(got[f"observation/{name}"], steps["observation"][name])
        assert got["language_instruction"] == [f"put toy {number} away"] * n
        assert got["is_first"].tolist() == [True] + [False] * (n - 1)
        assert got["is_last"].tolist() == got["is_terminal"].tolist() == [False] * (n - 1) + [True]
        assert got["reward"].tolist() == [0.0] * (n - 1) + [1.0]
        assert got["discount"].tolist() == [1.0] * n


def test_pictures_are_stored_as_tensorflow_would(written: Path):
    dataset = RLDSDataset(written)
    episode = dataset.episode(0, images=True)
    _, spans = dataset.episode_and_spans(0, ("observation/image", "observation/wrist_image"))
    for view in ("image", "wrist_image"):
        for step, picture in enumerate(demonstration(0, LENGTHS[0])["steps"]["observation"][view]):
            data = episode[f"observation/{view}"][step]
            assert dataset.read_bytes(0, *spans[f"observation/{view}"][step].tolist()) == data
            np.testing.assert_array_equal(decode_jpeg(data), jpeg_round_trip(picture))


def test_statistics_are_those_the_writer_left(written: Path):
    statistics = json.loads((written / "dataset_statistics.json").read_text())
    assert statistics == {NAME: RLDSDataset(written).statistics()}
    assert statistics[NAME]["num_transitions"] == sum(LENGTHS)


def test_content_id_follows_the_data(written: Path, tmp_path: Path):
    same, other = write_dataset(tmp_path / "same", LENGTHS), write_dataset(tmp_path / "other", [*LENGTHS[:2], 4])
    assert RLDSDataset(written).content_id() == RLDSDataset(same).content_id() != RLDSDataset(other).content_id()


def test_no_tensorflow_comes_in(written: Path):
    program = (
        f"import sys; from rsd.data.rlds import RLDSDataset; RLDSDataset({str(written)!r}).episode(0); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_several_files_as_published(directory: Path):
    """The published sets come in 16 or 32 files."""
    shard = _shard(directory)
    content, (spans, _) = shard.read_bytes(), scan(shard)
    cut = spans[1].offset - 12
    shard.unlink()
    for number, piece in enumerate((content[:cut], content[cut:])):
        (directory / f"{NAME}-train.tfrecord-0000{number}-of-00002").write_bytes(piece)
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["1", "2"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    dataset = RLDSDataset(directory)
    assert dataset.file_paths() == [f"toy/demo_{number}" for number in range(3)]
    start, length = dataset.episode_and_spans(2, ["observation/image"])[1]["observation/image"][1].tolist()
    assert dataset.read_bytes(2, start, length) == dataset.episode(2, images=True)["observation/image"][1]


def test_root_missing(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"data\.root .*nowhere does not exist; .*scripts/collect_demos\.py.*set data\."
    ):
        check_dataset(tmp_path / "nowhere" / NAME / "1.0.0")


def test_data_set_missing_lists_the_others(directory: Path):
    with pytest.raises(DataError, match=rf"no data set at .*holds \['{NAME}/1\.0\.0'\]"):
        check_dataset(directory.parent.parent / "libero_goal_no_noops" / "1.0.0")


def test_empty_directory(tmp_path: Path):
    directory = tmp_path / NAME / "1.0.0"
    directory.mkdir(parents=True)
    with pytest.raises(DataError, match=r"is empty; expected an RLDS data set; collect"):
        check_dataset(directory)


def test_not_rlds(tmp_path: Path):
    directory = tmp_path / NAME / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "holiday.txt").write_text("sun")
    with pytest.raises(DataError, match=r"is not an RLDS data set: dataset_info\.json and features\.json missing"):
        RLDSDataset(directory)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_damaged_json(directory: Path, name: str, content: str):
    (directory / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name} is not JSON"):
        RLDSDataset(directory)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", f"{NAME}-train.tfrecord-00000-of-00001"])
def test_an_empty_file_is_called_empty(directory: Path, name: str):
    (directory / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name} is damaged \(it is empty, 0 bytes\); copy it again"):
        RLDSDataset(directory)


def test_a_web_page_shorter_than_any_record(directory: Path):
    _shard(directory).write_bytes(b"<html/>")
    with pytest.raises(DataError, match=r"is a web page, not the file itself \(7 bytes\)"):
        RLDSDataset(directory)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ['{"holiday": 1}', '"holiday"'])
def test_json_of_something_else(directory: Path, name: str, content: str):
    (directory / name).write_text(content)
    with pytest.raises(DataError, match=r"is not an RLDS data set that tensorflow-datasets reads.*; see that") as error:
        RLDSDataset(directory)
    assert "\n" not in str(error.value)


def test_missing_file(directory: Path):
    _shard(directory).unlink()
    with pytest.raises(DataError, match=r"1 of the 1 files that dataset_info.json names are missing: libero_toy"):
        RLDSDataset(directory)


def test_a_folder_in_the_place_of_a_file(directory: Path):
    path = _shard(directory)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"libero_toy_no_noops-train.tfrecord-00000-of-00001 is a folder, expected a"):
        RLDSDataset(directory)


def test_a_number_of_episodes_below_zero(directory: Path):
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["-1"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"shardLengths of split 'train' holds -1, expected numbers of episodes from 0"):
        RLDSDataset(directory)


@pytest.mark.parametrize("record", [b"", b"garbage of some length", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_record_that_is_no_example_names_file_and_episode(directory: Path, record: bytes):
    _shard(directory).write_bytes(_shard(directory).read_bytes() + frame(record))
    info = json.loads((directory / "dataset_info.json").read_text())
    number = int(info["splits"][0]["shardLengths"][0])
    info["splits"][0]["shardLengths"] = [str(number + 1)]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=rf"episode {number}.*; (fetch|collect|write|build)") as error:
        RLDSDataset(directory).episode(number)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lost", [1, 100, 2000])
def test_truncated_file(directory: Path, lost: int):
    shard = _shard(directory)
    content = shard.read_bytes()
    shard.write_bytes(content[:-lost])
    with pytest.raises(DataError) as caught:
        RLDSDataset(directory)
    for part in (str(shard), "promises 3 records, only 2 are whole", f"ends at byte {len(content) - lost}"):
        assert part in str(caught.value)


def test_corrupt_record(directory: Path):
    shard = _shard(directory)
    content = bytearray(shard.read_bytes())
    content[500] ^= 1
    shard.write_bytes(content)
    dataset = RLDSDataset(directory)
    with pytest.raises(DataError, match=rf"{shard}: corrupt record at byte 12: checksum of \d+ bytes is 0x"):
        dataset.episode(0)
    dataset.episode(1)


def test_uncounted_records_are_not_there(directory: Path):
    with open(_shard(directory), "ab") as file:
        file.write(b"half a header"[:7])
    assert len(RLDSDataset(directory)) == 3


def _replace_record(directory: Path, features: dict) -> None:
    _shard(directory).write_bytes(frame(encode_example(features)))
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["1"]
    (directory / "dataset_info.json").write_text(json.dumps(info))


def _features(num_steps: int) -> dict:
    return episode_features(demonstration(0, num_steps)["steps"], "toy")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("steps/action", np.zeros(4 * 7 + 1, np.float32), r"action: expected shape \['n', 7\], got 29 values"),
        ("steps/action", np.zeros(4 * 7, np.int64), r"action: expected floats, got integers"),
        ("steps/observation/state", np.zeros(3 * 8, np.float32), r"state: expected shape \[4, 8\] .*got 3 entries"),
        ("steps/observation/image", [b"x"] * 3, r"image: expected shape \[4, 256, 256, 3\] .*got 3 entries"),
        ("steps/reward", None, r"steps/reward: expected floats, got nothing; the record has"),
    ],
)
def test_wrong_feature_shape(directory: Path, name: str, values: object, message: str):
    features = _features(4)
    if values is None:
        del features[name]
    else:
        features[name] = values
    _replace_record(directory, features)
    with pytest.raises(DataError, match=message):
        RLDSDataset(directory).episode(0, images=True)


def test_not_an_example(directory: Path):
    _shard(directory).write_bytes(frame(b"hello"))
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["1"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"record at byte 12 is not a tf\.train\.Example"):
        RLDSDataset(directory).episode(0)
