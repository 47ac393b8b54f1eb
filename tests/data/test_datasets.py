"""Chunk and frame data sets and their datamodules, against the demonstrations they were written from."""

import copy
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rsd.data import DataError, datasets, rlds_reader
from rsd.data.datamodules import ChunkDataModule, FrameDataModule
from rsd.data.datasets import (
    ChunkDataset,
    Demonstrations,
    FrameDataset,
    Trajectory,
    all_frames,
    clipping_notes,
    split_episodes,
)
from rsd.data.libero_records import episode_features
from rsd.data.rlds import RLDSWriter
from rsd.data.tf_example import encode_example
from rsd.data.tfrecord import frame
from rsd.data.trajectories import compute_statistics, standardize_actions
from rsd.jpeg import jpeg_round_trip
from rsd.space import Space
from rsd.types import IMAGE_VIEWS, Observation
from tests.data.demonstrations import NAME, demonstration, write_dataset

LENGTHS = [9, 3, 8, 10]  # chunks of 8: 2, 0, 1, 3
T = 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), LENGTHS)


def _paths(directory: Path) -> dict[str, str]:
    return {"root": str(directory.parents[1]), "name": NAME, "version": "1.0.0"}


@pytest.mark.parametrize(
    ("count", "val"), [(2, [1]), (9, [8]), (10, [9]), (11, [9]), (19, [9]), (20, [9, 19]), (21, [9, 19])]
)
def test_split(count: int, val: list[int]):
    assert split_episodes(count, "val") == val
    assert split_episodes(count, "train") == [index for index in range(count) if index not in val]
    assert split_episodes(count, "all") == list(range(count))


def test_a_task_whose_rare_motions_normalisation_cuts_off_is_named():
    def trajectory(instruction, turn):
        actions = np.zeros((100, 7), dtype=np.float32)
        actions[:, 0] = np.linspace(-1, 1, 100)
        actions[:10, 3] = turn
        return Trajectory(actions, np.zeros((100, 8), dtype=np.float32), (instruction,) * 100)

    trajectories = [trajectory("pick it up", 0.0)] * 19 + [trajectory("open it", -0.8)]  # 0.5 % of all steps turn
    statistics = compute_statistics([one.actions for one in trajectories], [one.proprio for one in trajectories])
    (note,) = clipping_notes(trajectories, statistics["action"])
    assert note.startswith("'open it': 100 % of the movement in action dim 3 is beyond q01..q99")
    assert clipping_notes(trajectories[:19], statistics["action"]) == []


def test_what_other_statistics_cut_off_is_measured_beside_the_datas_own(directory: Path):
    dataset = all_frames(directory, T, IMAGE_VIEWS)
    own = Space.from_statistics(NAME, dataset.norm_stats)
    assert all(share == by_own for share, by_own in dataset.cut_off(own))
    narrow = copy.deepcopy(dataset.norm_stats)
    narrow["action"]["q01"][1], narrow["action"]["q99"][1] = -0.1, 0.1
    shares = dataset.cut_off(Space.from_statistics(NAME, narrow))
    moved = np.concatenate([one.actions[:, 1] for one in dataset.trajectories])
    lost = np.maximum(np.abs(moved) - 0.1, 0).sum() / np.abs(moved).sum()
    assert [dim for dim, (share, by_own) in enumerate(shares) if share != by_own] == [1]
    assert shares[1][0] == pytest.approx(lost) and lost > 0.5 > shares[1][1]
    shorter = {name: values[:6] for name, values in narrow["action"].items()}
    with pytest.raises(DataError, match=r"has actions of 7 dims, the base model has 6; choose a base model"):
        dataset.cut_off(Space.from_statistics(NAME, {"action": shorter}))


def test_split_errors():
    with pytest.raises(DataError, match=r"split 'test' does not exist; expected one of \['train', 'val', 'all'\]"):
        split_episodes(5, "test")
    with pytest.raises(DataError, match="has 1 episode, which cannot be split into train and val"):
        split_episodes(1, "train")
    assert split_episodes(1, "all") == [0]


def test_chunks_of_all_episodes(directory: Path):
    dataset = ChunkDataset(Demonstrations(directory), T, "all")
    assert list(zip(dataset.episode.tolist(), dataset.step.tolist(), strict=True)) == [
        (0, 0), (0, 1), (2, 0), (3, 0), (3, 1), (3, 2)
    ]  # fmt: skip
    assert (len(dataset), dataset.num_short, dataset.name) == (6, 1, NAME)
    for row, (episode, step) in enumerate(zip(dataset.episode.tolist(), dataset.step.tolist(), strict=True)):
        actions = standardize_actions(demonstration(episode, LENGTHS[episode])["steps"]["action"])
        assert dataset[row]["actions"].dtype == torch.float32
        np.testing.assert_array_equal(dataset[row]["actions"], actions[step : step + T])


def test_train_and_val_share_the_statistics(directory: Path):
    demonstrations = Demonstrations(directory)
    train, val = (ChunkDataset(demonstrations, T, split) for split in ("train", "val"))
    assert (set(train.episode.tolist()), set(val.episode.tolist())) == ({0, 2}, {3})
    assert train.norm_stats == val.norm_stats
    assert train.norm_stats["num_trajectories"] == 4
    assert train.content_id() != val.content_id()


def test_frames(directory: Path):
    dataset = all_frames(directory, T, IMAGE_VIEWS)
    assert len(dataset) == 6
    for row in (5, 0):  # any order
        item = dataset[row]
        steps = demonstration(item["episode"], LENGTHS[item["episode"]])["steps"]
        observation, step = item["observation"], item["step"]
        assert isinstance(observation, Observation)
        assert observation.instruction == steps["language_instruction"]
        np.testing.assert_array_equal(observation.proprio, steps["observation"]["state"][step])
        assert tuple(observation.images) == IMAGE_VIEWS
        for view in IMAGE_VIEWS:
            np.testing.assert_array_equal(observation.images[view], jpeg_round_trip(steps["observation"][view][step]))
        np.testing.assert_array_equal(item["actions"], standardize_actions(steps["action"])[step : step + T])


def test_frames_travel_to_workers(directory: Path):
    dataset = FrameDataset(Demonstrations(directory, ["wrist_image"]), T, "all")
    expected = dataset[3]["observation"].images["wrist_image"]
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301  our own object
    np.testing.assert_array_equal(copy[3]["observation"].images["wrist_image"], expected)
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    np.testing.assert_array_equal(list(loader)[3]["observation"].images["wrist_image"], expected)


def test_unknown_view_lists_the_features(directory: Path):
    expected = r"third_eye: expected image .*none of this name; image features of its steps: observation/image .*wrist_"
    with pytest.raises(DataError, match=expected):
        Demonstrations(directory, ["third_eye"])


def test_all_episodes_too_short(directory: Path):
    with pytest.raises(
        DataError, match=r"split 'train': all 3 episodes are shorter than the chunk of 16 .*longest has 9"
    ):
        ChunkDataset(Demonstrations(directory), 16, "train")


def _with_actions(directory: Path, actions: np.ndarray) -> Path:
    """A data set whose second episode holds these actions, past the writer's checks."""
    with RLDSWriter(directory, NAME) as writer:
        writer.write_episode(demonstration(0, len(actions)))
        writer.write_episode(demonstration(1, len(actions)))
    shard = next(directory.glob("*.tfrecord*"))
    first = frame(encode_example(episode_features(demonstration(0, len(actions))["steps"], "toy/demo_0")))
    features = episode_features(demonstration(1, len(actions))["steps"], "toy/demo_1") | {"steps/action": actions}
    shard.write_bytes(first + frame(encode_example(features)))
    return directory


def test_nan_in_actions_names_episode_and_step(tmp_path: Path):
    actions = np.zeros((9, 7), np.float32)
    actions[5, 2] = np.nan
    directory = _with_actions(tmp_path, actions)
    with pytest.raises(DataError, match=rf"{NAME}: episode 1 \(.*tfrecord.*\): action is nan at step 5, dim 2"):
        Demonstrations(directory)


def test_two_arms_have_to_say_which_dims_are_grippers(tmp_path: Path, directory: Path):
    target = tmp_path / NAME / "1.0.0"
    target.mkdir(parents=True)
    for path in directory.iterdir():
        content = path.read_bytes()
        if path.name == "features.json":
            content = content.replace(b'"7"', b'"14"')
        (target / path.name).write_bytes(content)
    with pytest.raises(DataError, match=r"actions have 14 dims, as of two arms: .*set data\.gripper\.dims=\[6,13\]"):
        Demonstrations(target)


def test_chunk_datamodule(directory: Path):
    with pytest.raises(ValueError, match=r"data\.bounds is 'q99', expected one of \['extremes', 'quantiles'\]"):
        ChunkDataModule(**_paths(directory), chunk_length=T, batch_size=2, seed=0, bounds="q99")
    data = ChunkDataModule(**_paths(directory), chunk_length=T, batch_size=2, seed=0)
    data.setup()
    batches = list(data.train_dataloader())
    assert [tuple(batch["actions"].shape) for batch in batches] == [(2, T, 7), (1, T, 7)]
    assert len(data.train_dataloader()) == 2
    rows = torch.cat([batch["actions"] for batch in batches])
    assert sorted(rows.flatten(1).tolist()) == sorted(data.train.actions.flatten(1).tolist())
    val = torch.cat([batch["actions"] for batch in data.val_dataloader()])
    torch.testing.assert_close(val, data.val.actions, rtol=0, atol=0)
    assert data.space.statistics["num_trajectories"] == 4


def _episodes_and_steps(items: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(item["episode"], item["step"]) for item in items]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_frame_datamodule(directory: Path, num_workers: int):
    data = FrameDataModule(
        **_paths(directory),
        chunk_length=T,
        views=["image"],
        batch_size=2,
        num_workers=num_workers,
        seed=0,
        collate=_episodes_and_steps,
    )
    data.setup()
    assert sorted(chain(*data.train_dataloader())) == [(0, 0), (0, 1), (2, 0)]
    assert list(data.val_dataloader()) == [[(3, 0), (3, 1)], [(3, 2)]]


@pytest.mark.parametrize("kind", ["rfsq", "oft"])
def test_a_start_reads_every_record_once_and_takes_the_statistics_once(kind, tmp_path, monkeypatch):
    directory = write_dataset(tmp_path, [9] * 12)
    calls = {"read_record": 0, "compute_statistics": 0}

    def counting(name, function):
        def counted(*arguments):
            calls[name] += 1
            return function(*arguments)

        return counted

    for module, name in ((rlds_reader, "read_record"), (datasets, "compute_statistics")):
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    common = {**_paths(directory), "chunk_length": T, "batch_size": 4, "num_workers": 0, "seed": 0}
    if kind == "rfsq":
        data = ChunkDataModule(**common)
    else:
        data = FrameDataModule(**common, views=IMAGE_VIEWS, collate=_episodes_and_steps)
    data.setup()
    assert (len(list(data.train_dataloader())), len(list(data.val_dataloader()))) == (6, 1)
    assert data.space.statistics["num_trajectories"] == 12 and data.space.name == NAME
    assert calls == {"read_record": 12, "compute_statistics": 1}


def _with_texts(root: Path, texts: list[list[str]]) -> Path:
    """A data set whose steps are told these texts, a list an episode, past the writer's one text an episode."""
    directory = write_dataset(root, [len(said) for said in texts])
    records = []
    for number, said in enumerate(texts):
        episode = demonstration(number, len(said))
        features = episode_features(episode["steps"], f"toy/demo_{number}")
        records.append(frame(encode_example(features | {"steps/language_instruction": [one.encode() for one in said]})))
    next(directory.glob("*.tfrecord*")).write_bytes(b"".join(records))
    return directory


def test_every_step_has_its_own_instruction(tmp_path):
    plain, told = ["reach the insulator"] * 6, ["reach the insulator"] * 5 + ["close the gripper"] * 5
    changing = _with_texts(tmp_path / "changing", [told, told])
    frames = all_frames(changing, T, ())
    said = [frames[row]["observation"].instruction for row in range(3)]
    assert said == ["reach the insulator"] * 3 and len(frames) == 6
    frames = all_frames(changing, 3, ())
    assert [frames[row]["observation"].instruction for row in (4, 5)] == ["reach the insulator", "close the gripper"]
    assert frames.instructions()["close the gripper"] == "2 of 2 episodes: 0, 1"
    assert frames.content_id().rpartition("-all")[0].endswith("-instructions per step")
    same = all_frames(_with_texts(tmp_path / "plain", [plain, plain]), 3, ())
    assert "per step" not in same.content_id()
