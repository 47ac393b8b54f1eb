"""Which frames a policy is shown."""

import pytest
import torch

from rsd.data import DataError
from rsd.data.datasets import Demonstrations, FrameDataset
from rsd.data.examination import in_words, pairs_of_tasks
from rsd.data.made_up import write_dataset
from tests.data.demonstrations import NAME, demonstration


def frames_of(root, lengths, tasks):
    """Episodes of these lengths, with the tasks named in turn."""

    def episode(number, num_steps):
        made = demonstration(number, num_steps)
        made["steps"]["language_instruction"] = tasks[number % len(tasks)]
        return made

    write_dataset(root / NAME / "1.0.0", lengths, episode)
    return FrameDataset(Demonstrations(root / NAME / "1.0.0", ("image",)), 2, "all")


def test_held_out_frames_evenly_over_tasks(tmp_path):
    frames = frames_of(tmp_path, [5] * 20, ["left", "right", "up"])  # held out: 9, "left", and 19, "right"
    pairs = pairs_of_tasks(frames, 4)
    places = [[(one["episode"], one["step"]) for one in pair] for pair in pairs]
    assert [own for own, _ in places] == [(9, 1), (9, 3), (19, 1), (19, 3)]
    assert [other for _, other in places] == [(1, 1), (1, 3), (2, 1), (2, 3)]  # the same part of the episode
    words = [tuple(one["observation"].instruction for one in pair) for pair in pairs]
    assert words == [("left", "right")] * 2 + [("right", "up")] * 2


def test_fewer_frames_than_tasks(tmp_path):
    frames = frames_of(tmp_path, [5] * 30, ["left", "right", "up"])
    assert [own["episode"] for own, _ in pairs_of_tasks(frames, 2)] == [9, 19]


def test_one_task_and_nothing_held_out(tmp_path):
    assert pairs_of_tasks(frames_of(tmp_path / "task", [5] * 3, ["left"]), 4) == []
    with pytest.raises(DataError, match="all 1 episodes are shorter than the chunk"):
        pairs_of_tasks(frames_of(tmp_path / "short", [5, 5, 1], ["left", "right"]), 4)


def test_in_words():
    sample = {"actions": torch.tensor([[0.5, -1.0]]), "instructions": "left"}
    assert in_words(sample) == "actions [1, 2] -1..0.5, 'left'"
