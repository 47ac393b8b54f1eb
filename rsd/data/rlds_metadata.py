"""An RLDS directory's metadata: what its two JSON files say, checked, through tensorflow-datasets.

What surprises first: tensorflow-datasets takes about a second to import (without TensorFlow), so it is imported where
it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rsd.data import DataError
from rsd.data.libero_features import FeatureSpec, flatten_features
from rsd.files import stranger

SPLIT = "train"  # the one that is read
FILE_FORMAT = "tfrecord"  # the one of those of tensorflow-datasets that is read
INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
STATISTICS_FILE = "dataset_statistics.json"
MAX_LINE = 200  # letters of what tensorflow-datasets says of them
HOW_TO_GET = (
    "collect demonstrations with scripts/collect_demos.py, or put a published set of openvla/modified_libero_rlds there"
)


class Metadata(NamedTuple):
    """What dataset_info.json and features.json say."""

    name: str
    version: str
    shards: list[Path]
    shard_lengths: list[int]
    features: dict[str, FeatureSpec]
    other_splits: dict[str, int]  # name → episodes, of those that are not read


def check_dataset(directory: Path) -> None:
    """Raise DataError unless `directory` (<data.root>/<name>/<version>) is an RLDS directory with something in it."""
    directory = Path(directory)
    root = directory.parent.parent
    if not root.is_dir():
        raise DataError(f"data.root {root} does not exist; {HOW_TO_GET}, as {directory}, or set data.root")
    if not directory.is_dir():
        there = sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in root.glob(f"*/*/{INFO_FILE}"))
        raise DataError(f"no data set at {directory}; data.root {root} holds {there}; {HOW_TO_GET}")
    if not any(directory.iterdir()):
        raise DataError(f"{directory} is empty; expected an RLDS data set; {HOW_TO_GET}")
    missing = [name for name in (INFO_FILE, FEATURES_FILE) if not (directory / name).is_file()]
    if missing:
        raise DataError(f"{directory} is not an RLDS data set: {' and '.join(missing)} missing; {HOW_TO_GET}")
    for name in (INFO_FILE, FEATURES_FILE):
        try:
            json.loads((directory / name).read_bytes())
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            message = f"{directory / name} is not JSON: {error}; fetch or collect the data set again"
            raise DataError(stranger(directory / name) or message) from error


def read_metadata(directory: Path) -> Metadata:
    """Metadata through tensorflow-datasets, which takes about a second to import; TensorFlow is not loaded.

    Raises:
        DataError: not an RLDS directory with a split "train", or files of it are missing.
    """
    check_dataset(directory)
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        builder = tfds.builder_from_directory(directory)
        file_format = str(builder.info.file_format.value)
        if file_format != FILE_FORMAT:
            raise DataError(
                f"{directory} is written as {file_format} ({INFO_FILE}: fileFormat), only {FILE_FORMAT} is read; "
                f"convert it: python -m tensorflow_datasets.scripts.convert_format --out_file_format={FILE_FORMAT} …"
            )
        features = dict(sorted(flatten_features(builder.info.features).items()))  # else in another order each time
        sizes = {name: int(split.num_examples) for name, split in builder.info.splits.items()}
        if SPLIT not in sizes:
            raise DataError(
                f"{directory} has splits {sizes} and none called {SPLIT!r}, the one that is read; write the episodes "
                f"as {SPLIT!r}, or rename that split in {INFO_FILE} and its files"
            )
        split = builder.info.splits[SPLIT]
        shards, lengths = [Path(path) for path in split.filepaths], [int(length) for length in split.shard_lengths]
    except (ParseError, ValueError, KeyError, TypeError, AttributeError, OSError, ImportError) as error:
        line = " ".join(str(error).split())[:MAX_LINE]
        raise DataError(
            f"{directory} is not an RLDS data set that tensorflow-datasets reads: {line}; see that {INFO_FILE} and "
            f"{FEATURES_FILE} are as they were written, or fetch the set again"
        ) from error
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise DataError(f"{directory}: {_missing(missing, len(shards), directory)}")
    if wrong := [length for length in lengths if length < 0]:
        raise DataError(
            f"{directory / INFO_FILE}: shardLengths of split {SPLIT!r} holds {wrong[0]}, expected numbers of episodes "
            "from 0; fetch it again, or build the set again"
        )
    if sum(lengths) == 0:
        raise DataError(f"{directory} holds no episodes; {HOW_TO_GET}")
    del sizes[SPLIT]
    return Metadata(builder.info.name, str(builder.info.version), shards, lengths, features, sizes)


def _missing(missing: Sequence[str], count: int, directory: Path) -> str:
    """What to say of files that are not there, and of those that lie there in their place."""
    said = f"{len(missing)} of the {count} files that {INFO_FILE} names are missing: {', '.join(missing[:2])}"
    said += ", …" if len(missing) > 2 else ""
    if folders := [name for name in missing if (directory / name).is_dir()]:
        return f"{folders[0]} is a folder, expected a file of records; fetch it again"
    others = sorted(path.name for path in directory.glob("*.tfrecord*") if path.suffix != ".tmp")
    if others and len(missing) == count:
        return (
            f"{said}; {len(others)} others lie there: {', '.join(others[:2])}{', …' if len(others) > 2 else ''}; the "
            "names must end in -of- and the number of files in shardLengths: rename them or build the set again"
        )
    return f"{said}; fetch them again"
