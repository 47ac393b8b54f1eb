"""Streaming: the same numbers as reading whole, from an index that is made once, in an order that stays near."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd.data import DataError, streaming
from rsd.data.datamodules import ChunkDataModule, FrameDataModule
from rsd.data.datasets import Demonstrations
from rsd.data.streaming import EpisodeWindows, Stream, StreamedDemonstrations
from rsd.errors import SettingError
from tests.data.demonstrations import NAME, write_dataset

VIEWS = ("image", "wrist_image")
LENGTHS = [9, 12, 10, 8, 14]
MEGABYTE = 1e6


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("toy"), LENGTHS)


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("index")


def opened(directory, index_dir) -> StreamedDemonstrations:
    return StreamedDemonstrations(directory, VIEWS, index_dir=index_dir)


def test_everything_is_as_if_it_was_read_whole(directory, index_dir):
    whole, streamed = Demonstrations(directory, VIEWS), opened(directory, index_dir)
    assert streamed.norm_stats == whole.norm_stats
    assert streamed.content_id() == whole.content_id()
    assert streamed.instructions() == whole.instructions()
    assert len(streamed.trajectories) == len(LENGTHS)
    for own, expected in zip(streamed.trajectories, whole.trajectories, strict=True):
        assert np.array_equal(own.actions, expected.actions) and np.array_equal(own.proprio, expected.proprio)
        assert own.instructions == expected.instructions
    assert np.array_equal(streamed.picture(3, 7, "wrist_image"), whole.picture(3, 7, "wrist_image"))


def test_records_are_read_once_by_whoever_comes_first(directory, index_dir, monkeypatch):
    opened(directory, index_dir)
    monkeypatch.setattr(StreamedDemonstrations, "_read", None)  # would be called to read a record
    assert len(opened(directory, index_dir).trajectories) == len(LENGTHS)


def test_an_index_belongs_to_the_content(directory, tmp_path):
    opened(directory, tmp_path / "index")
    other = write_dataset(tmp_path, [9, 12])
    assert len(opened(other, tmp_path / "index").trajectories) == 2
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_a_pass_that_is_broken_off_goes_on(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "PART_EPISODES", 2)
    read = []

    def failing(self, index, at):
        read.append(index)
        if index == at:
            raise KeyboardInterrupt
        return Demonstrations._read(self, index)

    monkeypatch.setattr(StreamedDemonstrations, "_read", lambda self, index: failing(self, index, at=3))
    with pytest.raises(KeyboardInterrupt):
        opened(directory, tmp_path)
    monkeypatch.setattr(StreamedDemonstrations, "_read", lambda self, index: failing(self, index, at=-1))
    read.clear()
    resumed = opened(directory, tmp_path)
    assert read == [2, 3, 4]
    assert resumed.norm_stats == Demonstrations(directory, VIEWS).norm_stats
    assert resumed.instructions() == Demonstrations(directory, VIEWS).instructions()
    assert not list(tmp_path.rglob("part-*"))


@pytest.mark.parametrize("name", ["action.npy", "length.npy", "index.json"])
def test_a_damaged_index_is_refused(directory, tmp_path, name):
    opened(directory, tmp_path)
    (file,) = tmp_path.rglob(name)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"remove .*, and the next run makes it again"):
        opened(directory, tmp_path)


def test_an_index_of_other_length_is_refused(directory, tmp_path):
    opened(directory, tmp_path)
    (file,) = tmp_path.rglob("proprio.npy")
    np.save(file, np.load(file)[:-1])
    with pytest.raises(DataError, match=r"proprio\.npy is cut off"):
        opened(directory, tmp_path)


def test_windows_hold_whole_episodes_of_a_new_order():
    episode = np.repeat([0, 1, 4, 5], [3, 2, 4, 3])
    order = EpisodeWindows(episode, 5, seed=1)
    rows = order.order()
    assert sorted(rows) == list(range(12))
    for start in range(0, 12, 5):
        assert len(set(episode[rows[start : start + 5]])) <= 3  # of 5 rows, two episodes may be cut
    assert np.array_equal(rows, EpisodeWindows(episode, 5, seed=1).order())
    order.set_epoch(1)
    assert not np.array_equal(rows, order.order())
    everything = EpisodeWindows(episode, 100, seed=1).order()
    assert len({episode[row] for row in everything[:5]}) > 1


def test_ranks_have_pieces_of_their_own():
    episode = np.repeat(np.arange(4), 4)
    order = EpisodeWindows(episode, 4, seed=0)
    first, second = order.share(0, 2), order.share(1, 2)
    assert sorted([*first, *second]) == list(range(16))
    assert not set(episode[first]) & set(episode[second])


def module(directory, index_dir, num_workers=0, **options) -> FrameDataModule:
    return FrameDataModule(
        root=str(directory.parents[1]),
        name=NAME,
        version="1.0.0",
        chunk_length=8,
        views=VIEWS,
        batch_size=4,
        num_workers=num_workers,
        seed=3,
        collate=partial(collate),
        stream=Stream(index_dir=str(index_dir), **options),
    )


def collate(items):
    return [(item["episode"], item["step"]) for item in items]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stopped_run_goes_on_where_it_was(directory, index_dir, num_workers):
    def loader():
        data = module(directory, index_dir, num_workers, buffer_mb=0.5)
        data.setup()
        return data.train_dataloader()

    whole, stopped, resumed = list(loader()), loader(), loader()
    assert isinstance(stopped.sampler, EpisodeWindows)
    iterator = iter(stopped)
    seen = [next(iterator) for _ in range(2)]
    resumed.load_state_dict(stopped.state_dict())
    assert [*seen, *resumed] == whole


def test_the_window_is_as_large_as_the_buffer(directory, index_dir):
    streamed = opened(directory, index_dir)
    assert streamed.window(streamed.frame_bytes * 7 / MEGABYTE + 1e-9) == 7
    assert streamed.window(1e-9) == 1


def test_chunks_are_streamed_too(directory, index_dir):
    options = {"root": str(directory.parents[1]), "name": NAME, "version": "1.0.0"}
    made = ChunkDataModule(
        **options,
        chunk_length=8,
        batch_size=4,
        seed=0,
        stream=Stream(index_dir=str(index_dir), buffer_mb=1),
    )
    whole = ChunkDataModule(**options, chunk_length=8, batch_size=4, seed=0)
    made.setup()
    whole.setup()
    assert torch.equal(made.train.actions, whole.train.actions)
    assert made.space == whole.space and made.content_id() == whole.content_id()


def test_without_a_buffer_the_set_is_read_whole(directory, index_dir):
    data = module(directory, index_dir)
    data.setup()
    assert type(data.train.demonstrations) is Demonstrations


def test_a_buffer_of_nothing_is_refused():
    with pytest.raises(SettingError, match="buffer_mb is 0"):
        Stream(index_dir="x", buffer_mb=0)


def test_the_index_says_what_it_has(directory, index_dir):
    opened(directory, index_dir)
    index = json.loads(next(index_dir.rglob("index.json")).read_text())
    assert index["num_steps"] == sum(LENGTHS)
    assert index["texts"] == [f"put toy {number} away" for number in range(len(LENGTHS))]
