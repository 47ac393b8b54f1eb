"""The RLDS writer: killed, full disk, opened twice, given the wrong things; nothing that was finished is ever lost."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd.data import DataError
from rsd.data.rlds import RLDSDataset, RLDSWriter
from rsd.data.tf_example import encode_example
from rsd.data.tfrecord import frame, scan
from rsd.files import WriteError
from rsd.jpeg import encode_jpeg
from tests.data.demonstrations import NAME, demonstration, write_dataset

SHARD = f"{NAME}-train.tfrecord-00000-of-00001"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), [4, 3])


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / NAME / "1.0.0"))


def _paths(count: int) -> list[str]:
    return [f"toy/demo_{number}" for number in range(count)]


def test_readable_after_every_episode_without_finishing(tmp_path: Path):
    with RLDSWriter(tmp_path, NAME) as writer:
        for number in range(3):
            writer.write_episode(demonstration(number, 3))
            assert RLDSDataset(tmp_path).file_paths() == writer.file_paths() == _paths(number + 1)


def test_append_gives_the_same_files_as_one_session(written: Path, tmp_path: Path):
    for number, length in enumerate([4, 3]):
        with RLDSWriter(tmp_path, NAME) as writer:
            assert writer.file_paths() == _paths(number)
            writer.write_episode(demonstration(number, length))
            writer.finish()
            writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written.iterdir())
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_info_counts_episodes_and_bytes(written: Path):
    split = json.loads((written / "dataset_info.json").read_text())["splits"][0]
    spans, _ = scan(written / SHARD)
    assert split["shardLengths"] == ["2"]
    assert split["numBytes"] == str(sum(span.length for span in spans))


def test_killed_at_any_byte_of_the_second_record(directory: Path):
    """The first episode is counted, the second is being written: cut at every kind of place, read, go on."""
    whole = (directory / SHARD).read_bytes()
    (first, second), end = scan(directory / SHARD)
    begin = first.offset + first.length + 4
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["1"]
    near = [begin, begin + 1, begin + 8, begin + 11, begin + 12, begin + 13, end - 5, end - 4, end - 1, end]
    for size in [*near, *np.linspace(second.offset, end, 7, dtype=int)[1:-1]]:
        (directory / SHARD).write_bytes(whole[:size])
        (directory / "dataset_info.json").write_text(json.dumps(info))
        assert RLDSDataset(directory).file_paths() == _paths(1)  # a reader in between sees no torn record
        with RLDSWriter(directory, NAME) as writer:
            assert writer.file_paths() == _paths(2 if size == end else 1)
            if size < end:
                writer.write_episode(demonstration(1, 3))
        assert (directory / SHARD).read_bytes() == whole
        assert RLDSDataset(directory).file_paths() == _paths(2) or size == end


def test_full_disk_loses_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch):
    before = (directory / SHARD).read_bytes()
    real_write = os.pwrite

    def fill_up(file: int, data: Any, offset: int) -> int:
        if offset > len(before):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(file, data[:1000], offset)

    with RLDSWriter(directory, NAME) as writer:
        monkeypatch.setattr(os, "pwrite", fill_up)
        with pytest.raises(WriteError, match=rf"cannot write \S+{SHARD}: No space left .*; make room"):
            writer.write_episode(demonstration(2, 3))
        monkeypatch.undo()
        assert (directory / SHARD).read_bytes() == before
        assert writer.file_paths() == RLDSDataset(directory).file_paths() == _paths(2)
        writer.write_episode(demonstration(2, 3))  # space again
    assert RLDSDataset(directory).file_paths() == _paths(3)


def test_damaged_counted_episode_is_not_cut_away(directory: Path):
    content = (directory / SHARD).read_bytes()[:-10]
    (directory / SHARD).write_bytes(content)
    with pytest.raises(DataError, match=r"counts 2 episodes, only 1 are whole .*nothing was changed"):
        RLDSWriter(directory, NAME)
    assert (directory / SHARD).read_bytes() == content


def test_corrupt_file_is_left_as_it_is(directory: Path):
    content = bytearray((directory / SHARD).read_bytes())
    content[300] ^= 1
    (directory / SHARD).write_bytes(content)
    with pytest.raises(DataError, match="corrupt record at byte 12"):
        RLDSWriter(directory, NAME)
    assert (directory / SHARD).read_bytes() == content


def test_two_writers_at_once(directory: Path):
    with RLDSWriter(directory, NAME), pytest.raises(DataError, match="is being written by another process"):
        RLDSWriter(directory, NAME)
    RLDSWriter(directory, NAME).close()


def test_another_data_set_in_the_directory(directory: Path):
    with pytest.raises(DataError, match=rf"holds {SHARD}, which this writer did not write"):
        RLDSWriter(directory, "libero_goal_no_noops")
    with pytest.raises(DataError, match=rf"holds data set {NAME} 1\.0\.0, expected {NAME} 2\.0\.0"):
        RLDSWriter(directory, NAME, "2.0.0")


def test_other_features_in_the_directory(directory: Path):
    (directory / "features.json").write_text("{}")
    with pytest.raises(DataError, match="describes other features"):
        RLDSWriter(directory, NAME)


def test_another_writers_set_of_the_same_name_is_left_as_it_is(directory: Path):
    """Its one file may go on behind the records that it counts; nothing of it is cut off."""
    record = encode_example({"steps/action": np.zeros(7, np.float32)})
    content = frame(record) + b"more"
    (directory / SHARD).write_bytes(content)
    (directory / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=r"the record at byte 12 has no episode_metadata/file_path, by which"):
        RLDSWriter(directory, NAME)
    (directory / "features.json").write_text("{}")
    with pytest.raises(DataError, match="describes other features"):
        RLDSWriter(directory, NAME)
    assert (directory / SHARD).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_info.json", b"", r"is damaged \(it is empty, 0 bytes\); restore it"),
        ("dataset_info.json", b"{", "is not valid JSON"),
        ("dataset_info.json", b"[]", r"it is \[\], expected an object"),
        ("dataset_info.json", b'{"name": "a", "version": "1"}', "lacks entry 'splits'"),
        ("dataset_info.json", b'{"name": "a", "version": "1", "splits": [{}]}', "lacks entry 'splits.0.shardLengths'"),
        ("features.json", b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        ("features.json", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_damaged_metadata_is_one_line_and_nothing_is_changed(directory: Path, name: str, content: bytes, message: str):
    shard = (directory / SHARD).read_bytes()
    (directory / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        RLDSWriter(directory, NAME)
    assert (directory / SHARD).read_bytes() == shard


def test_same_episode_twice(directory: Path):
    with RLDSWriter(directory, NAME) as writer:
        with pytest.raises(DataError, match=r"episode 'toy/demo_1' is already there"):
            writer.write_episode(demonstration(1, 3))
        assert len(writer) == 2


def test_nothing_to_finish(tmp_path: Path):
    with RLDSWriter(tmp_path, NAME) as writer, pytest.raises(DataError, match="no episode was written"):
        writer.finish()


def test_jpeg_bytes_are_kept(tmp_path: Path):
    episode = demonstration(0, 2)
    jpegs = [encode_jpeg(picture) for picture in episode["steps"]["observation"]["image"]]
    episode["steps"]["observation"]["image"] = jpegs
    with RLDSWriter(tmp_path, NAME) as writer:
        writer.write_episode(episode)
    assert RLDSDataset(tmp_path).episode(0, images=True)["observation/image"] == jpegs


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("action", np.zeros((3, 6)), r"feature action: expected shape \[3, 7\], got \[3, 6\]"),
        ("action", np.zeros((0, 7)), r"has no steps"),
        ("action", np.full((3, 7), np.nan), r"'toy/demo_9': action is nan at step 0, dim 0 \(21 such"),
        ("state", np.zeros((2, 8)), r"observation/state: expected shape \[3, 8\], got \[2, 8\]"),
        ("image", np.zeros((2, 256, 256, 3), np.uint8), r"observation/image: expected 3 pictures, .*got 2"),
        ("image", np.zeros((3, 128, 256, 3), np.uint8), r"step 0: expected \[256, 256, 3\] uint8, got \[128, 256, 3\]"),
        ("image", np.zeros((3, 256, 256, 3), np.float32), r"expected \[256, 256, 3\] uint8, got .* float32"),
        ("wrist_image", [b"no picture"] * 3, r"observation/wrist_image at step 0 is no JPEG"),
        ("wrist_image", [encode_jpeg(np.zeros((64, 64, 3), np.uint8))] * 3, r"got \[64, 64, 3\] uint8"),
    ],
)
def test_wrong_episode_writes_nothing(tmp_path: Path, name: str, values: Any, message: str):
    episode = demonstration(9, 3)
    (episode["steps"] if name == "action" else episode["steps"]["observation"])[name] = values
    with RLDSWriter(tmp_path, NAME) as writer:
        with pytest.raises(DataError, match=message):
            writer.write_episode(episode)
        assert (tmp_path / SHARD).stat().st_size == len(writer) == 0


@pytest.mark.parametrize(
    ("name", "version"), [(NAME, "abc"), (NAME, "1.0"), (NAME, "01.0.0"), (NAME, ""), ("", "1.0.0")]
)
def test_what_readers_cannot_name_is_refused_before_anything_is_made(tmp_path, name, version):
    with pytest.raises(DataError, match=r"three numbers as 1\.0\.0"):
        RLDSWriter(tmp_path / "set", name, version)
    assert not list(tmp_path.iterdir())
