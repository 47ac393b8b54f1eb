"""One episode as the record of the features that a data set declares, checked before anything is written.

What surprises first: flags, reward and discount need not be given. They follow from the length, as in the published
sets of demonstrations: an episode ends with reward 1, terminal.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rsd.data import DataError
from rsd.data.libero_features import STEPS, FeatureSpec, flatten_features
from rsd.data.libero_records import FILE_PATH
from rsd.data.pictures import JPEG, PNG, check_header
from rsd.data.trajectories import check_finite
from rsd.jpeg import encode_jpeg

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

FIRST_BYTES = {"jpeg": JPEG, "png": PNG}
FLAGS = ("is_first", "is_last", "is_terminal", "reward", "discount")  # of the steps; filled in where they are declared


def encode_png(picture: np.ndarray) -> bytes:
    """[H, W, 3], uint8 → PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {"jpeg": encode_jpeg, "png": encode_png}


class RecordForm:
    """What the records of a data set hold.

    Args:
        features: As `rsd.data.rlds_features.rlds_features` makes them, or any of tensorflow-datasets with "steps".

    Raises:
        DataError: there is no feature of steps, no episode_metadata/file_path, or one of a kind that is not written.
    """

    def __init__(self, features: FeatureConnector) -> None:
        self.specs: dict[str, FeatureSpec] = flatten_features(features)
        self._formats = _picture_formats(features)
        if not any(name.startswith(f"{STEPS}/") for name in self.specs):
            raise DataError(f"features {sorted(self.specs)} have none below {STEPS!r}; expected those of an episode")
        if FILE_PATH not in self.specs or self.specs[FILE_PATH].kind != "text":
            raise DataError(
                f"features {sorted(self.specs)} lack the text {FILE_PATH}, by which episodes are told apart"
            )
        for name, spec in self.specs.items():
            unwritten = not spec.is_read or spec.encoding != "none"
            if unwritten or (spec.kind == "image" and (spec.shape[-1:] != (3,) or spec.dtype != np.uint8)):
                what = f"encoding {spec.encoding}" if spec.encoding != "none" else f"{spec.kind} {list(spec.shape)}"
                raise DataError(
                    f"feature {name} is declared as {what} of {spec.dtype}, which is not written; expected pictures "
                    "[height, width, 3] of uint8, tensors of numbers, or texts"
                )

    def record(self, episode: Mapping[str, Any]) -> dict[str, np.ndarray | list[bytes]]:
        """The record's features by flat name.

        Args:
            episode: Values by name, flat ("steps/observation/front") or nested. Of a step's feature: n pictures (each
                uint8 [H, W, 3], or JPEG or PNG bytes), an array [n, *shape], n texts, or one text for all steps. Of the
                episode's: one value.

        Raises:
            DataError: a feature is missing, unknown, of another shape or length, or not finite; the message names
                episode and feature.
        """
        flat = flatten(episode)
        where = f"episode {flat.get(FILE_PATH)!r}"
        flags = {name for name in self.specs if name in {f"{STEPS}/{flag}" for flag in FLAGS}}
        if unknown := sorted(set(flat) - set(self.specs)):
            raise DataError(f"{where}: the features have no {unknown[0]}; expected {sorted(self.specs)}")
        if missing := sorted(set(self.specs) - set(flat) - flags):
            raise DataError(f"{where}: feature {missing[0]} is missing; got {sorted(flat)}")
        num_steps = self._length(flat, where)
        flat |= {name: value for name, value in _flags(num_steps).items() if name in flags - set(flat)}
        return {name: self._values(name, flat[name], num_steps, where) for name in sorted(self.specs)}

    def _length(self, flat: Mapping[str, Any], where: str) -> int:
        """Steps of the episode, by its actions where there are some."""
        counted = [name for name, spec in self.specs.items() if _is_step(name) and spec.kind != "text" and name in flat]
        name = next((name for name in (f"{STEPS}/action", *counted) if name in counted), None)
        if name is None:
            raise DataError(f"{where}: neither numbers nor pictures among its features, so it has no length")
        try:
            num_steps = len(flat[name])
        except TypeError:
            raise DataError(f"{where}: feature {name}: expected a value a step, got {flat[name]!r}") from None
        if num_steps == 0:
            raise DataError(f"{where} has no steps; expected at least one")
        return num_steps

    def _values(self, name: str, value: Any, num_steps: int, where: str) -> np.ndarray | list[bytes]:
        spec = self.specs[name]
        if not _is_step(name):
            value = value if spec.kind == "text" else [value]
            num_steps = 1
        if spec.kind == "text":
            return _texts(name, value, num_steps, where)
        if spec.kind == "tensor":
            return _numbers(name, value, spec, num_steps, where)
        if len(value) != num_steps:
            raise DataError(
                f"{where}: feature {name}: expected {num_steps} pictures, one for each step, got {len(value)}"
            )
        encoding = self._formats[name]
        return [_picture(name, one, spec, encoding, f"{where}, step {step}") for step, one in enumerate(value)]


def flatten(episode: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts → one by names with slashes."""
    flat: dict[str, Any] = {}
    for name, value in episode.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _is_step(name: str) -> bool:
    return name.startswith(f"{STEPS}/")


def _picture_formats(feature: FeatureConnector, prefix: str = "") -> dict[str, str]:
    """Flat name of each picture to how it is encoded; tensorflow-datasets takes PNG where nothing is declared."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        formats: dict[str, str] = {}
        for name, child in feature.items():
            formats |= _picture_formats(child, f"{prefix}/{name}" if prefix else name)
        return formats
    if isinstance(feature, tfds.features.Dataset) and prefix == STEPS:
        return _picture_formats(feature.feature, prefix)
    if isinstance(feature, tfds.features.Image):
        return {prefix: feature.to_json_content().encoding_format or "png"}
    return {}


def _flags(num_steps: int) -> dict[str, np.ndarray]:
    """What the published sets say of a demonstration."""
    first, last = np.arange(num_steps) == 0, np.arange(num_steps) == num_steps - 1
    ones = np.ones(num_steps, dtype=np.float32)
    values = (first, last, last, last.astype(np.float32), ones)
    return {f"{STEPS}/{name}": value for name, value in zip(FLAGS, values, strict=True)}


def _texts(name: str, value: Any, num_steps: int, where: str) -> list[bytes]:
    texts = [value] * num_steps if isinstance(value, str) else list(value)
    if wrong := [one for one in texts if not isinstance(one, str)]:
        raise DataError(f"{where}: feature {name}: expected text, got {wrong[0]!r}")
    if len(texts) != num_steps:
        raise DataError(f"{where}: feature {name}: expected one text, or {num_steps}, one a step; got {len(texts)}")
    return [one.encode() for one in texts]


def _numbers(name: str, value: Any, spec: FeatureSpec, num_steps: int, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # of rows that have different lengths
        raise DataError(f"{where}: feature {name}: no array: {error}") from error
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}[spec.dtype.kind]
    shape = (num_steps, *spec.sizes) if _is_step(name) else (1, *spec.sizes)
    if array.shape != shape or array.dtype.kind not in kinds:
        raise DataError(
            f"{where}: feature {name}: expected {list(shape)} of {spec.dtype}, got {list(array.shape)} of {array.dtype}"
        )
    with np.errstate(over="ignore"):  # is found below
        written = array.astype(spec.dtype)
    if array.dtype.kind == "f":
        check_finite(written.reshape(len(written), -1), name, where)
    elif spec.dtype.kind != "f" and not np.array_equal(written, array):
        raise DataError(f"{where}: feature {name}: {array.min()}..{array.max()} do not fit into {spec.dtype}")
    return written


def _picture(name: str, picture: bytes | np.ndarray, spec: FeatureSpec, encoding: str, where: str) -> bytes:
    height, width = spec.shape[:2]
    if isinstance(picture, bytes):
        try:
            check_header(picture, None if height is None or width is None else (height, width))
        except ValueError as error:
            raise DataError(f"{where}: feature {name}: {error}") from error
        if not picture.startswith(FIRST_BYTES[encoding]):
            raise DataError(f"{where}: feature {name} is declared as {encoding}, got bytes of another format")
        return picture
    shape, dtype = np.shape(picture), np.asarray(picture).dtype
    fits = len(shape) == 3 and all(size in (None, got) for size, got in zip(spec.shape, shape, strict=True))
    if not fits or dtype != np.uint8 or 0 in shape:
        raise DataError(
            f"{where}: feature {name}: expected a picture {['any' if n is None else n for n in spec.shape]} of uint8, "
            f"got {list(shape)} of {dtype}"
        )
    return ENCODERS[encoding](np.asarray(picture))
