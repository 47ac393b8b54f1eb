"""tensorflow-datasets accepts what we write, and its reader sees what ours sees. Needs TensorFlow: pip install .[tf]"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd.data.rlds import RLDSDataset
from rsd.jpeg import decode_jpeg
from tests.data.demonstrations import NAME, write_dataset

pytestmark = pytest.mark.tf


def _flat(step: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in step.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def test_tfds_reads_what_we_wrote(tmp_path: Path):
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    directory = write_dataset(tmp_path, [5, 3, 12])
    builder, ours = tfds.builder_from_directory(directory), RLDSDataset(directory)
    assert (builder.name, str(builder.version)) == (NAME, "1.0.0")
    assert builder.info.splits["train"].num_examples == len(ours) == 3
    assert builder.info.features["steps"]["observation"]["image"].shape == (256, 256, 3)
    for index, theirs in enumerate(tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False))):
        episode = ours.episode(index, images=True)
        file_path = theirs["episode_metadata"]["file_path"].decode()
        assert file_path == episode.pop("episode_metadata/file_path")
        steps = [dict(_flat(step)) for step in theirs["steps"]]
        assert set(steps[0]) == set(episode)
        for name, values in episode.items():
            assert len(values) == len(steps)
            for value, step in zip(values, steps, strict=True):
                if name in ("observation/image", "observation/wrist_image"):
                    np.testing.assert_array_equal(decode_jpeg(value), step[name])
                elif name == "language_instruction":
                    assert value == step[name].decode()
                else:
                    assert value.dtype == step[name].dtype
                    np.testing.assert_array_equal(value, step[name])


def test_our_files_are_what_tfds_would_write(tmp_path: Path):
    """The same episodes through tfds's own sequential writer: same features.json, same records."""
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    from rsd.data.libero_features import libero_features
    from tests.data.demonstrations import demonstration

    directory = write_dataset(tmp_path, [5, 3])
    theirs = tmp_path / "theirs" / NAME / "1.0.0"
    theirs.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version("1.0.0"), data_dir=str(theirs), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=libero_features())
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100, overwrite=False)
    writer.initialize_splits(["train"])
    for number, length in enumerate([5, 3]):
        writer.add_examples({"train": [_as_tfds_takes_it(demonstration(number, length))]})
    writer.close_all()
    info.write_to_directory(theirs)

    assert json.loads((directory / "features.json").read_text()) == json.loads((theirs / "features.json").read_text())
    ours_info, their_info = (
        json.loads((path / "dataset_info.json").read_text())["splits"][0] for path in (directory, theirs)
    )
    assert ours_info["shardLengths"] == their_info["shardLengths"]
    ours, reread = RLDSDataset(directory), RLDSDataset(theirs)
    for index in range(len(ours)):
        mine, other = ours.episode(index, images=True), reread.episode(index, images=True)
        assert mine.keys() == other.keys()
        for name, values in mine.items():
            if "image" in name:
                pairs = zip(values, other[name], strict=True)
                assert all((decode_jpeg(left) == decode_jpeg(right)).all() for left, right in pairs)
            else:
                np.testing.assert_array_equal(values, other[name])


def _as_tfds_takes_it(episode: dict[str, Any]) -> dict[str, Any]:
    steps, last = episode["steps"], len(episode["steps"]["action"]) - 1
    return {
        "steps": [
            {
                "observation": {name: values[step] for name, values in steps["observation"].items()},
                "action": steps["action"][step],
                "discount": 1.0,
                "reward": float(step == last),
                "is_first": step == 0,
                "is_last": step == last,
                "is_terminal": step == last,
                "language_instruction": steps["language_instruction"],
            }
            for step in range(last + 1)
        ],
        "episode_metadata": episode["episode_metadata"],
    }
