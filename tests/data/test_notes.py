"""What a data set loses on its way into training is said: dims that normalisation cuts off, episodes, splits."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from rsd.data import DataError
from rsd.data.datamodules import ChunkDataModule, FrameDataModule
from rsd.data.datasets import Demonstrations, all_frames
from rsd.data.fill_cache import check_space
from rsd.data.rlds import RLDSDataset, RLDSWriter
from rsd.data.trajectories import lost_motion
from rsd.space import Range, Space, with_bounds
from tests.data.demonstrations import NAME, demonstration, write_dataset


def write_sparse(root: Path) -> Path:
    """Dims 3..5 move in 1 of 180 steps, dim 2 never; the second episode is one step short of a chunk of 8."""
    directory = root / NAME / "1.0.0"
    with RLDSWriter(directory, NAME) as writer:
        for number, steps in enumerate([173, 7, 20]):
            episode = demonstration(number, steps)
            episode["steps"]["action"][:, 2:6] = 0
            if number == 0:
                episode["steps"]["action"][90, 3:6] = 0.3
            writer.write_episode(episode)
        writer.finish()
    return directory


def test_share_of_the_movement_that_is_lost():
    values = np.zeros((200, 4), np.float32)
    values[:, 0] = np.linspace(-1, 1, 200)
    values[7, 1] = 0.3  # q01 = q99 = 0
    values[:, 2] = 5  # never moves
    values[:2, 3], values[2:4, 3] = 4, 1
    bounds = Range((-1, 0, 5, 0), (1, 0, 5, 1), (True,) * 4, (False, False, True, False))
    assert lost_motion(values, bounds).tolist() == pytest.approx([0, 1, 0, 0.6])


CUT = "note: normalisation (quantiles) cuts off movement in action dims 3 (100 %), 4 (100 %), 5 (100 %): data.bounds="


@pytest.mark.parametrize("kind", [ChunkDataModule, FrameDataModule])
def test_every_phase_on_a_data_set_says_what_it_loses(kind, tmp_path, capsys):
    write_sparse(tmp_path)
    common = {"root": str(tmp_path), "name": NAME, "version": "1.0.0", "batch_size": 4, "num_workers": 0, "seed": 0}
    views = {} if kind is ChunkDataModule else {"views": ["image"], "collate": list}
    kind(**common, **views, chunk_length=8).setup()
    said = capsys.readouterr().out
    assert CUT in said
    assert "note: 1 of 3 episodes are shorter than the chunk of 8 steps and give none: 1 (7 steps)" in said
    kind(**common, **views, chunk_length=8, bounds="extremes").setup()
    assert "cuts off movement in action" not in capsys.readouterr().out


def test_caching_says_what_the_base_models_bounds_cut_off(tmp_path):
    frames = all_frames(write_sparse(tmp_path), 8, ["image"])
    statistics = frames.norm_stats
    assert any(CUT.removeprefix("note: ") in note for note in frames.notes(Space.from_statistics(NAME, statistics)))
    wide = Space.from_statistics(NAME, with_bounds(statistics, "extremes"))
    assert not any("action dims" in note for note in frames.notes(wide))


def test_what_other_statistics_cut_off_of_the_actions_is_said_once(tmp_path):
    frames = all_frames(write_sparse(tmp_path), 8, ["image"])
    other = copy.deepcopy(frames.norm_stats)
    other["action"]["q01"][0], other["action"]["q99"][0] = 0.0, 1e-3
    space, said = Space.from_statistics(NAME, other), []
    assert check_space(space, frames, None, 1.0, said.append)
    said += frames.notes(space, cut_actions=False)
    assert (
        sum("cut off" in line or "cuts off movement in action" in line or "cuts it off" in line for line in said) == 1
    )
    assert "1 of 3 episodes are shorter than the chunk of 8 steps and give none: 1 (7 steps)" in said


def test_empty_instructions_are_counted_and_named(tmp_path):
    directory = tmp_path / NAME / "1.0.0"
    with RLDSWriter(directory, NAME) as writer:
        for number in range(3):
            episode = demonstration(number, 10)
            episode["steps"]["language_instruction"] = "" if number == 1 else "lift it"
            writer.write_episode(episode)
        writer.finish()
    demonstrations = Demonstrations(directory)
    notes = demonstrations.notes(Space.from_statistics(NAME, demonstrations.norm_stats), 8)
    assert "1 of 3 episodes have 10 steps with an empty instruction: 1" in notes


def _with_splits(directory: Path, change) -> None:
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info["splits"])
    path.write_text(json.dumps(info))


def test_a_split_that_is_not_read_is_said(tmp_path):
    directory = write_dataset(tmp_path, [9, 9])
    other = {"name": "val", "numBytes": "1", "shardLengths": ["2"]}
    _with_splits(directory, lambda splits: splits.append(splits[0] | other))
    (note,) = RLDSDataset(directory).dropped
    assert note.startswith("split 'val' with 2 episodes of ") and note.endswith(
        "is not read: val is held out of 'train'"
    )


def test_only_another_split(tmp_path):
    directory = write_dataset(tmp_path, [9, 9])
    _with_splits(directory, lambda splits: splits[0].update(name="val"))
    with pytest.raises(DataError, match=r"has splits \{'val': 2\} and none called 'train'.*rename that split"):
        RLDSDataset(directory)


def test_records_that_nobody_counts_are_said(tmp_path):
    directory = write_dataset(tmp_path, [9, 9, 9])
    assert RLDSDataset(directory).dropped == []
    _with_splits(directory, lambda splits: splits[0].update(shardLengths=["2"]))
    (note,) = RLDSDataset(directory).dropped
    assert "bytes of " in note and note.endswith("behind the 2 records that dataset_info.json counts")
