"""Where in a data set's steps the things lie that rsd asks for, and how they are recorded: conf/data/_rlds.yaml.

What is not declared is found where the features say enough; where they leave a choice, nothing is guessed. What
surprises first: names are written without "steps/", and a vector may be put together from slices of several features:

    Layout(proprio=["observation/joints", "observation/gripper[0:1]"], language="episode_metadata/task")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsd.data import DataError
from rsd.data.gripper import GripperRule
from rsd.data.libero_features import STEPS, FeatureSpec
from rsd.data.openx import PROPRIO, transform_of
from rsd.data.rlds import RLDSDataset
from rsd.errors import SettingError
from rsd.settings import Count, Positive, Text, checked

ACTION, STATE, LANGUAGE = "action", "observation/state", "language_instruction"  # LIBERO's names
OBSERVATION = "observation"
HAND = 6  # the gripper's dim in what a transform makes
SAME_RATE = 1e-3  # part of a rate by which two are the same
TWO_ARMS = 14  # action dims from which on the last one need not be the only gripper
COLOURS = (1, 3, 4, None)  # channels of a picture that becomes RGB
WORDS = re.compile("lang|instruct|task|goal|prompt", re.IGNORECASE)  # in names of texts that say what to do
FILES = re.compile("file|path")  # in names of those that do not
PART = re.compile(r"(?P<feature>[^\[\]]+)(\[(?P<rows>-?\d*(:-?\d*)?)\])?")
REMEDIES = {
    "text": "set {key} to one of them (phase=rfsq needs none)",
    "image": "set model.backbone.views to names that are there (without observation/), or {key} to one of them",
    "tensor": "set {key} to one of them, or to several with slices: {key}=[name,other[0:3]]",
}
WITHOUT_ANY = {  # the remedy where there is no feature of the kind
    "text": "build the data set with the task in words, one text a step (phase=rfsq needs none)",
    "image": "build the data set with JPEG or PNG pictures as image features (phase=rfsq needs none)",
    "tensor": "build the data set with it, a vector a step",
}
PROPRIO_KEY = "data.proprio"
WITHOUT_PROPRIO = "; or train without (data.proprio is not read then): model.backbone.use_proprio=false"
PIECES = 'a feature of the steps, or a list of them, each with or without a slice: "observation/state[0:6]"'


@dataclass(frozen=True)
class Part:
    """A feature of the steps, and which of its dims."""

    feature: str
    start: int | None = None
    stop: int | None = None

    @classmethod
    def parse(cls, text: str, key: str) -> Part:
        """Of "observation/state", "observation/state[0:6]" or "observation/state[-1]".

        Raises:
            SettingError: it is none of these.
        """
        match = PART.fullmatch(text)
        if match is None or match["rows"] == "":
            raise SettingError(f"{key} holds {text!r}, expected {PIECES}")
        name = match["feature"].removeprefix(f"{STEPS}/")
        if match["rows"] is None:
            return cls(name)
        first, colon, last = match["rows"].partition(":")
        start = int(first) if first else None
        stop = (int(last) if last else None) if colon else ((start or 0) + 1 or None)
        return cls(name, start, stop)

    def __str__(self) -> str:
        start, stop = ("" if one is None else one for one in (self.start, self.stop))
        return self.feature if self.start is self.stop is None else f"{self.feature}[{start}:{stop}]"

    def take(self, episode: Mapping[str, Any]) -> np.ndarray:
        """Of an episode's features, [n, dims]."""
        values = np.asarray(episode[self.feature])
        return values.reshape(len(values), int(np.prod(values.shape[1:])))[:, self.start : self.stop]


Parts = tuple[Part, ...]


def take(parts: Parts, episode: Mapping[str, Any]) -> np.ndarray:
    """Parts of an episode's features after each other, [n, dims]."""
    taken = [part.take(episode) for part in parts]
    return taken[0] if len(taken) == 1 else np.concatenate(taken, axis=1)


@dataclass(frozen=True)
class Places:
    """Where a data set has what was asked for.

    Attributes:
        action, proprio: Of each step; no parts where no proprio is asked for and none found.
        language: Feature with the task in words, of the steps or of the episode; None where none is asked for.
        views: View to feature.
        grippers: Which dims of the action are grippers.
        relative: Whether each action dim is a delta; nothing is known of them where nobody asked.
        unread: What is alike and not read, a line each.
    """

    action: Parts
    proprio: Parts
    language: str | None
    views: dict[str, str]
    grippers: tuple[int, ...]
    relative: tuple[bool, ...]
    unread: tuple[str, ...]

    def __str__(self) -> str:
        """What is elsewhere than in LIBERO's sets; nothing where all is there."""
        said = {
            "action": "" if self.action == (Part(ACTION),) else "+".join(map(str, self.action)),
            "proprio": "" if self.proprio in ((), (Part(STATE),)) else "+".join(map(str, self.proprio)),
            "language": "" if self.language in (None, LANGUAGE) else self.language,
        }
        said |= {view: name for view, name in self.views.items() if name != f"{OBSERVATION}/{view}"}
        return "".join(f"-{what} {where}" for what, where in said.items() if where)


@checked
@dataclass(frozen=True)
class Layout:
    """Where the things are, and how they are recorded; what is None is found.

    Args:
        views: View (as in model.backbone.views) to feature of the steps; others are observation/<view>, or the one
            picture of this name elsewhere.
        action, proprio: A feature of the steps or several after each other, with or without slices.
        language: Feature with the task in words, of the steps or of the episode.
        gripper: Which dims of the action are grippers, and their recorded values.
        rate: Steps a second, as recorded, Hz.
        every, target_rate: Down-sampling: every k-th step, or to so many Hz; needs `rate` and `relative`.
        relative: Which action dims are deltas, for all or of each; grippers are absolute whatever is said.
        idle: Steps whose motion has a smaller norm, and whose grippers stay, are left out; needs `relative`.
        units: Of each action dim, for people.
        transform: Name in `rsd.data.openx.TRANSFORMS` of what an episode goes through before anything is taken; then
            action, proprio and language are what it makes.
        statistics: Folder in which statistics are stored by content; None stores none.

    Raises:
        SettingError: down-sampling or leaving out idle steps lacks something, or the rates do not divide.
    """

    views: Mapping[str, str] | None = None
    action: Text | Sequence[Text] | None = None
    proprio: Text | Sequence[Text] | None = None
    language: Text | None = None
    gripper: GripperRule = field(default_factory=GripperRule)
    rate: Positive | None = None
    every: Count | None = None
    target_rate: Positive | None = None
    relative: bool | Sequence[bool] | None = None
    idle: Positive | None = None
    units: Sequence[str] | None = None
    transform: Text | None = None
    statistics: Path | None = None

    def __post_init__(self) -> None:
        for name in ("action", "proprio"):
            self._declared(name)
        stride = self.stride
        asked = {"data.every": self.every, "data.target_rate": self.target_rate, "data.idle": self.idle}
        for key, value in asked.items():
            if value is not None and self.relative is None and (stride > 1 or key == "data.idle"):
                raise SettingError(
                    f"{key} is {value:g}, and nobody knows which action dims are deltas (summed) and which absolute "
                    "(picked): set data.relative=true, =false, or a list with one of them for each dim"
                )

    @property
    def stride(self) -> int:
        """Recorded steps from one that is kept to the next.

        Raises:
            SettingError: the recorded rate is not known, or is no multiple of the wanted one.
        """
        if self.every in (None, 1) and self.target_rate is None:
            return 1
        key = "data.every" if self.target_rate is None else "data.target_rate"
        if self.every is not None and self.target_rate is not None:
            raise SettingError("data.every and data.target_rate are both set; set one of them to null")
        if self.rate is None:
            raise SettingError(f"{key} asks for down-sampling, and data.rate is not set; set it to the recorded Hz")
        if self.target_rate is None:
            return self.every or 1
        stride = round(self.rate / self.target_rate)
        if stride < 1 or abs(stride * self.target_rate - self.rate) > SAME_RATE * self.rate:
            near = max(stride, 1)
            raise SettingError(
                f"data.target_rate is {self.target_rate:g} Hz, and data.rate {self.rate:g} Hz is no multiple; set "
                f"{self.rate / near:.6g} or {self.rate / (near + 1):.6g}"
            )
        return stride

    def resampled(self, relative: Sequence[bool]) -> str:
        """What of the steps is left out, for content ids; nothing where all are kept."""
        if self.stride == 1 and self.idle is None:
            return ""
        return f"-every {self.stride}-idle {self.idle}-relative {''.join(str(int(one)) for one in relative)}"

    def find(
        self, rlds: RLDSDataset, views: Sequence[str] = (), *, language: bool = True, proprio: bool = True
    ) -> Places:
        """Where a data set has what is asked for.

        Args:
            views: Pictures that are wanted.
            language, proprio: Whether they are needed; where not, they are taken if they are there.

        Raises:
            DataError: a feature is missing or of another kind, or there are several that it could be; the message lists
                what is there, and names the key that chooses.
        """
        features = Features(rlds)
        if self.transform is not None:
            transform_of(self.transform)
            seen = {view: self._picture(features, view) for view in views}
            deltas = tuple(dim != HAND for dim in range(HAND + 1))
            return Places((Part(ACTION),), (Part(PROPRIO),), LANGUAGE, seen, (HAND,), deltas, ())
        action, others = self._vector(features, "action")
        unread = [f"actions are {_named(action)}; others are not read: {', '.join(others)} (data.action=…)"] * bool(
            others
        )
        try:
            state, others = self._vector(features, "proprio")
            if others:
                unread.append(f"proprio is {_named(state)}; others are not read: {', '.join(others)} (data.proprio=…)")
        except DataError:
            if proprio or self.proprio is not None:
                raise
            state = ()
        words = self._language(features, needed=language)
        texts = [one for one in features.of_kind("text") if one != words and one in features.own]
        if language and texts:
            unread.append(f"instructions are {words}; other texts are not read: {', '.join(texts)} (data.language=…)")
        seen = {view: self._picture(features, view) for view in views}
        dims = sum(features.dims(part) for part in action)
        if self.units is not None and len(self.units) != dims:
            raise DataError(f"{rlds.directory}: data.units has {len(self.units)} entries, the actions have {dims} dims")
        grippers = self._grippers(dims, str(rlds.directory))
        relative = [self.relative or False] * dims if not isinstance(self.relative, Sequence) else [*self.relative]
        if len(relative) != dims:
            raise DataError(
                f"{rlds.directory}: data.relative has {len(relative)} entries, the actions have {dims} dims"
            )
        deltas = tuple(said and dim not in grippers for dim, said in enumerate(relative))
        return Places(action, state, words, seen, grippers, deltas, tuple(unread))

    def _declared(self, name: str) -> Parts:
        said = getattr(self, name)
        texts = [said] if isinstance(said, str) else said or []
        if said is not None and not texts:
            raise SettingError(f"data.{name} is {said!r}, expected {PIECES}")
        return tuple(Part.parse(text, f"data.{name}") for text in texts)

    def _vector(self, features: Features, name: str) -> tuple[Parts, list[str]]:
        """Action or proprio, and what else could have been it."""
        key, declared = f"data.{name}", self._declared(name)
        if declared:
            for part in declared:
                features.require_vector(part, key, numbers=True)
            return declared, []
        usual, stems = (ACTION, ("action",)) if name == "action" else (STATE, ("state", "proprio"))
        found = [one for one in features.vectors() if any(stem in one.lower() for stem in stems)]
        if name == "proprio":
            found = [one for one in found if one.startswith(f"{OBSERVATION}/")]
        if usual in features.own:  # of another shape, it is refused by name
            features.require_vector(Part(usual), key)
            others = [one for one in found if one != usual] if name == "action" else []
            return (Part(usual),), others
        if len(found) != 1:
            got = f"{len(found)} could be it: {', '.join(found)}" if found else "there is none of this name"
            raise features.refused(usual, "tensor [dims]", got, key)
        return (Part(found[0]),), []

    def _language(self, features: Features, *, needed: bool) -> str | None:
        texts = features.of_kind("text")
        if self.language is not None:
            name = self.language.removeprefix(f"{STEPS}/")
            if name in texts or not needed:
                return name if name in texts else None
            raise features.missing(name, "text", "data.language")
        if LANGUAGE in texts:
            return LANGUAGE
        found = [one for one in texts if WORDS.search(one)]
        found = [one for one in found if one in features.own] or found
        if len(found) == 1:
            return found[0]
        if not needed:
            return None
        if found:
            raise features.refused(LANGUAGE, "text", f"{len(found)} could be it: {', '.join(found)}", "data.language")
        raise features.missing(LANGUAGE, "text", "data.language")

    def _picture(self, features: Features, view: str) -> str:
        declared = (self.views or {}).get(view)
        if declared is not None:
            name = declared.removeprefix(f"{STEPS}/")
            features.require_picture(name, f"data.views.{view}")
            return name
        usual = f"{OBSERVATION}/{view}"
        elsewhere = [one for one in features.of_kind("image") if one in features.own and one.split("/")[-1] == view]
        if usual not in features.own and len(elsewhere) == 1:
            usual = elsewhere[0]
        features.require_picture(usual, f"data.views.{view}")
        return usual

    def _grippers(self, dims: int, where: str) -> tuple[int, ...]:
        declared = self.gripper.dims
        if declared is None:
            if dims >= TWO_ARMS:
                raise DataError(
                    f"{where}: actions have {dims} dims, as of two arms: nobody knows which are grippers; set "
                    f"data.gripper.dims=[{dims // 2 - 1},{dims - 1}], [{dims - 1}], or [] for none"
                )
            return (dims - 1,)
        if wrong := [dim for dim in declared if not -dims <= dim < dims]:
            raise DataError(f"{where}: data.gripper.dims holds {wrong[0]}, the actions have dims 0..{dims - 1}")
        return tuple(sorted({dim % dims for dim in declared}))


class Features:
    """The features of a data set by the names that settings use: those of the steps without "steps/".

    Attributes:
        own: Of the steps.
    """

    def __init__(self, rlds: RLDSDataset) -> None:
        self.directory = rlds.directory
        steps = {name: spec for name, spec in rlds.features.items() if name.startswith(f"{STEPS}/")}
        self.own: dict[str, FeatureSpec] = {name.removeprefix(f"{STEPS}/"): spec for name, spec in steps.items()}
        self.all = self.own | {name: spec for name, spec in rlds.features.items() if name not in steps}

    def of_kind(self, kind: str) -> list[str]:
        return [name for name, spec in self.all.items() if spec.kind == kind]

    def vectors(self) -> list[str]:
        """Vectors of floats a step."""
        return [one for one, spec in self.own.items() if _is_vector(spec) and spec.dtype.kind == "f"]

    def dims(self, part: Part) -> int:
        return len(range(int(np.prod(self.own[part.feature].sizes)))[part.start : part.stop])

    def require_vector(self, part: Part, key: str, *, numbers: bool = False) -> None:
        """Raise DataError unless the steps have this part: a vector, or with `numbers` a single number."""
        spec = self.own.get(part.feature)
        if spec is None or not (_is_vector(spec) or (numbers and spec.kind == "tensor" and not spec.shape)):
            raise self.missing(part.feature, "tensor [dims]", key)
        if not self.dims(part):
            raise DataError(f"{self.directory}: {key} asks for {part} of {list(spec.shape)}, and no dim is left")
        width = int(np.prod(spec.sizes))
        if any(abs(bound) > width for bound in (part.start, part.stop) if bound is not None):
            raise DataError(f"{self.directory}: {key} asks for {part}, and it has {width} dims")

    def require_picture(self, name: str, key: str) -> None:
        """Raise DataError unless the steps have pictures of this name that become RGB of 8 bits."""
        spec = self.own.get(name)
        if spec is None or spec.kind != "image" or spec.shape[-1] not in COLOURS or spec.dtype != np.uint8:
            raise self.missing(name, "image [height, width, 3]", key)

    def missing(self, name: str, expected: str, key: str) -> DataError:
        """The error for a feature that is not there, or something else."""
        got = self.all.get(name)
        if got is None:
            return self.refused(name, expected, "there is none of this name", key)
        shape = f" {list(got.shape)}" * bool(got.shape)
        dtype = f" of {got.dtype}" if got.kind == expected.split()[0] == "image" else ""
        what = "a single number" if got.kind == "tensor" and not got.shape else f"{got.kind}{shape}{dtype}"
        return self.refused(name, expected, f"it is {what}", key)

    def refused(self, name: str, expected: str, got: str, key: str) -> DataError:
        """The error that lists the features of a kind, and names the key that chooses among them."""
        kind = expected.split()[0]
        listed = [
            f"{one} {list(spec.shape)}".removesuffix(" []")
            for one, spec in self.all.items()
            if spec.kind == kind
            and (one in self.own or (kind == "text" and not FILES.search(one)))
            and (kind != "tensor" or _is_vector(spec))
            and not (key == PROPRIO_KEY and ACTION in one)  # which the policy is to say, and would be told
        ]
        remedy = (REMEDIES[kind] if listed else WITHOUT_ANY[kind]).format(key=key)
        return DataError(
            f"{self.directory}: feature {name}: expected {expected}, {got}; {'vectors' if kind == 'tensor' else kind}"
            f"{' features' * (kind != 'tensor')} of its steps: {', '.join(listed) or 'none'}; {remedy}"
            f"{WITHOUT_PROPRIO * (key == PROPRIO_KEY)}"
        )


def _is_vector(spec: FeatureSpec) -> bool:
    return spec.kind == "tensor" and len(spec.shape) == 1


def _named(parts: Parts) -> str:
    return " + ".join(map(str, parts))
