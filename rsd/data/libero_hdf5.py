"""LIBERO's demonstrations as HDF5 files (robomimic's layout) → episodes in the convention of the published RLDS sets.

    data/demo_0/{actions [n, 7], obs/{agentview_rgb, eye_in_hand_rgb, ee_states or ee_pos + ee_ori, gripper_states,
    joint_states}}, data.attrs["problem_info"]

What surprises first: LIBERO renders upside down and mirrored. The files hold pictures as rendered; the published sets,
and every policy trained on them, have them turned by 180 degrees, so they are turned here. And the instruction of a
file that is named as LIBERO's are is taken from its name, as there: problem_info words it differently ("Pick the akita
black bowl …"), and evaluation asks in the words of the name.

Sources: openvla's experiments/robot/libero/regenerate_libero_dataset.py (in YY-GX/openvla-oft at 1c37764) and the
builder of the RLDS sets (LIBERO_Spatial_dataset_builder.py, in cuiluyi/rlds_dataset_builder at 582ef6a).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsd.data import DataError
from rsd.data.conversion import INSTALL, Pictures
from rsd.data.libero_features import ACTION_DIM, IMAGE_SHAPE, JOINT_DIM, STATE_DIM
from rsd.data.rlds_features import picture, rlds_features, vector
from rsd.files import stranger

if TYPE_CHECKING:
    import h5py
    from tensorflow_datasets.core.features import FeatureConnector

ENDINGS = (".hdf5", ".h5")
DEMO = re.compile(r"demo_(\d+)")
LIBERO_NAME = "_demo"  # how the name of LIBERO's files ends
VIEWS = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}  # name in the published sets to the files'
STATES = (("ee_states", "gripper_states"), ("ee_pos", "ee_ori", "gripper_states"))  # the first that is there
JOINTS = "joint_states"
LIBERO_RATE = 20.0  # control steps a second
IDLE_BELOW = 1e-4  # length of an action but for the gripper, of the regeneration script


class HDF5Demonstrations:
    """Files of demonstrations as a source of `rsd.data.conversion.convert`.

    Args:
        source: A file, or a folder of files.
        views: Name of a picture to its name below obs/; the published sets' two if left out.
        state: Names below obs/ that are put together to observation/state; LIBERO's if left out.
        rotate: Turn pictures by 180 degrees.
        no_noops: Leave idle steps out by the published rule (`is_moving`).
        pictures: How they are encoded; the published sets have JPEG.
        language: "name" of the file, or "problem_info"; if left out by name where the file is named as LIBERO's are.

    Raises:
        DataError: a file is damaged or has another layout; the message lists what is there.
    """

    def __init__(
        self,
        source: Path,
        *,
        views: Mapping[str, str] | None = None,
        state: Sequence[str] | None = None,
        rotate: bool = True,
        no_noops: bool = False,
        pictures: Pictures = "jpeg",
        language: str | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._source, self._views, self._rotate, self._no_noops = source, dict(views or VIEWS), rotate, no_noops
        self._language, self._open = language, _Open()
        self._demos: dict[str, tuple[Path, str]] = {}
        self._instructions: dict[Path, str] = {}
        grippers: set[float] = set()
        rates: set[float | None] = set()
        for path in _files(source):
            file = self._open(path)
            names = _demonstrations(file, path)
            self._instructions[path] = self._instruction(file, path)
            relative = path.relative_to(source).with_suffix("") if source.is_dir() else Path(path.stem)
            self._demos |= {f"{relative.as_posix()}/{name}": (path, name) for name in names}
            for name in names:
                grippers |= set(np.unique(_read(file, path, f"data/{name}/actions", 2)[:, -1]).tolist())
            rates.add(_rate(file["data"], path))
            if "mask" in file:
                self.notes.append(f"{path}: the splits below 'mask' are not read; all demonstrations are converted")
        if len(rates) > 1:
            raise DataError(f"{source}: files of {sorted(map(str, rates))} Hz; convert those of one rate at a time")
        (self.rate,) = rates
        self._state = tuple(state) if state else self._found_state()
        self.gripper_dims: Sequence[int] | None = None
        self.gripper = (-1.0, 1.0) if grippers <= {-1.0, 1.0} else None
        self.features = self._features(pictures)
        self.options = {
            "format": "hdf5",
            "source": source.name,
            "views": self._views,
            "state": list(self._state),
            "rotate": rotate,
            "no_noops": no_noops,
            "pictures": pictures,
            "language": language or "by the file",
        }

    def file_paths(self) -> Sequence[str]:
        """<file without its ending>/demo_<number>."""
        return list(self._demos)

    def episode(self, file_path: str) -> Mapping[str, Any] | None:
        """As `rsd.data.conversion.Source` has it; None for a demonstration that never moves."""
        path, name = self._demos[file_path]
        file, where = self._open(path), f"data/{name}"
        actions = _read(file, path, f"{where}/actions", 2).astype(np.float32)  # [n, A]
        kept = moving(actions) if self._no_noops else np.ones(len(actions), dtype=bool)  # [n]
        if not kept.any():
            self.notes.append(f"{path}: {name}: left out: {len(actions)} steps, of which none moves the arm")
            return None

        def observed(key: str, dims: int) -> np.ndarray:
            values = _read(file, path, f"{where}/obs/{key}", dims)
            if len(values) != len(actions):
                raise DataError(f"{path}: {where}/obs/{key} has {len(values)} steps, {where}/actions {len(actions)}")
            return values[kept]

        turn = (slice(None), slice(None, None, -1), slice(None, None, -1)) if self._rotate else (slice(None),)
        steps: dict[str, Any] = {
            f"steps/observation/{view}": np.ascontiguousarray(observed(key, 4)[turn])
            for view, key in self._views.items()
        }
        state = [observed(key, 2) for key in self._state]
        steps["steps/observation/state"] = np.concatenate(state, axis=1).astype(np.float32)  # [n, P]
        if self._has_joints:
            steps["steps/observation/joint_state"] = observed(JOINTS, 2).astype(np.float32)
        return steps | {
            "steps/action": actions[kept],
            "steps/language_instruction": self._instructions[path],
            "episode_metadata/file_path": file_path,
        }

    @property
    def _first(self) -> tuple[Path, str]:
        return next(iter(self._demos.values()))

    def _found_state(self) -> tuple[str, ...]:
        path, name = self._first
        there = _keys(self._open(path), f"data/{name}/obs")
        for keys in STATES:
            if set(keys) <= set(there):
                return keys
        usual = " or ".join("+".join(keys) for keys in STATES)
        raise DataError(f"{path}: data/{name}/obs has no {usual}; there are {there}; say what it is by --state KEY …")

    def _features(self, pictures: Pictures) -> FeatureConnector | None:
        """Of the first demonstration; None where they are those of the published sets."""
        path, name = self._first
        file, where = self._open(path), f"data/{name}"
        there = _keys(file, f"{where}/obs")
        for key in (*self._views.values(), *self._state):
            if key not in there:
                raise DataError(
                    f"{path}: {where}/obs has no {key}; there are {there}; name pictures by --views NAME=KEY …, and "
                    "what the state is made of by --state KEY …"
                )
        self._has_joints = JOINTS in there and JOINTS not in self._state
        shapes = {view: _picture_shape(file, path, f"{where}/obs/{key}") for view, key in self._views.items()}
        state = sum(_read(file, path, f"{where}/obs/{key}", 2).shape[1] for key in self._state)
        joints = _read(file, path, f"{where}/obs/{JOINTS}", 2).shape[1] if self._has_joints else None
        actions = _read(file, path, f"{where}/actions", 2).shape[1]
        published = (dict.fromkeys(VIEWS, IMAGE_SHAPE), STATE_DIM, JOINT_DIM, ACTION_DIM, "jpeg", True)
        if (shapes, state, joints, actions, pictures, self.gripper is not None) == published:
            return None
        steps = {
            f"observation/{view}": picture(*shape[:2], pictures, f"obs/{self._views[view]}.")
            for view, shape in shapes.items()
        }
        steps["observation/state"] = vector(state, " + ".join(self._state))
        if joints is not None:
            steps["observation/joint_state"] = vector(joints, "Robot joint angles.")
        return rlds_features(steps | {"action": vector(actions, "As recorded.")})

    def _instruction(self, file: h5py.File, path: Path) -> str:
        told = _problem_info(file, path)
        named = name_in_words(path.stem) if path.stem.endswith(LIBERO_NAME) or self._language == "name" else ""
        text = {"name": named, "problem_info": told, None: named or told}[self._language]
        if not text:
            raise DataError(
                f"{path}: no instruction: data has no problem_info with a language_instruction, and the file's name "
                f"does not end in {LIBERO_NAME}, as LIBERO's do; --language name takes the name as it is"
            )
        if named and told and self._language is None and named.lower() != told.lower():
            self.notes.append(f"{path.name}: problem_info says {told!r}; taken from the name: {named!r} (--language)")
        return text


class _Open:
    """The file that was asked for last; one at a time is open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: h5py.File | None = None

    def __call__(self, path: Path) -> h5py.File:
        if path == self._path and self._file is not None:
            return self._file
        try:
            import h5py
        except ImportError as error:
            raise DataError(f"reading HDF5 needs h5py ({error}); install it with: {INSTALL}") from error
        if self._file is not None:
            self._file.close()
        try:
            self._file, self._path = h5py.File(path, "r"), path
        except OSError as error:
            self._path = None
            raise DataError(
                stranger(path) or f"{path} is no HDF5 file, or a damaged one: {error}; fetch it again"
            ) from error
        return self._file


def moving(actions: np.ndarray) -> np.ndarray:
    """Which steps the published rule keeps: those that move the arm, or change the gripper against the last one kept.

    Args:
        actions: [n, A]; the last dim is the gripper.

    Returns:
        [n], bool.
    """
    kept = np.zeros(len(actions), dtype=bool)
    gripper: float | None = None
    for step, action in enumerate(actions):
        kept[step] = np.linalg.norm(action[:-1]) >= IDLE_BELOW or (gripper is not None and action[-1] != gripper)
        gripper = float(action[-1]) if kept[step] else gripper
    return kept


def name_in_words(stem: str) -> str:
    """KITCHEN_SCENE3_turn_on_the_stove_demo → "turn on the stove"."""
    words = stem.removesuffix(LIBERO_NAME).split("_")
    scenes = [index for index, word in enumerate(words) if "SCENE" in word]
    return " ".join(words[scenes[-1] + 1 if scenes else 0 :])


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    files = sorted(path for path in source.rglob("*") if path.suffix in ENDINGS and path.is_file())
    if not files:
        raise DataError(
            f"{source} holds no {' or '.join(ENDINGS)} files; name the folder of the demonstrations, or a file"
        )
    return files


def _keys(file: h5py.File, name: str) -> list[str]:
    return sorted(file[name]) if name in file and hasattr(file[name], "keys") else []


def _demonstrations(file: h5py.File, path: Path) -> list[str]:
    """Their names in the order of their numbers, which may have gaps."""
    found = [name for name in _keys(file, "data") if DEMO.fullmatch(name)]
    if not found:
        raise DataError(f"{path}: no data/demo_0 and so on; there are {_keys(file, 'data') or sorted(file)}")
    return sorted(found, key=lambda name: int(name.removeprefix("demo_")))


def _read(file: h5py.File, path: Path, name: str, dims: int) -> np.ndarray:
    """A data set of so many dims, as it is."""
    node = file.get(name)
    shape = getattr(node, "shape", None)
    if shape is None:
        parent = name.rpartition("/")[0]
        raise DataError(f"{path}: no {name}; {parent} has {_keys(file, parent)}")
    if len(shape) != dims or shape[0] == 0:
        raise DataError(f"{path}: {name}: expected {dims} dims and at least one step, got {list(shape)}")
    try:
        return np.asarray(node[()])
    except OSError as error:
        raise DataError(f"{path}: {name} cannot be read: {error}; fetch the file again") from error


def _picture_shape(file: h5py.File, path: Path, name: str) -> tuple[int, int, int]:
    node = file[name]
    if len(node.shape) != 4 or node.shape[-1] != 3 or node.dtype != np.uint8:
        raise DataError(
            f"{path}: {name}: expected pictures [n, H, W, 3] of uint8, got {list(node.shape)} of {node.dtype}"
        )
    return tuple(int(size) for size in node.shape[1:])  # type: ignore[return-value]


def _attribute(node: Any, name: str, path: Path) -> dict[str, Any]:
    """A JSON object among the attributes; empty where there is none."""
    raw = node.attrs.get(name)
    if raw is None:
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: attribute {name} of data is not JSON: {error}; write it again") from error
    return value if isinstance(value, dict) else {}


def _problem_info(file: h5py.File, path: Path) -> str:
    told = _attribute(file["data"], "problem_info", path).get("language_instruction", "")
    return (told if isinstance(told, str) else "".join(map(str, told))).strip().strip('"')


def _rate(data: Any, path: Path) -> float | None:
    """Steps a second: as env_args says, or LIBERO's for a file that is named as LIBERO's are."""
    told = _attribute(data, "env_args", path).get("env_kwargs", {})
    rate = told.get("control_freq") if isinstance(told, dict) else None
    if isinstance(rate, int | float) and rate > 0:
        return float(rate)
    return LIBERO_RATE if path.stem.endswith(LIBERO_NAME) else None
