"""Writer of RLDS directories, of any features or of the published LIBERO sets'; survives being killed at any byte.

There is one file, <name>-train.tfrecord-00000-of-00001, which only grows. An episode is appended and synced, and then
counted in dataset_info.json, which is replaced whole. Opening the directory again cuts a torn last record off and goes
on. What surprises first: readers never see an uncounted record, so a set may be read while it is being collected.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from google.protobuf.json_format import MessageToJson

from rsd.data import DataError
from rsd.data.libero_features import libero_features
from rsd.data.libero_records import FILE_PATH, episode_features
from rsd.data.rlds_metadata import FEATURES_FILE, INFO_FILE, STATISTICS_FILE
from rsd.data.rlds_reader import RLDSDataset
from rsd.data.rlds_record import RecordForm, flatten
from rsd.data.tf_example import byte_spans, encode_example, parse_example
from rsd.data.tfrecord import FOOTER_BYTES, HEADER_BYTES, Span, frame, read_record, scan
from rsd.files import WriteError, write_atomically
from rsd.record import read

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

VERSION = r"((0|[1-9]\d*)\.){2}(0|[1-9]\d*)"  # as tensorflow-datasets reads it
FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # of tensorflow-datasets


class _Split(TypedDict):
    shardLengths: list[str]


class _Info(TypedDict):
    """What is read of dataset_info.json."""

    name: str
    version: str
    splits: list[_Split]


class RLDSWriter:
    """Appends episodes to an RLDS directory, new or begun earlier by this class.

    Args:
        directory: Where the files go; <data.root>/<name>/<version> by convention.
        name: Name of the data set, e.g. libero_spatial_no_noops.
        version: Three numbers, e.g. 1.0.0.
        features: What an episode is made of (see rsd/data/rlds_features.py); those of the LIBERO sets if left out.

    Raises:
        DataError: name, version or features are none that are written, the directory holds something else, is damaged,
            or another process writes to it. Nothing is changed.
    """

    def __init__(
        self, directory: Path, name: str, version: str = "1.0.0", features: FeatureConnector | None = None
    ) -> None:
        if not name or re.fullmatch(VERSION, version) is None:
            raise DataError(
                f"{directory}: data set {name!r}, version {version!r}; expected <root>/<name>/<version>, a name and "
                "three numbers as 1.0.0"
            )
        self.directory, self.name, self.version = Path(directory), name, version
        self._is_libero, self._features = features is None, features or libero_features()
        self._form = RecordForm(self._features)
        self.path = self.directory / f"{name}-train.tfrecord-00000-of-00001"
        self.directory.mkdir(parents=True, exist_ok=True)
        foreign = sorted(path.name for path in self.directory.glob("*.tfrecord*") if path != self.path)
        if foreign:
            raise DataError(
                f"{self.directory} holds {foreign[0]}, which this writer did not write; expected only "
                f"{self.path.name}; choose another directory"
            )
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self._check_features()
            self._spans, end = self._whole()
            self._file_paths = [self._read_file_path(span) for span in self._spans]
            os.ftruncate(self._file, end)  # what a killed writer left
            self._write_features()
        except BaseException:  # whatever it is, Ctrl-C too: let go of the file, then pass it on
            self.close()
            raise

    def __enter__(self) -> RLDSWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._spans)

    def file_paths(self) -> list[str]:
        """episode_metadata/file_path of every episode that is in the file, in order."""
        return list(self._file_paths)

    def write_episode(self, episode: Mapping[str, Any]) -> None:
        """Append one episode; when this returns it is on disk and readable.

        Args:
            episode: Values by the names of the features, nested or flat, as `RecordForm.record` takes them. Of the
                LIBERO sets: {"steps": {"observation": {"image", "wrist_image": n pictures, each [256, 256, 3] uint8 or
                JPEG bytes; "state": [n, 8]; "joint_state": [n, 7]}, "action": [n, 7] as robosuite recorded it,
                "language_instruction": str}, "episode_metadata": {"file_path": str, which names the episode}}. The
                rewards and flags of the published sets are added: a demonstration ends with reward 1, terminal.

        Raises:
            DataError: a feature has another shape or is not finite, or the file_path is there. Nothing is written.
            WriteError: no space, for example. Every earlier episode is as it was.
        """
        file_path = flatten(episode).get(FILE_PATH)
        if not isinstance(file_path, str) or not file_path:
            raise DataError(f"{FILE_PATH} is {file_path!r}; expected a text that names the episode")
        if file_path in self._file_paths:
            raise DataError(f"{self.directory}: episode {file_path!r} is already there; each has its own file_path")
        if self._is_libero and "steps" in episode:
            features = episode_features(episode["steps"], file_path)
        else:
            features = self._form.record(episode)
        payload = encode_example(features)
        span = Span(self._end() + HEADER_BYTES, len(payload))
        try:
            self._append(frame(payload))
        except BaseException:  # whatever it is, Ctrl-C too: leave no torn record, then pass it on
            os.ftruncate(self._file, span.offset - HEADER_BYTES)
            raise
        self._spans.append(span)
        self._file_paths.append(file_path)
        self._write_info()

    def finish(self) -> None:
        """Write what readers need of what is there; call again after appending.

        Of the LIBERO sets that includes dataset_statistics.json. Of others it does not: how their gripper is recorded
        stands in data.gripper, and training computes statistics by it.
        """
        if not self._spans:
            raise DataError(f"{self.directory}: no episode was written, so there is no data set to finish")
        self._write_info()
        if self._is_libero:
            statistics = {self.name: RLDSDataset(self.directory).statistics()}
            write_atomically(self.directory / STATISTICS_FILE, json.dumps(statistics, indent=2) + "\n")

    def close(self) -> None:
        """Let go of the file; safe to call twice. Does not finish."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{self.path} is being written by another process; wait for it or stop it") from error

    def _whole(self) -> tuple[list[Span], int]:
        """The whole records, and where they end; what a killed writer left lies behind."""
        spans, end = scan(self.path)
        counted = self._counted()
        if len(spans) < counted:
            raise DataError(
                f"{self.path}: {INFO_FILE} counts {counted} episodes, only {len(spans)} are whole (the file is damaged "
                f"from byte {end} on); nothing was changed; restore the file, or move {self.directory} away"
            )
        return spans, end

    def _counted(self) -> int:
        path = self.directory / INFO_FILE
        if not path.exists():
            return 0
        info = read(path, _Info, error=DataError, remedy=f"restore it, or move {self.directory} away")
        if (info["name"], info["version"]) != (self.name, self.version):
            raise DataError(
                f"{self.directory} holds data set {info['name']} {info['version']}, expected {self.name} "
                f"{self.version}; choose another directory"
            )
        return sum(int(length) for split in info["splits"] for length in split["shardLengths"])

    def _read_file_path(self, span: Span) -> str:
        record = read_record(self._file, span, self.path)
        try:
            start, end = byte_spans(record, parse_example(record)[FILE_PATH])[0]
            return bytes(record[start:end]).decode()
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"{self.path}: the record at byte {span.offset} has no {FILE_PATH}, by which episodes are told; "
                f"nothing was changed; move {self.directory} away"
            ) from error

    def _end(self) -> int:
        return sum(self._spans[-1]) + FOOTER_BYTES if self._spans else 0

    def _append(self, record: bytes) -> None:
        offset, rest = self._end(), memoryview(record)
        try:
            while rest:
                written = os.pwrite(self._file, rest, offset)
                offset, rest = offset + written, rest[written:]
            os.fsync(self._file)
        except OSError as error:
            raise WriteError(self.path, error) from error

    def _check_features(self) -> None:
        path = self.directory / FEATURES_FILE
        if path.exists():
            own = json.loads(_text(self._features))
            if read(path, dict[str, Any], error=DataError, remedy=f"restore it, or move {self.directory} away") != own:
                expected = "the LIBERO sets have" if self._is_libero else "the episodes to be written have"
                raise DataError(f"{path} describes other features than {expected}; choose another directory")

    def _write_features(self) -> None:
        path = self.directory / FEATURES_FILE
        if not path.exists():
            write_atomically(path, _text(self._features) + "\n")

    def _write_info(self) -> None:
        split = {
            "name": "train",
            "filepathTemplate": FILE_TEMPLATE,
            "numBytes": str(sum(span.length for span in self._spans)),
            "shardLengths": [str(len(self._spans))],
        }
        info = {"name": self.name, "version": self.version, "fileFormat": "tfrecord", "splits": [split]}
        write_atomically(self.directory / INFO_FILE, json.dumps(info, indent=2) + "\n")


def _text(features: FeatureConnector) -> str:
    return MessageToJson(features.to_proto(), sort_keys=True)
