"""Data sets of one's own: declared, written, killed, read again; wrong episodes are named, and not written."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rsd.data import DataError
from rsd.data.libero_features import libero_features
from rsd.data.libero_records import episode_features
from rsd.data.pictures import decode_picture
from rsd.data.rlds import RLDSDataset, RLDSWriter
from rsd.data.rlds_features import picture, rlds_features, scalar, text, vector
from rsd.data.rlds_record import RecordForm, encode_png
from rsd.jpeg import decode_jpeg, encode_jpeg
from tests.data.demonstrations import demonstration

NAME = "insulator"
SHARD = f"{NAME}-train.tfrecord-00000-of-00001"


def features():
    return rlds_features(
        {
            "observation/front": picture(48, 64),
            "observation/side": picture(None, None, "png"),
            "observation/arm/joints": vector(7, "rad"),
            "action": vector(8),
            "contact": scalar(np.bool_),
            "count": scalar(np.uint8),
            "language_instruction": text(),
        },
        {"operator": text(), "mass_kg": scalar()},
    )


def episode(number: int, num_steps: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(number)
    return {
        "steps/observation/front": random.integers(0, 256, (num_steps, 48, 64, 3), dtype=np.uint8),
        "steps/observation/side": [
            random.integers(0, 256, (10 + step, 12, 3), dtype=np.uint8) for step in range(num_steps)
        ],
        "steps/observation/arm/joints": random.normal(size=(num_steps, 7)),
        "steps/action": random.normal(size=(num_steps, 8)).astype(np.float32),
        "steps/contact": np.arange(num_steps) > 0,
        "steps/count": np.arange(num_steps) + 253,
        "steps/language_instruction": "lift the insulator",
        "episode_metadata/file_path": f"arm/{number}",
        "episode_metadata/operator": "Ü",
        "episode_metadata/mass_kg": 1.5,
    }


def test_what_is_written_is_read(tmp_path: Path):
    with RLDSWriter(tmp_path, NAME, features=features()) as writer:
        for number in range(2):
            writer.write_episode(episode(number))
        writer.finish()
    data = RLDSDataset(tmp_path)
    wrote, read = episode(1), data.episode(1, images=True)
    assert data.file_paths() == ["arm/0", "arm/1"] and data.dropped == []
    assert [decode_picture(one).tolist() for one in read["observation/side"]] == [
        one.tolist() for one in wrote["steps/observation/side"]
    ]
    assert read["observation/front"] == [encode_jpeg(one) for one in wrote["steps/observation/front"]]
    np.testing.assert_array_equal(
        read["observation/arm/joints"], wrote["steps/observation/arm/joints"].astype(np.float32)
    )
    np.testing.assert_array_equal(read["action"], wrote["steps/action"])
    assert read["contact"].tolist() == [False, True, True] and read["count"].tolist() == [253, 254, 255]
    assert read["language_instruction"] == ["lift the insulator"] * 3
    assert read["episode_metadata/operator"] == "Ü" and read["episode_metadata/mass_kg"] == 1.5
    assert read["is_first"].tolist() == [True, False, False] and read["reward"].tolist() == [0, 0, 1]
    assert read["is_last"].tolist() == read["is_terminal"].tolist() == [False, False, True]
    assert not (tmp_path / "dataset_statistics.json").exists()  # nobody has said how the gripper is recorded


def test_flags_texts_a_step_encoded_pictures_and_nesting_are_taken_as_given(tmp_path: Path):
    given = episode(0)
    jpegs = [encode_jpeg(one) for one in given.pop("steps/observation/front")]
    pngs = [encode_png(one) for one in given.pop("steps/observation/side")]
    given = {
        "steps": {
            "observation": {"front": jpegs, "side": pngs, "arm": {"joints": given["steps/observation/arm/joints"]}},
            "action": given["steps/action"],
            "contact": given["steps/contact"],
            "count": given["steps/count"],
            "reward": np.array([0.5, 0, 0]),
            "is_terminal": np.zeros(3, dtype=bool),
            "language_instruction": ["reach", "grasp", "lift"],
        },
        "episode_metadata": {"file_path": "arm/0", "operator": "A", "mass_kg": 2},
    }
    with RLDSWriter(tmp_path, NAME, features=features()) as writer:
        writer.write_episode(given)
    read = RLDSDataset(tmp_path).episode(0, images=True)
    assert read["observation/front"] == jpegs and read["observation/side"] == pngs
    assert read["reward"].tolist() == [0.5, 0, 0] and not read["is_terminal"].any()
    assert read["language_instruction"] == ["reach", "grasp", "lift"]


def test_killed_and_appended_to(tmp_path: Path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    with RLDSWriter(whole, NAME, features=features()) as writer:
        writer.write_episode(episode(0))
        shutil.copytree(whole, torn)
        writer.write_episode(episode(1))
    content = (whole / SHARD).read_bytes()
    for size in ((torn / SHARD).stat().st_size + 5, len(content) - 1):
        (torn / SHARD).write_bytes(content[:size])
        assert RLDSDataset(torn).file_paths() == ["arm/0"]
    with RLDSWriter(torn, NAME, features=features()) as writer:
        assert writer.file_paths() == ["arm/0"]
        writer.write_episode(episode(1))
    assert (torn / SHARD).read_bytes() == content
    with pytest.raises(DataError, match=r"describes other features than the episodes to be written have"):
        RLDSWriter(torn, NAME, features=rlds_features({"action": vector(8)}))


def test_liberos_episodes_are_the_same_records_either_way():
    one = demonstration(0, 3)
    form, libero = RecordForm(libero_features()).record(one), episode_features(one["steps"], "toy/demo_0")
    assert form.keys() == libero.keys()
    for name, values in libero.items():
        assert np.array_equal(form[name], values), name


SMALL = np.zeros((3, 48, 60, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps/action", np.zeros((3, 7)), r"feature steps/action: expected \[3, 8\] of float32, got \[3, 7\]"),
        ("steps/action", np.zeros((0, 8)), "has no steps"),
        ("steps/action", 7, "expected a value a step, got 7"),
        ("steps/action", [[1.0] * 8, [1.0] * 7, [1.0] * 8], "feature steps/action: no array"),
        ("steps/action", np.full((3, 8), np.inf), r"'arm/0': steps/action is inf at step 0, dim 0 \(24 such"),
        ("steps/action", np.full((3, 8), 1e300), r"steps/action is inf at step 0"),
        ("steps/contact", np.zeros(3), r"feature steps/contact: expected \[3\] of bool, got \[3\] of float64"),
        ("steps/count", [1, 2, 256], r"feature steps/count: 1\.\.256 do not fit into uint8"),
        ("steps/observation/arm/joints", np.zeros((2, 7)), r"expected \[3, 7\] of float32, got \[2, 7\]"),
        (
            "steps/observation/front",
            SMALL,
            r"'arm/0', step 0: .*expected a picture \[48, 64, 3\] of uint8, got \[48, 60",
        ),
        ("steps/observation/front", SMALL[:2], "expected 3 pictures, one for each step, got 2"),
        ("steps/observation/front", [encode_jpeg(SMALL[0])] * 3, r"expected a picture of \[48, 64\] pixels"),
        (
            "steps/observation/front",
            [encode_png(np.zeros((48, 64, 3), np.uint8))] * 3,
            "declared as jpeg, got bytes of",
        ),
        ("steps/observation/front", [b"GIF89a"] * 3, "expected a JPEG or PNG picture, got GIF"),
        ("steps/observation/side", np.zeros((3, 4, 4, 3)), r"\['any', 'any', 3\] of uint8, got \[4, 4, 3\] of float64"),
        ("steps/language_instruction", ["a", "b"], "expected one text, or 3, one a step; got 2"),
        ("steps/language_instruction", [b"a"] * 3, "expected text, got b'a'"),
        ("steps/other", 1, r"the features have no steps/other; expected \["),
        (
            "episode_metadata/mass_kg",
            [1, 2],
            r"feature episode_metadata/mass_kg: expected \[1\] of float32, got \[1, 2\]",
        ),
        ("episode_metadata/file_path", None, "file_path is None; expected a text that names the episode"),
    ],
)
def test_wrong_episode_writes_nothing(tmp_path: Path, name: str, value: Any, message: str):
    with RLDSWriter(tmp_path, NAME, features=features()) as writer:
        with pytest.raises(DataError, match=message):
            writer.write_episode(episode(0) | {name: value})
        assert (tmp_path / SHARD).stat().st_size == len(writer) == 0


def test_a_missing_feature_is_named(tmp_path: Path):
    given = episode(0)
    del given["steps/action"]
    with (
        RLDSWriter(tmp_path, NAME, features=features()) as writer,
        pytest.raises(DataError, match="steps/action is missi"),
    ):
        writer.write_episode(given)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (tfds.features.FeaturesDict({"action": vector(3)}), "have none below 'steps'"),
        (
            tfds.features.FeaturesDict({"steps": tfds.features.Dataset({"action": vector(3)})}),
            r"lack the text episode_metadata/file_path",
        ),
        (
            rlds_features({"clip": tfds.features.Sequence(np.float32)}),
            "feature steps/clip is declared as Sequence .* not written",
        ),
        (
            rlds_features({"depth": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png")}),
            r"feature steps/depth is declared as image \[4, 4, 1\] of uint16",
        ),
        (
            rlds_features({"x": tfds.features.Tensor(shape=(2,), dtype=np.float32, encoding="zlib")}),
            "feature steps/x is declared as encoding zlib",
        ),
    ],
)
def test_features_that_are_not_written_are_refused_first(tmp_path: Path, declared: Any, message: str):
    with pytest.raises(DataError, match=message):
        RLDSWriter(tmp_path / "new", NAME, features=declared)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_name_is_one_value_or_holds_others(names):
    with pytest.raises(DataError, match="feature a is declared"):
        rlds_features(dict.fromkeys(names, scalar()))


def test_png_is_exact_and_jpeg_is_not():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(noise)))), noise)
    assert not np.array_equal(decode_jpeg(encode_jpeg(noise)), noise)
