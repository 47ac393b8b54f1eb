"""Data sets that tensorflow-datasets writes and LIBERO's are not: read, or refused by file, episode and feature."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from google.protobuf.json_format import MessageToJson
from PIL import Image

from rsd.data import DataError
from rsd.data.datamodules import ChunkDataModule
from rsd.data.datasets import ChunkDataset, Demonstrations, all_frames
from rsd.data.layout import Layout
from rsd.data.pictures import check_header, decode_picture
from rsd.data.rlds import RLDSDataset
from rsd.data.tf_example import encode_example
from rsd.data.tfrecord import frame
from rsd.errors import SettingError
from rsd.files import stranger
from rsd.jpeg import decode_jpeg

F = tfds.features
NAME = "strange_arm"
STEPS = 8
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)


def encoded(picture: np.ndarray = COLOURS, kind: str = "JPEG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    (image if mode is None else image.convert(mode)).save(buffer, format=kind)
    return buffer.getvalue()


JPEG, PNG = encoded(), encoded(kind="PNG")


def structure(
    step: dict[str, Any] | None = None,
    observation: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Any:
    """One camera, state, action and instruction, and what is given beside or instead; None leaves one out."""
    seen = {"image": F.Image(shape=(256, 256, 3), dtype=np.uint8), "state": F.Tensor(shape=(8,), dtype=np.float32)}
    steps = {"action": F.Tensor(shape=(7,), dtype=np.float32), "language_instruction": F.Text()} | (step or {})
    steps = {name: one for name, one in steps.items() if one is not None}
    seen = {name: one for name, one in (seen | (observation or {})).items() if one is not None}
    top = {"steps": F.Dataset({"observation": F.FeaturesDict(seen), **steps})}
    return F.FeaturesDict(top if metadata is None else top | {"episode_metadata": F.FeaturesDict(metadata)})


def episode(number: int, num_steps: int = STEPS, picture: bytes = PNG, **others: Any) -> dict[str, Any]:
    random = np.random.default_rng(number)
    actions = random.uniform(-1, 1, (num_steps, 7)).astype(np.float32)
    actions[:, -1] = np.where(np.arange(num_steps) < num_steps // 2, -1, 1)
    features = {
        "steps/action": actions,
        "steps/language_instruction": [f"take {number}".encode()] * num_steps,
        "steps/observation/image": [picture] * num_steps,
        "steps/observation/state": random.normal(size=(num_steps, 8)).astype(np.float32),
    } | others
    return {name: value for name, value in features.items() if value is not None}


def write(
    root: Path,
    episodes: list[dict[str, Any]],
    features: Any = None,
    *,
    pack: Callable[[bytes], bytes] = bytes,
    file_format: str = "tfrecord",
    splits: dict[str, int] | None = None,
) -> Path:
    """A data set in one file; returns its directory."""
    directory = root / NAME / "1.0.0"
    directory.mkdir(parents=True)
    content = b"".join(frame(encode_example(one)) for one in episodes)
    (directory / f"{NAME}-train.tfrecord-00000-of-00001").write_bytes(pack(content))
    sizes = {"train": len(episodes)} | (splits or {})
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "name": NAME,
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [
            {"name": name, "filepathTemplate": template, "numBytes": "1", "shardLengths": [str(size)]}
            for name, size in sizes.items()
        ],
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    proto = (structure() if features is None else features).to_proto()
    (directory / "features.json").write_text(MessageToJson(proto, sort_keys=True))
    return directory


def demonstrations(directory: Path, **settings: Any) -> Demonstrations:
    return Demonstrations(directory, ("image",), **settings)


def refused(directory: Path, **settings: Any) -> str:
    """The one line that says why the pictures, words and numbers are not read."""
    with pytest.raises(DataError) as caught:
        demonstrations(directory, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- pictures


@pytest.mark.parametrize(
    ("declared", "stored"), [(None, PNG), (None, JPEG), ("png", PNG), ("jpeg", PNG), ("png", JPEG)]
)
def test_pictures_are_told_by_their_bytes_whatever_is_declared(tmp_path: Path, declared: str | None, stored: bytes):
    image = F.Image(shape=(256, 256, 3), dtype=np.uint8, encoding_format=declared)
    directory = write(tmp_path, [episode(0, picture=stored)], structure(observation={"image": image}))
    right = COLOURS if stored == PNG else decode_jpeg(JPEG)
    np.testing.assert_array_equal(demonstrations(directory).picture(0, 3, "image"), right)


def test_a_shape_that_is_left_open_is_the_pictures_own(tmp_path: Path):
    image = F.Image(shape=(None, None, 3), dtype=np.uint8)
    directory = write(tmp_path, [episode(0)], structure(observation={"image": image}))
    assert demonstrations(directory).picture(0, 0, "image").shape == (256, 256, 3)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_png_of_other_colours_becomes_rgb(mode: str, channels: int):
    got = decode_picture(encoded(kind="PNG", mode=mode))
    right = np.asarray(Image.fromarray(COLOURS).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(got, right)
    assert channels == 3 or (got[..., 0] == got[..., 2]).all()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (encoded(np.zeros((256, 256), np.uint16), "PNG"), "is a grey PNG of 16 bits, as of depths"),
        (encoded(COLOURS[:64], "PNG"), r"expected a picture of [256, 256] pixels (height, width), got [64, 256]"),
        (encoded(COLOURS[:, :64]), r"expected a picture of [256, 256] pixels (height, width), got [256, 64]"),
        (encoded(kind="GIF"), "got GIF"),
        (encoded(kind="BMP"), "got BMP"),
        (encoded(kind="TIFF"), "got TIFF"),
        (b"", "got nothing"),
        (COLOURS.tobytes(), "got something that begins"),
        (PNG[: len(PNG) // 2], "is a damaged PNG"),
        (PNG[:20], "expected a JPEG or PNG picture"),
        (JPEG[: len(JPEG) // 2], "step 5: feature observation/image:"),
        (JPEG[:10], "step 5: feature observation/image:"),
    ],
)
def test_a_wrong_picture_in_a_late_episode_is_found_at_the_start(tmp_path: Path, stored: bytes, message: str):
    late = episode(2)
    late["steps/observation/image"][5] = stored
    said = refused(write(tmp_path, [episode(0), episode(1), late]))
    assert message in said
    assert said.startswith(
        f"{NAME}: episode 2 ({NAME}-train.tfrecord-00000-of-00001), step 5: feature observation/image"
    )
    assert "build the data set again" in said


def test_bytes_behind_a_pictures_end_do_no_harm():
    check_header(JPEG + b"\0\0", (256, 256))
    check_header(PNG + b"\0\0", (256, 256))


def test_pictures_that_nobody_asks_for_are_not_looked_at(tmp_path: Path):
    depth = F.Image(shape=(256, 256, 1), dtype=np.uint16, encoding_format="png")
    stored = {"steps/observation/depth": [encoded(np.zeros((256, 256), np.uint16), "PNG")] * STEPS}
    directory = write(tmp_path, [episode(0, **stored)], structure(observation={"depth": depth}))
    assert demonstrations(directory).picture(0, 0, "image").shape == (256, 256, 3)
    assert "model.backbone.views" in refused_view(directory, "depth")


def refused_view(directory: Path, view: str) -> str:
    with pytest.raises(DataError) as caught:
        Demonstrations(directory, (view,))
    return str(caught.value)


def test_a_set_without_pictures_says_so(tmp_path: Path):
    features = structure(observation={"image": None})
    said = refused(write(tmp_path, [episode(0, **{"steps/observation/image": None})], features))
    assert "image features of its steps: none; build the data set with JPEG or PNG pictures" in said


def test_raw_pixels_and_other_cameras_are_named_with_the_key(tmp_path: Path):
    raw = F.Tensor(shape=(256, 256, 3), dtype=np.uint8)
    stored = {"steps/observation/raw": np.zeros((STEPS, 256, 256, 3), np.uint8)}
    directory = write(tmp_path, [episode(0, **stored)], structure(observation={"raw": raw}))
    assert "feature observation/raw: expected image [height, width, 3], it is tensor" in refused_view(directory, "raw")
    said = refused_view(directory, "wrist")
    assert "observation/wrist" in said and "there is none of this name" in said
    assert "image features of its steps: observation/image [256, 256, 3]" in said and "model.backbone.views" in said


# --- metadata


@pytest.mark.parametrize(
    ("feature", "value", "right"),
    [
        (F.Scalar(dtype=np.int32), np.array([7]), np.array(7)),
        (F.Scalar(dtype=np.bool_), np.array([True]), np.array(True)),
        (F.Tensor(shape=(3,), dtype=np.float32), np.arange(3, dtype=np.float32), np.arange(3, dtype=np.float32)),
        (F.Text(), [b"lab 3"], "lab 3"),
    ],
)
def test_what_is_said_of_an_episode_is_never_a_step(tmp_path: Path, feature: Any, value: Any, right: Any):
    stored = {"episode_metadata/own": value}
    directory = write(tmp_path, [episode(0, **stored)], structure(metadata={"own": feature}))
    got = RLDSDataset(directory).episode(0)["episode_metadata/own"]
    np.testing.assert_array_equal(got, right)
    assert len(demonstrations(directory).trajectories[0].actions) == STEPS


def test_what_a_set_does_not_have_is_named(tmp_path: Path):
    directory = write(
        tmp_path, [episode(0, **{"steps/observation/state": None})], structure(observation={"state": None})
    )
    read = RLDSDataset(directory)
    for ask, name in (read.file_paths, "episode_metadata/file_path"), (read.statistics, "steps/observation/state"):
        with pytest.raises(DataError, match=f"1.0.0 has no feature {name}; its features: steps/action, "):
            ask()


def test_metadata_of_two_values_is_damage(tmp_path: Path):
    stored = {"episode_metadata/own": np.arange(2)}
    features = structure(metadata={"own": F.Scalar(dtype=np.int32)})
    with pytest.raises(DataError, match=r"episode 0 .*episode_metadata/own: expected one value, got 2"):
        RLDSDataset(write(tmp_path, [episode(0, **stored)], features)).episode(0)


def test_a_picture_or_list_in_the_metadata_is_left_alone(tmp_path: Path):
    metadata = {"photo": F.Image(shape=(None, None, 3)), "tags": F.Sequence(F.Text()), "file_path": F.Text()}
    stored = {
        "episode_metadata/photo": [PNG],
        "episode_metadata/tags": [b"a", b"b"],
        "episode_metadata/file_path": [b"x"],
    }
    directory = write(tmp_path, [episode(0, **stored)], structure(metadata=metadata))
    assert RLDSDataset(directory).file_paths() == ["x"]
    assert len(demonstrations(directory).trajectories) == 1


# --- words

NO_TEXT = "text features of its steps: none; build the data set with the task in words, one text a step"


def test_the_key_chooses_the_words_and_the_others_are_said(tmp_path: Path):
    key = "observation/natural_language_instruction"
    features = structure(observation={"natural_language_instruction": F.Text()})
    stored = {f"steps/{key}": ["放".encode()] * STEPS}
    directory = write(tmp_path, [episode(0, **stored)], features)
    frames = all_frames(directory, 4, ("image",), layout=Layout(language=key))
    assert frames[0]["observation"].instruction == "放"
    assert frames.instructions().keys() == {"放"}
    notes = " ".join(frames.demonstrations.notes(_space(frames), 4))
    assert f"instructions are {key}; other texts are not read: language_instruction (data.language=…)" in notes


def _space(frames: Any) -> Any:
    from rsd.space import Space

    return Space.from_statistics(NAME, frames.norm_stats)


@pytest.mark.parametrize(
    ("step", "language", "parts"),
    [
        ({"language_instruction": None}, "language_instruction", ("there is none of this name", NO_TEXT)),
        ({"task": F.Text()}, "tusk", ("feature tusk", "text features of its steps: ", "language_instruction", "task")),
        ({}, "action", ("feature action: expected text, it is tensor [7]",)),
        ({}, "observation/words", ("text features of its steps: language_instruction",)),
        (
            {"language_instruction": F.Tensor(shape=(2,), dtype=np.str_)},
            "language_instruction",
            ("it is Tensor of strings [2]", NO_TEXT),
        ),
        ({"language_instruction": F.Sequence(F.Text())}, "language_instruction", ("it is Sequence", NO_TEXT)),
    ],
)
def test_missing_words_are_one_line_with_the_key_and_phase_rfsq_needs_none(
    tmp_path: Path, step: dict[str, Any], language: str, parts: tuple[str, ...]
):
    own = {"steps/language_instruction": None} if step.get("language_instruction", 0) is None else {}
    own |= {"steps/task": [b"x"] * STEPS} if "task" in step else {}
    if "language_instruction" in step and not own:
        own = {"steps/language_instruction": [b"x"] * 2 * STEPS}
    directory = write(tmp_path, [episode(number, **own) for number in range(2)], structure(step))
    said = refused(directory, layout=Layout(language=language))
    for part in (str(directory), *parts, "phase=rfsq needs none"):
        assert part in said
    assert ("set data.language to one of them" in said) == (NO_TEXT not in parts)
    assert len(ChunkDataset(Demonstrations(directory, language=False), 4, "train")) == STEPS - 3


def test_a_tensor_of_one_string_is_text(tmp_path: Path):
    features = structure({"language_instruction": F.Tensor(shape=(), dtype=np.str_)})
    assert demonstrations(write(tmp_path, [episode(3)], features)).trajectories[0].instructions == ("take 3",) * STEPS


@pytest.mark.parametrize("language", ["", 4, ["a"]])
def test_a_key_that_is_no_name_is_refused(language: Any):
    with pytest.raises(SettingError, match=r"language is .*expected text that is not empty or null"):
        Layout(language=language)


def test_words_that_are_no_utf8_are_named(tmp_path: Path):
    bad = episode(1, **{"steps/language_instruction": [b"take \xff\xfe"] * STEPS})
    said = refused(write(tmp_path, [episode(0), bad]))
    assert f"{NAME}: episode 1 ({NAME}-train.tfrecord-00000-of-00001): feature steps/language_instruction" in said
    assert "is no UTF-8" in said and "at byte 5" in said and "write texts as UTF-8" in said


# --- states


@pytest.mark.parametrize(
    ("state", "stored"),
    [
        (None, None),
        (F.Text(), [b"none"] * STEPS),
    ],
)
def test_phase_rfsq_needs_no_states(tmp_path: Path, state: Any, stored: Any):
    features = structure(observation={"state": state})
    directory = write(tmp_path, [episode(n, **{"steps/observation/state": stored}) for n in range(2)], features)
    assert "feature observation/state: expected tensor [dims]" in refused(directory)
    data = ChunkDataModule(root=str(tmp_path), name=NAME, version="1.0.0", chunk_length=4, batch_size=2, seed=0)
    data.setup()
    assert data.space.proprio is None and "proprio" not in data.train.norm_stats
    recorded = episode(0)["steps/action"]
    np.testing.assert_array_equal(data.train.actions[1, :, :6], recorded[1:5, :6])


def test_phase_rfsq_takes_liberos_states_where_they_are(tmp_path: Path):
    data = Demonstrations(write(tmp_path, [episode(n) for n in range(2)]), language=False, proprio=False)
    states = np.concatenate([episode(n)["steps/observation/state"] for n in range(2)])
    assert data.norm_stats["proprio"]["max"] == states.max(axis=0).tolist()


# --- episodes


def test_episodes_of_no_steps_are_counted(tmp_path: Path):
    empty = {name: None for name in episode(0)} | {"episode_metadata/path": [b"lost"]}
    full = {"episode_metadata/path": [b"kept"]}
    features = structure(metadata={"path": F.Text()})
    directory = write(tmp_path, [episode(0, **full), episode(1, **empty), episode(2, **full)], features)
    read = demonstrations(directory)
    assert [len(one.actions) for one in read.trajectories] == [STEPS, 0, STEPS]
    notes = read.notes(_space(read), 4)
    assert any("shorter than the chunk of 4 steps and give none: 1 (0 steps)" in note for note in notes)


def test_a_set_of_episodes_without_steps_is_refused(tmp_path: Path):
    empty = {name: None for name in episode(0)} | {"episode_metadata/path": [b"lost"]}
    directory = write(tmp_path, [episode(n, **empty) for n in range(2)], structure(metadata={"path": F.Text()}))
    assert refused(directory) == f"{directory}: all 2 episodes have no steps; collect them again"


def test_what_is_of_kinds_that_are_not_read_is_said(tmp_path: Path):
    features = structure(
        {"paraphrases": F.Sequence(F.Text()), "points": F.Tensor(shape=(None, 3), dtype=np.float32)},
    )
    stored = {"steps/paraphrases": [b"a"] * 20, "steps/points": np.zeros((4, 3), np.float32)}
    (said,) = RLDSDataset(write(tmp_path, [episode(0, **stored)], features)).dropped
    assert "kinds that are not read" in said and "paraphrases (Sequence)" in said and "points (Tensor of" in said


def test_steps_of_another_nesting_lack_what_is_needed(tmp_path: Path):
    features = F.FeaturesDict({"trajectory": F.Sequence({"action": F.Tensor(shape=(7,), dtype=np.float32)})})
    assert "feature action: expected tensor [dims], there is none of this name" in refused(
        write(tmp_path, [{"trajectory/action": np.zeros((4, 7), np.float32)}], features)
    )


# --- files


def zstd(data: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd" + data[:100]  # what follows is not looked at


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


@pytest.mark.parametrize(
    ("pack", "what", "remedy"),
    [
        (gzip.compress, "compressed with gzip", "gunzip"),
        (zstd, "compressed with zstd", "unzstd"),
        (lzma.compress, "compressed with xz", "unxz"),
        (bz2.compress, "compressed with bzip2", "bunzip2"),
        (lambda _: POINTER, "a Git LFS pointer", "git lfs pull"),
        (lambda _: b"<!DOCTYPE html><p>Log in", "a web page", "download the file"),
    ],
)
@pytest.mark.parametrize("name", ["train", "dataset_info.json", "features.json"])
def test_packed_files_and_pointers_are_told_by_their_first_bytes(
    tmp_path: Path, pack: Callable[[bytes], bytes], what: str, remedy: str, name: str
):
    directory = write(tmp_path, [episode(0)])
    (path,) = directory.glob(f"*{name}*")
    path.write_bytes(pack(path.read_bytes()))
    said = refused(directory)
    assert str(path) in said and what in said and remedy in said
    assert said == stranger(path)


@pytest.mark.parametrize(("total", "there"), [("00006", 1), ("00000", 1)])
def test_other_numbers_of_files_are_told_by_what_lies_there(tmp_path: Path, total: str, there: int):
    directory = write(tmp_path, [episode(0)])
    (path,) = directory.glob("*-of-*")
    path.rename(directory / path.name.replace("of-00001", f"of-{total}"))
    said = refused(directory)
    assert (
        f"{there} others lie there" in said and f"of-{total}" in said and "rename them or build the set again" in said
    )


@pytest.mark.parametrize("file_format", ["array_record", "riegeli", "parquet"])
def test_other_formats_of_files_are_named(tmp_path: Path, file_format: str):
    said = refused(write(tmp_path, [episode(0)], file_format=file_format))
    assert file_format in said and "tfrecord" in said


def test_another_split_is_said_and_train_is_needed(tmp_path: Path):
    directory = write(tmp_path / "a", [episode(0)], splits={"val": 2})
    assert RLDSDataset(directory).dropped == [
        f"split 'val' with 2 episodes of {directory} is not read: val is held out of 'train'"
    ]
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"train"', '"validation"'))
    assert "none called 'train'" in refused(directory)
