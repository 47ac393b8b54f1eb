"""LeRobot's data sets of format v3 → episodes of an RLDS directory.

    meta/info.json                              features, frames a second, where files are
    meta/tasks.parquet                          instructions by task_index
    meta/episodes/chunk-000/file-000.parquet    which rows and which seconds of which files are an episode
    data/chunk-000/file-000.parquet             numbers, and pictures that are no video
    videos/<feature>/chunk-000/file-000.mp4     pictures of many episodes after each other

What surprises first: a frame belongs to an episode by time alone. The picture of step i is the one at from_timestamp +
i / fps, which is how LeRobot reads it; the column "timestamp" is rounded, and is not looked at.

Source: src/lerobot/datasets of huggingface/lerobot: utils.py (paths) at 00448aa, dataset_reader.py (times) at 0201803,
dataset_metadata.py at 000c716.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np

from rsd.data import DataError
from rsd.data.conversion import Pictures
from rsd.data.lerobot_tables import Tables
from rsd.data.lerobot_videos import pictures_at
from rsd.data.pictures import decode_picture
from rsd.data.rlds_features import picture, rlds_features, scalar, text, vector
from rsd.data.rlds_record import ENCODERS, FIRST_BYTES
from rsd.record import read

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

INFO = "meta/info.json"
INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own; say nothing new
ENDINGS = {"next.reward": "reward", "next.done": "is_terminal"}  # features that RLDS has names for
CONVERT = "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME --root={root} --push-to-hub=false"


class _Info(TypedDict):
    """What is read of info.json."""

    codebase_version: str
    fps: float
    features: dict[str, dict[str, Any]]
    data_path: NotRequired[str]
    video_path: NotRequired[str | None]
    splits: NotRequired[dict[str, str]]


class LeRobotSet:
    """A data set as a source of `rsd.data.conversion.convert`.

    Args:
        root: The folder with meta/, data/ and videos/.
        views: Cameras that are converted, by their names below observation.images; all if left out.
        pictures: How they are encoded anew. Pictures that are no video and are stored so already are kept as they are.
        splits: Of info.json, which are converted.

    Raises:
        DataError: another version of the format, or files that are missing, damaged or say different things.
    """

    def __init__(
        self,
        root: Path,
        *,
        views: Sequence[str] | None = None,
        pictures: Pictures = "jpeg",
        splits: Sequence[str] = ("train",),
    ) -> None:
        self._root, self._pictures = root, pictures
        info = _read_info(root)
        self.rate: float | None = float(info["fps"])
        self.gripper: tuple[float, float] | None = None  # their names do not say which values are open
        self._fps = float(info["fps"])
        names = _dim_names(info["features"].get("action", {"dtype": "float32"}))
        self.gripper_dims: Sequence[int] | None = [
            dim for dim, name in enumerate(names) if "gripper" in name.lower()
        ] or None
        self.notes: list[str] = []
        self._tables = Tables(root, info.get("data_path"), info.get("video_path"))
        self._features = self._named(info["features"], views)
        self.features: FeatureConnector | None = rlds_features(
            {
                name.removeprefix("steps/"): self._feature(key, info["features"][key])
                for key, name in self._features.items()
            }
        )
        self._specs = info["features"]
        self._episodes = self._chosen(info.get("splits") or {}, splits)
        self.options = {
            "format": "lerobot",
            "source": root.resolve().name,
            "views": list(views) if views else "all",
            "pictures": pictures,
            "splits": list(splits),
        }

    def file_paths(self) -> Sequence[str]:
        """<folder>/episode_<number>."""
        return list(self._episodes)

    def episode(self, file_path: str) -> Mapping[str, Any]:
        """As `rsd.data.conversion.Source` has it."""
        index = self._episodes[file_path]
        rows = self._tables.rows(index)
        episode: dict[str, Any] = {
            "episode_metadata/file_path": file_path,
            "steps/language_instruction": self._tables.instructions(rows, index),
        }
        for key, name in self._features.items():
            spec = self._specs[key]
            if spec["dtype"] == "video":
                clip = self._tables.clip(index, key)
                times = clip.start + np.arange(rows.num_steps) / self._fps  # [n], seconds
                where = f"episode {index}, feature {key}"
                encode = ENCODERS[self._pictures]
                episode[name] = [encode(one) for one in pictures_at(clip.path, times, self._fps, where)]
            elif spec["dtype"] == "image":
                episode[name] = [self._image(one, rows.where(key, step)) for step, one in enumerate(rows.images(key))]
            elif spec["dtype"] == "string":
                episode[name] = rows.texts(key)
            else:
                values = rows.numbers(key, _shape(spec))
                episode[name] = values.reshape(len(values)) if key in ENDINGS else values
                if spec["dtype"] == "float64":
                    episode[name] = episode[name].astype(np.float32)
        if "steps/is_terminal" in episode:
            episode["steps/is_terminal"] = episode["steps/is_terminal"].astype(bool)
        return episode

    def _image(self, stored: bytes, where: str) -> bytes:
        if stored.startswith(FIRST_BYTES[self._pictures]):
            return stored
        try:
            return ENCODERS[self._pictures](decode_picture(stored))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error

    def _named(self, features: Mapping[str, dict[str, Any]], views: Sequence[str] | None) -> dict[str, str]:
        """Feature to its name in the RLDS set."""
        names: dict[str, str] = {}
        cameras: dict[str, str] = {}
        for key, spec in features.items():
            if key in INDICES:
                continue
            name = rlds_name(key)
            if (reason := _unread(key, spec)) is not None:
                self.notes.append(f"{self._root}: feature {key} is left out: {reason}")
                continue
            if name in names.values():
                raise DataError(f"{self._root / INFO}: two features become {name}; rename {key}")
            names[key] = name
            if spec["dtype"] in ("image", "video"):
                cameras[name.rpartition("/")[2]] = key
        if views is not None:
            if missing := [view for view in views if view not in cameras]:
                raise DataError(f"{self._root}: no camera {missing[0]!r}; there are {sorted(cameras)}; set --views")
            left = sorted(set(cameras) - set(views))
            names = {key: name for key, name in names.items() if key not in {cameras[view] for view in left}}
            self.notes += [f"{self._root}: camera {view} is left out (--views)" for view in left]
        if not any(name == "steps/action" for name in names.values()):
            raise DataError(f"{self._root / INFO}: no feature 'action'; there are {sorted(features)}")
        return names

    def _feature(self, key: str, spec: Mapping[str, Any]) -> FeatureConnector:
        names = _dim_names(spec)
        doc = f"{key}: {', '.join(names)}" if names else key
        if spec["dtype"] in ("image", "video"):
            height, width = _picture_size(key, spec)
            return picture(height, width, self._pictures, doc)
        if spec["dtype"] == "string":
            return text(doc)
        if key in ENDINGS:
            return scalar(np.bool_ if key == "next.done" else np.float32, doc)
        dtype = {"f": np.float32, "b": np.bool_}.get(np.dtype(spec["dtype"]).kind, np.int64)
        shape = _shape(spec)
        if len(shape) == 1:
            return vector(shape[0], doc, dtype)
        import tensorflow_datasets as tfds

        return tfds.features.Tensor(shape=shape, dtype=dtype, doc=doc)

    def _chosen(self, ranges: Mapping[str, str], splits: Sequence[str]) -> dict[str, int]:
        """File path to number of the episodes of these splits; without splits all."""
        numbers = self._tables.episodes
        if ranges:
            if missing := [name for name in splits if name not in ranges]:
                raise DataError(f"{self._root / INFO}: no split {missing[0]!r}; there are {dict(ranges)}; set --splits")
            wanted = {index for name in splits for index in _split(ranges[name], self._root / INFO)}
            for name in sorted(set(ranges) - set(splits)):
                self.notes.append(f"{self._root}: split {name!r} ({ranges[name]}) is left out (--splits)")
            numbers = [index for index in numbers if index in wanted]
        if not numbers:
            raise DataError(f"{self._root}: no episodes in splits {list(splits)} of {dict(ranges)}; set --splits")
        return {f"{self._root.resolve().name}/episode_{index:06d}": index for index in numbers}


def rlds_name(key: str) -> str:
    """ "observation.images.front" → "steps/observation/front"; dots that are left become underscores."""
    if key in ENDINGS:
        return f"steps/{ENDINGS[key]}"
    group, dot, rest = key.partition(".")
    if group == "observation" and dot:
        return f"steps/observation/{rest.removeprefix('images.').replace('.', '_')}"
    return f"steps/{key.replace('.', '_')}"


def _read_info(root: Path) -> _Info:
    path = root / INFO
    if not path.is_file():
        raise DataError(f"{root} is no LeRobot data set: it has no {INFO}; name the folder with meta/ and data/")
    info = read(path, _Info, error=DataError, remedy="fetch the data set again")
    version = info["codebase_version"]
    if not version.startswith("v3."):
        remedy = "export it as v3.0"
        if version.startswith(("v1.", "v2.")):
            older = "" if version == "v2.1" else "bring it to v2.1 by LeRobot's older converters, then "
            remedy = f"{older}convert it: {CONVERT.format(root=root)}"
        raise DataError(f"{path}: format {version}, expected v3.0; {remedy}")
    if not info["fps"] > 0:
        raise DataError(f"{path}: fps is {info['fps']}, expected frames a second above 0")
    for key, spec in info["features"].items():
        shape = spec.get("shape")
        sized = isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape)
        if not isinstance(spec.get("dtype"), str) or not sized:
            raise DataError(f"{path}: feature {key} is {spec}, expected its dtype and its shape, sizes from 1")
    return info


def _unread(key: str, spec: Mapping[str, Any]) -> str | None:
    """Why a feature is not converted; None for one that is."""
    about = (spec.get("info") or {}) | (spec.get("video_info") or {})
    if about.get("is_depth_map") or about.get("video.is_depth_map"):
        return "a depth map, no picture in colours"
    if spec["dtype"] in ("image", "video", "string"):
        return None if spec["dtype"] != "string" or spec["shape"] == [1] else f"texts of shape {spec['shape']}"
    try:
        known = np.dtype(spec["dtype"]).kind in "fiub"
    except TypeError:
        known = False
    return None if known else f"of {spec['dtype']}"


def _shape(spec: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(spec["shape"])


def _dim_names(spec: Mapping[str, Any]) -> list[str]:
    """Of a vector's dims: a list, or as in {"motors": [...]}."""
    names = spec.get("names")
    if isinstance(names, dict):
        names = [one for part in names.values() if isinstance(part, list) for one in part]
    return [str(one) for one in names or []] if spec["dtype"] not in ("image", "video") else []


def _picture_size(key: str, spec: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width: by the names of the dims, else by where the three channels stand."""
    shape, names = spec["shape"], spec.get("names")
    if len(shape) == 3 and isinstance(names, list) and {"height", "width"} <= set(names):
        return shape[names.index("height")], shape[names.index("width")]
    if len(shape) == 3 and 3 in (shape[0], shape[-1]):
        return (shape[0], shape[1]) if shape[-1] == 3 else (shape[1], shape[2])
    raise DataError(f"feature {key} has shape {shape}, expected pictures [height, width, 3] or [3, height, width]")


def _split(text: str, path: Path) -> range:
    start, colon, stop = str(text).partition(":")
    if not (colon and start.isdigit() and stop.isdigit()):
        raise DataError(f"{path}: a split is {text!r}, expected episodes as 0:50")
    return range(int(start), int(stop))
