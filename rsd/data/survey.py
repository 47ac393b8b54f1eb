"""What an RLDS data set holds, read before any training and whether or not a training would refuse it.

Everything is read feature by feature (`RLDSDataset.readable`), so that one that is damaged hides no other. What
surprises first: of a large set every k-th episode may be read alone (max_episodes), and then what the others hold is
not known; `Content.is_sample` says so.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsd.data.layout import COLOURS, OBSERVATION, STATE, Features, Layout, Part, Places, take
from rsd.data.libero_features import STEPS, FeatureSpec, flatten_features
from rsd.data.pictures import decode_picture
from rsd.data.rlds import RLDSDataset
from rsd.errors import RSDError

Report = Callable[[int], None]
USUAL_VIEWS = ("image", "wrist_image")  # of the models in conf/model
FEW_NUMBERS = 64  # of a step, up to which a feature that has no role is read for its range
SHOWN_EPISODES = 6  # in the strips of pictures
SHOWN_AT = (0.0, 0.25, 0.5, 0.75, 1.0)  # of an episode
SEEN_AT = (0.0, 0.5, 1.0)  # where pictures of every episode are decoded and compared
THUMBNAIL = 160  # pixels of the longer side
SMALL = 32  # pixels a side of a picture that is compared with others


@dataclass
class Pictures:
    """The pictures of one view in one episode.

    Attributes:
        size: Height and width of the first one.
        steps: Those that were decoded.
        small: Those in coarse grey, [len(steps), 32, 32], int16: to compare them.
        brightness, spread: Mean and standard deviation of these, 0..255.
        repeated: Share of steps whose picture is the last step's, byte by byte.
        num_bytes: Of all of them.
        thumbnails: JPEG of those steps, in a few episodes.
    """

    size: tuple[int, int]
    steps: list[int]
    small: np.ndarray
    brightness: list[float]
    spread: list[float]
    repeated: float
    num_bytes: int
    thumbnails: list[bytes] = field(default_factory=list)


@dataclass
class Episode:
    """What could be read of one episode; None, empty or left out where it could not.

    Attributes:
        index: In the data set.
        where: Episode and file, for messages.
        num_steps: Of its longest feature of the steps.
        action, proprio: As recorded, [n, A] and [n, P], float64.
        instructions: Of each step, n.
        pictures: View to its pictures.
        others: Features of few numbers that have no role, flat name to [n, k], float64.
        refused: Why something could not be read: feature to message.
    """

    index: int
    where: str
    num_steps: int
    action: np.ndarray | None = None
    proprio: np.ndarray | None = None
    instructions: tuple[str, ...] = ()
    pictures: dict[str, Pictures] = field(default_factory=dict)
    others: dict[str, np.ndarray] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass
class Content:
    """A data set as far as it can be read.

    Attributes:
        directory: <root>/<name>/<version>.
        files: Name to bytes.
        features: Flat name to what one value is; empty where even features.json cannot be read.
        num_episodes: That it says to hold; 0 where that is not known.
        asked: Views that are wanted.
        places: Where the layout finds things, as far as it does.
        episodes: Those that were read.
        refused: What a training would say of its files and features, a message each by what it is about.
        dropped: What of the directory is not read, a line each.
    """

    directory: Path
    name: str
    version: str
    files: dict[str, int]
    features: dict[str, FeatureSpec]
    num_episodes: int
    asked: list[str]
    places: Places
    episodes: list[Episode]
    refused: dict[str, str]
    dropped: list[str]

    @property
    def is_sample(self) -> bool:
        """Whether episodes were left out."""
        return len(self.episodes) < self.num_episodes

    def stacked(self, name: str) -> list[np.ndarray]:
        """Action or proprio of the episodes that have it, finite steps only."""
        there = [getattr(one, name) for one in self.episodes if getattr(one, name) is not None]
        return [values[np.isfinite(values).all(axis=1)] for values in there]


def look_into(
    directory: Path | str,
    layout: Layout,
    views: Sequence[str] | None = None,
    *,
    proprio: bool = True,
    max_episodes: int | None = None,
    progress: Callable[[int], Report] | None = None,
) -> Content:
    """Read a data set as far as it goes; nothing that it holds raises.

    Args:
        directory: <root>/<name>/<version>.
        layout: Where things are declared to be.
        views: Pictures that are wanted; those of the layout, or all that the steps have, if left out.
        proprio: Whether it is needed; where not, it is shown if it is there.
        max_episodes: Read no more, spread evenly over the set; all of them if left out.
        progress: Called with the number of episodes; gives what is called with the number that are just done.
    """
    directory = Path(directory)
    content = Content(
        directory, directory.parent.name, directory.name, _files(directory), {}, 0, [], places_of(), [], {}, []
    )
    try:
        rlds = RLDSDataset(directory)
    except RSDError as error:
        content.refused["files"] = str(error)
        content.features = _declared(directory)
        return content
    content.name, content.version, content.features = rlds.name, rlds.version, rlds.features
    content.num_episodes, content.dropped = len(rlds), list(rlds.dropped)
    content.asked = list(
        views or layout.views or pictures_of(rlds.features) or USUAL_VIEWS[:1]
    )  # none at all is refused, too
    content.places, content.refused = find_all(rlds, layout, content.asked, proprio=proprio)
    chosen = spread(len(rlds), max_episodes)
    shown = {chosen[place] for place in spread(len(chosen), SHOWN_EPISODES)}
    report = progress(len(chosen)) if progress is not None else None
    for index in chosen:
        content.episodes.append(_episode(rlds, index, content.places, index in shown))
        if report is not None:
            report(1)
    return content


def pictures_of(features: Mapping[str, FeatureSpec]) -> list[str]:
    """Views of all pictures of the steps that become RGB: LIBERO's order, the main camera first."""
    named = [
        name.removeprefix(f"{STEPS}/").removeprefix("observation/")
        for name, spec in features.items()
        if name.startswith(f"{STEPS}/")
        and spec.kind == "image"
        and spec.shape[-1] in COLOURS
        and spec.dtype == np.uint8
    ]
    return sorted(named, key=lambda name: ("wrist" in name or "hand" in name, name))


def spread(count: int, most: int | None) -> list[int]:
    """At most so many of 0..count-1, evenly, the first and the last among them."""
    if most is None or most >= count:
        return list(range(count))
    return sorted({round(float(place)) for place in np.linspace(0, count - 1, most)})


def find_all(
    rlds: RLDSDataset, layout: Layout, views: Sequence[str], *, proprio: bool = True
) -> tuple[Places, dict[str, str]]:
    """Where the layout finds things, each of them on its own, and why it does not find the others."""
    refused: dict[str, str] = {}

    def find(what: str, by: Layout, views: Sequence[str] = (), language: bool = False, proprio: bool = False) -> Places:
        try:
            return by.find(rlds, views, language=language, proprio=proprio)
        except RSDError as error:
            refused.setdefault(what, str(error))
            return places_of()

    action = find("action", layout)
    if "action" in refused:  # everything else that is asked for would raise the same: ask for less
        gripper = replace(layout.gripper, dims=())
        layout = Layout(layout.views, layout.action, layout.proprio, layout.language, gripper)
        action = find("action", layout)
        if not action.action:
            return _beside(rlds, views), refused
    state, words = find("proprio", layout, proprio=proprio), find("language", layout, language=True)
    seen: dict[str, str] = {}
    for view in views:
        seen |= find(f"view {view}", layout, (view,)).views
    unread = tuple(dict.fromkeys((*action.unread, *state.unread, *words.unread)))
    language = words.language or action.language
    return replace(action, proprio=state.proprio, language=language, views=seen, unread=unread), refused


def places_of(**found: Any) -> Places:
    """Places with nothing but what is given."""
    nothing: dict[str, Any] = {one.name: () for one in fields(Places)}
    return Places(**nothing | {"language": None, "views": {}} | found)


def _beside(rlds: RLDSDataset, views: Sequence[str]) -> Places:
    """What has the usual name, of a data set whose action is refused."""
    features = Features(rlds)
    state = (Part(STATE),) if features.own.get(STATE) is not None and features.own[STATE].kind == "tensor" else ()
    texts = [name for name in features.of_kind("text") if name in features.own]
    seen = {view: f"{OBSERVATION}/{view}" for view in views if f"{OBSERVATION}/{view}" in features.of_kind("image")}
    return places_of(proprio=state, language=texts[0] if len(texts) == 1 else None, views=seen)


def roles(places: Places) -> dict[str, str]:
    """Flat name of a feature to what it is used as."""
    named = {f"view {view}": feature for view, feature in places.views.items()}
    said = {feature: what for what, feature in named.items()}
    for what, parts in (("action", places.action), ("proprio", places.proprio)):
        said |= {part.feature: f"{what}{str(part).removeprefix(part.feature)}" for part in parts}
    if places.language is not None:
        said[places.language] = "instruction"
    return said


def _files(directory: Path) -> dict[str, int]:
    there = sorted(directory.iterdir()) if directory.is_dir() else []
    return {path.name: path.stat().st_size for path in there if path.is_file()}


def _declared(directory: Path) -> dict[str, FeatureSpec]:
    """features.json alone, of a data set whose files are refused; nothing where that cannot be read either."""
    try:
        import tensorflow_datasets as tfds

        features = tfds.features.FeaturesDict.from_config(str(directory))
        return dict(sorted(flatten_features(features).items()))
    except Exception:  # noqa: BLE001  whatever a damaged file makes it raise: the refusal is already said
        return {}


def _episode(rlds: RLDSDataset, index: int, places: Places, shown: bool) -> Episode:
    used = roles(places)
    flat = {name.removeprefix(f"{STEPS}/"): name for name in rlds.features}
    small = [name for name, spec in rlds.features.items() if _is_small(name, spec) and _short(name) not in used]
    names = [flat[name] for name in used if name in flat]
    episode = Episode(index, rlds.describe(index), 0)
    try:
        found, refused = rlds.readable(index, [*names, *small])
    except RSDError as error:
        episode.refused["record"] = str(error)
        return episode
    episode.refused = {_short(name): str(error) for name, error in refused.items()}
    values = {_short(name): value for name, value in found.items()}
    lengths = {name: len(value) for name, value in values.items() if flat[name].startswith(f"{STEPS}/")}
    episode.num_steps = max(lengths.values(), default=0)
    if uneven := {name: length for name, length in lengths.items() if length != episode.num_steps}:
        named = ", ".join(f"{name} {length}" for name, length in uneven.items())
        episode.refused["lengths"] = (
            f"{episode.where}: features of the steps have {episode.num_steps} entries, but {named}; remove the "
            "episode, or build the data set again"
        )
    for what, parts in (("action", places.action), ("proprio", places.proprio)):
        if parts and all(part.feature in values for part in parts) and "lengths" not in episode.refused:
            setattr(episode, what, take(parts, values).astype(np.float64))
    if places.language in values:
        said = values[places.language]
        episode.instructions = tuple(said) if len(said) == episode.num_steps else tuple(said[:1]) * episode.num_steps
    episode.others = {
        name: np.asarray(values[_short(name)], dtype=np.float64).reshape(len(values[_short(name)]), -1)
        for name in small
        if _short(name) in values
    }
    for view, feature in places.views.items():
        if feature in values and len(values[feature]):
            try:
                episode.pictures[view] = _pictures(rlds, index, values[feature], shown)
            except ValueError as error:
                episode.refused.setdefault(
                    feature, f"{episode.where}: feature {feature}: {error}; fetch the file again"
                )
    return episode


def _short(name: str) -> str:
    return name.removeprefix(f"{STEPS}/")


def _is_small(name: str, spec: FeatureSpec) -> bool:
    return name.startswith(f"{STEPS}/") and spec.kind == "tensor" and int(np.prod(spec.sizes)) <= FEW_NUMBERS


def _pictures(rlds: RLDSDataset, index: int, spans: np.ndarray, shown: bool) -> Pictures:
    """Look at some pictures of a view, and at the bytes of all."""
    digests = [hashlib.blake2b(rlds.read_bytes(index, *span), digest_size=8).digest() for span in spans.tolist()]
    repeated = float(np.mean([a == b for a, b in pairwise(digests)])) if len(digests) > 1 else 0.0
    steps = [round(at * (len(spans) - 1)) for at in (SHOWN_AT if shown else SEEN_AT)]
    decoded = [decode_picture(rlds.read_bytes(index, *spans[step].tolist())) for step in steps]
    small = np.stack([coarse(picture) for picture in decoded])  # [steps, 32, 32]
    return Pictures(
        size=decoded[0].shape[:2],
        steps=steps,
        small=small,
        brightness=[float(one.mean()) for one in small],
        spread=[float(one.std()) for one in small],
        repeated=repeated,
        num_bytes=int(spans[:, 1].sum()),
        thumbnails=[thumbnail(picture) for picture in decoded] if shown else [],
    )


def coarse(picture: np.ndarray) -> np.ndarray:
    """A picture, [H, W, 3], in grey and of 32 pixels a side; int16."""
    small = Image.fromarray(picture).resize((SMALL, SMALL), Image.Resampling.BOX).convert("L")
    return np.asarray(small, dtype=np.int16)


def thumbnail(picture: np.ndarray) -> bytes:
    """A small JPEG of a picture, [H, W, 3]."""
    small = Image.fromarray(picture)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
