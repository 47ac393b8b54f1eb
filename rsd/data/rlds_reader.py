"""Reader of RLDS directories: any episode, in any order, without TensorFlow.

What surprises first: dataset_info.json says how many records count. What lies behind the last counted one belongs to an
episode that is being written, and is not looked at.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsd.data import DataError
from rsd.data.libero_features import STEPS as STEPS_FEATURE
from rsd.data.libero_features import FeatureSpec
from rsd.data.libero_records import FILE_PATH
from rsd.data.pictures import check_header
from rsd.data.rlds_metadata import INFO_FILE, read_metadata
from rsd.data.tf_example import (
    BYTES,
    FLOAT,
    INT64,
    Feature,
    byte_spans,
    float_values,
    int_values,
    parse_example,
    text_values,
)
from rsd.data.tfrecord import HEADER_BYTES, Span, read_record, scan
from rsd.data.trajectories import check_finite, compute_statistics, standardize_actions, standardize_proprio
from rsd.files import stranger

STEPS = f"{STEPS_FEATURE}/"
BUILD_AGAIN = "remove the episode, or build the data set again"


class RLDSDataset:
    """Random access to the episodes of an RLDS directory.

    Attributes:
        name, version: Of the data set, as in dataset_info.json.
        features: Flat name ("steps/observation/state") to what one value is.
        dropped: What of the directory is not read, a line each.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        metadata = read_metadata(self.directory)
        self.name, self.version, self.features = metadata.name, metadata.version, metadata.features
        self.dropped = [
            f"split {name!r} with {count} episodes of {self.directory} is not read: val is held out of 'train'"
            for name, count in metadata.other_splits.items()
        ]
        unread = {name: spec.kind for name, spec in self.features.items() if _is_step(name) and not spec.is_read}
        if unread:
            named = ", ".join(f"{name.removeprefix(STEPS)} ({kind})" for name, kind in unread.items())
            self.dropped.append(f"features of {self.directory} that are of kinds that are not read: {named}")
        self._records: list[tuple[Path, Span]] = []
        for path, length in zip(metadata.shards, metadata.shard_lengths, strict=True):
            spans, end = scan(path, count=length)
            if len(spans) < length:
                other = stranger(path) if path.stat().st_size < HEADER_BYTES else None  # shorter than any record
                raise DataError(
                    other
                    or f"{path}: truncated: {INFO_FILE} promises {length} records, only {len(spans)} are whole; the "
                    f"file ends at byte {path.stat().st_size}, inside the record that begins at byte {end}; fetch or "
                    "collect this file again"
                )
            if (behind := path.stat().st_size - end) > 0:
                self.dropped.append(f"{behind} bytes of {path} behind the {length} records that {INFO_FILE} counts")
            self._records += [(path, span) for span in spans]
        self._files: dict[Path, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}  # descriptors do not travel to other processes

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit the module `os` may be gone before
        for file in getattr(self, "_files", {}).values():
            close(file)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def num_bytes(self) -> int:
        """Of all counted records."""
        return sum(span.length for _, span in self._records)

    def episode(self, index: int, images: bool = False) -> dict[str, Any]:
        """Everything that is stored of one episode of n steps, unchanged.

        Returns:
            Flat names without "steps/": tensors as arrays [n, *shape], texts as lists of n strings, and with `images`
            pictures as lists of n encoded byte strings. Features of the episode, such as its metadata, are one value:
            an array of their shape, or a string. Features of a kind that is not read are left out.

        Raises:
            DataError: the record is damaged, or a feature is not what features.json says.
        """
        pictures = [name for name, spec in self.features.items() if spec.kind == "image" and _is_step(name)]
        record, features, episode, spans = self._read(index, pictures if images else [])
        kinds = {name: spec.kind for name, spec in self.features.items() if not _is_step(name)}
        metadata = [name for name, kind in kinds.items() if kind in ("text", "tensor")]
        read = {name: [bytes(record[start:end]) for start, end in where] for name, where in spans.items()}
        return episode | read | self._of_episode(record, features, metadata, index)

    def episode_and_spans(
        self, index: int, pictures: Sequence[str] = (), also: Sequence[str] = ()
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The steps' features without pictures, and where some of these lie in the episode's file.

        Args:
            pictures: Features of the steps, without "steps/"; held to the height and width that are declared.
            also: Features of the episode that are wanted: one value each.

        Returns:
            The episode; per picture feature the n pictures' (offset, length) in bytes, [n, 2], int64: see
            `read_bytes`.

        Raises:
            DataError: as `episode`; or a picture is of a format that is not read, or of another size.
        """
        record, features, episode, spans = self._read(index, [f"{STEPS}{name}" for name in pictures])
        for name in pictures:
            self._check_pictures(record, spans[name], self.features[f"{STEPS}{name}"].shape[:2], name, index)
        base = self._records[index][1].offset
        in_file = {name: [(base + start, end - start) for start, end in spans[name]] for name in pictures}
        return episode | self._of_episode(record, features, also, index), {
            name: np.array(lie, dtype=np.int64).reshape(-1, 2) for name, lie in in_file.items()
        }

    def readable(self, index: int, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, DataError]]:
        """What can be read of an episode, feature by feature, for whoever looks at a data set that may be refused.

        Args:
            names: Flat names, with "steps/".

        Returns:
            By the same names: tensors and texts as in `episode`, pictures as where they lie in the file, [n, 2]; and
            why a feature is refused. A feature can be in both: its pictures are there, and one of them is none.

        Raises:
            DataError: the record is damaged.
        """
        record, features = self._parse(index)
        base, found, refused = self._records[index][1].offset, dict[str, Any](), dict[str, DataError]()
        for name in names:
            spec = self.features[name]
            try:
                if spec.kind == "image":
                    spans = self._spans(record, features, name, index)
                    lie = [(base + start, end - start) for start, end in spans]
                    found[name] = np.array(lie, dtype=np.int64).reshape(-1, 2)
                    self._check_pictures(record, spans, None, name.removeprefix(STEPS), index)
                else:
                    found[name] = self._decode(record, features, name, index)
            except DataError as error:
                refused[name] = error
        return found, refused

    def episodes(self) -> Iterator[dict[str, Any]]:
        """All episodes in order, without pictures."""
        for index in range(len(self)):
            yield self.episode(index)

    def read_bytes(self, index: int, offset: int, length: int) -> bytes:
        """A piece of the file that holds episode `index`, for example one picture."""
        return os.pread(self._file(self._records[index][0]), length, offset)

    def file_paths(self) -> list[str]:
        """episode_metadata/file_path of every episode.

        Raises:
            DataError: the data set has none; Open X-Embodiment's need none.
        """
        self._require(FILE_PATH)
        return [episode[FILE_PATH] for episode in self.episodes()]

    def statistics(self) -> dict[str, Any]:
        """norm_stats of the standardised data, as training code computes them (SPEC: split "all").

        Raises:
            DataError: actions or states are not there, or not finite.
        """
        self._require(f"{STEPS}action")
        self._require(f"{STEPS}observation/state")
        actions, proprios = [], []
        for index, episode in enumerate(self.episodes()):
            check_finite(episode["action"], "action", self.describe(index))
            check_finite(episode["observation/state"], "observation/state", self.describe(index))
            actions.append(standardize_actions(episode["action"]))
            proprios.append(standardize_proprio(episode["observation/state"]))
        return compute_statistics(actions, proprios)

    def action_ranges(self) -> dict[str, Any]:
        """Number of steps, and quantiles of each dim of the recorded actions, six digits each: for people.

        Steps with a number that is not finite have none: whoever reads them for a training says so.
        """
        spec = self.features.get(f"{STEPS}action")
        if spec is None or spec.kind != "tensor":
            return {}
        read = [episode["action"] for episode in self.episodes()]
        actions = [one.reshape(len(one), math.prod(one.shape[1:])) for one in read]
        flat = np.concatenate(actions).astype(np.float64)  # [n, A]
        finite = flat[np.isfinite(flat).all(axis=1)]
        percents = (1, 99) if len(finite) else ()
        bounds = {f"action_q{percent:02d}": np.quantile(finite, percent / 100, axis=0) for percent in percents}
        shown = {name: [float(f"{value:.6g}") for value in values] for name, values in bounds.items()}
        return {"num_steps": len(flat), **shown}

    def content_id(self) -> str:
        """Hex digest that changes with the data: names, counted records, and every record's stored checksum."""
        digest = hashlib.sha256(f"{self.name}/{self.version}".encode())
        for index, (path, span) in enumerate(self._records):
            digest.update(f"{path.name}:{span.offset}:{span.length}:".encode())
            digest.update(self.read_bytes(index, span.offset + span.length, 4))
        return digest.hexdigest()

    def describe(self, index: int) -> str:
        """Episode and file, for messages."""
        return f"{self.name}: episode {index} ({self._records[index][0].name})"

    def _require(self, name: str) -> None:
        if name not in self.features:
            raise DataError(f"{self.directory} has no feature {name}; its features: {', '.join(sorted(self.features))}")

    def _file(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def _read(
        self, index: int, pictures: Sequence[str]
    ) -> tuple[memoryview, dict[str, Feature], dict[str, Any], dict[str, list[tuple[int, int]]]]:
        """One record, its features, those of the steps beside pictures, and where these pictures lie in it."""
        record, features = self._parse(index)
        episode = {
            name.removeprefix(STEPS): self._decode(record, features, name, index)
            for name, spec in self.features.items()
            if spec.kind in ("text", "tensor") and _is_step(name)
        }
        spans = {name.removeprefix(STEPS): self._spans(record, features, name, index) for name in pictures}
        self._check_lengths(episode | spans, index)
        return record, features, episode, spans

    def _of_episode(
        self, record: memoryview, features: dict[str, Feature], names: Sequence[str], index: int
    ) -> dict[str, Any]:
        """Texts and tensors of the episode, one value each."""
        decoded = {name: self._decode(record, features, name, index) for name in names}
        for name, values in decoded.items():
            if len(values) != 1:
                raise DataError(f"{self.describe(index)}: feature {name}: expected one value, got {len(values)}")
        return {name: values[0] for name, values in decoded.items()}

    def _parse(self, index: int) -> tuple[memoryview, dict[str, Feature]]:
        path, span = self._records[index]
        record = read_record(self._file(path), span, path)
        try:
            return record, parse_example(record)
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{path}, episode {index}: the record at byte {span.offset} is not a tf.train.Example ({error}); fetch "
                "this file again, or build the set again"
            ) from error

    def _feature(self, features: dict[str, Feature], name: str, kind: int, index: int) -> Feature:
        if _is_step(name) and not any(_is_step(there) for there in features):  # an episode of no steps
            return Feature(kind, 0, 0)
        if name not in features or features[name].kind != kind:
            kinds = {BYTES: "bytes", FLOAT: "floats", INT64: "integers"}
            got = kinds[features[name].kind] if name in features else f"nothing; the record has {sorted(features)}"
            raise DataError(f"{self.describe(index)}: feature {name}: expected {kinds[kind]}, got {got}; {BUILD_AGAIN}")
        return features[name]

    def _spans(self, record: memoryview, features: dict[str, Feature], name: str, index: int) -> list[tuple[int, int]]:
        """Where the strings of a BYTES feature lie."""
        try:
            return byte_spans(record, self._feature(features, name, BYTES, index))
        except (ValueError, IndexError) as error:
            raise self._damaged(name, index, error) from error

    def _check_pictures(
        self,
        record: memoryview,
        spans: Sequence[tuple[int, int]],
        size: Sequence[int | None] | None,
        name: str,
        index: int,
    ) -> None:
        """Every picture is of a format that is read, and of this size, by its first bytes."""
        for step, (start, end) in enumerate(spans):
            try:
                check_header(record[start:end], size)
            except ValueError as error:
                raise DataError(
                    f"{self.describe(index)}, step {step}: feature {name}: {error}; {BUILD_AGAIN}"
                ) from error

    def _damaged(self, name: str, index: int, error: Exception) -> DataError:
        return DataError(f"{self.describe(index)}: feature {name} cannot be decoded: {error}; {BUILD_AGAIN}")

    def _decode(self, record: memoryview, features: dict[str, Feature], name: str, index: int) -> Any:
        """All values of a text or tensor: a list of strings, or an array [n, *shape]."""
        spec = self.features[name]
        try:
            if spec.kind == "text":
                return text_values(record, self._feature(features, name, BYTES, index))
            if spec.encoding != "none":
                return self._unpacked(record, self._spans(record, features, name, index), spec)
            if spec.dtype.kind == "f":
                values = float_values(record, self._feature(features, name, FLOAT, index))
            else:
                values = int_values(record, self._feature(features, name, INT64, index))
        except UnicodeDecodeError as error:
            shown = bytes(error.object[:20])
            raise DataError(
                f"{self.describe(index)}: feature {name}: {shown!r} is no UTF-8 ({error.reason} at byte "
                f"{error.start}); write texts as UTF-8 and build the data set again"
            ) from error
        except (ValueError, IndexError, OverflowError, zlib.error) as error:
            raise self._damaged(name, index, error) from error
        size = int(np.prod(spec.sizes))
        if len(values) % size:
            raise DataError(
                f"{self.describe(index)}: feature {name}: expected shape {['n', *spec.shape]}, got {len(values)} "
                f"values, which is no multiple of {size}"
            )
        return values.astype(spec.dtype).reshape(-1, *spec.sizes)

    @staticmethod
    def _unpacked(record: memoryview, spans: Sequence[tuple[int, int]], spec: FeatureSpec) -> np.ndarray:
        """Tensors that are stored as one string each, [n, *shape]."""
        strings = [bytes(record[start:end]) for start, end in spans]
        unpacked = [zlib.decompress(one) for one in strings] if spec.encoding == "zlib" else strings
        values = [np.frombuffer(one, spec.dtype).reshape(spec.sizes) for one in unpacked]
        return np.stack(values) if values else np.empty((0, *spec.sizes), spec.dtype)

    def _check_lengths(self, episode: dict[str, Any], index: int) -> None:
        """Every feature of the steps must have as many entries as there are actions, or as the first one has."""
        first = "action" if "action" in episode else next(iter(episode), "")
        for name, values in episode.items():
            if len(values) != (num_steps := len(episode[first])):
                spec = self.features[STEPS + name]
                raise DataError(
                    f"{self.describe(index)}: feature {name}: expected shape {[num_steps, *spec.shape]} (as many "
                    f"steps as {first}), got {len(values)} entries of {list(spec.shape)}; {BUILD_AGAIN}"
                )


def _is_step(name: str) -> bool:
    """Whether a feature has a value a step; all others are of the episode."""
    return name.startswith(STEPS)
