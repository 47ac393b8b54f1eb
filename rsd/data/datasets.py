"""Map-style data sets over an RLDS directory: action chunks alone, and frames with their pictures.

`Demonstrations` reads every record once, checksum included, and keeps all actions and proprio in memory (a LIBERO
suite: 4 MB); the pictures stay on disk, and of them only byte offsets are kept. The data sets of all splits share one.

An item is one start step of one chunk, so a DataLoader that shuffles, shuffles over all episodes.

Splits are by episode. With ten episodes or more, episode i is held out for validation when i % 10 == 9, which stays
true when episodes are appended; with fewer, the last one is. Statistics are over all episodes, as in the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from rsd.data import DataError
from rsd.data.layout import Layout, take
from rsd.data.openx import transform_of
from rsd.data.pictures import decode_picture
from rsd.data.resampling import downsample, moving_steps
from rsd.data.rlds import RLDSDataset
from rsd.data.trajectories import (
    check_finite,
    chunk_actions,
    chunk_starts,
    clipped_motion,
    compute_statistics,
    lost_motion,
    require_chunks,
    standardize_actions,
)
from rsd.errors import SettingError
from rsd.record import EntryError, read, write
from rsd.settings import ChunkLength, checked
from rsd.space import QUANTILES, Range, Space, check_statistics, with_bounds
from rsd.types import ChunkBatch, Frame, Observation

SPLITS = ("train", "val", "all")
HOLD_OUT_EVERY = 10  # episodes
STATISTICS = 1  # goes up when stored ones would be others
DIGEST = 16  # hex digits of a file's name
LOST = 0.1  # share of a dim's movement in the whole data set, from which on it is said
SHOWN = 8  # numbers of episodes in a message
MUCH_CLIPPED = 0.4  # share of a task's movement in one dim; a drawer with 0.73 was never opened (docs/log.md)


@dataclass
class Trajectory:
    """One episode without its pictures.

    Attributes:
        actions: [n, A], float32, standardised (gripper 1 open, 0 close), not normalised.
        proprio: [n, P], float32, not normalised; P is 0 where none was asked for and none is there.
        instructions: The task in words, of each step: n.
    """

    actions: np.ndarray
    proprio: np.ndarray
    instructions: tuple[str, ...]


def split_episodes(num_episodes: int, split: str, where: str = "the data set") -> list[int]:
    """Episodes of a split: see the top of the file; `where` is for messages.

    Raises:
        DataError: no such split, or a single episode cannot be split.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} does not exist; expected one of {list(SPLITS)}")
    if split == "all":
        return list(range(num_episodes))
    if num_episodes < 2:
        raise DataError(
            f"{where} has {num_episodes} episode, which cannot be split into train and val; record at least one more"
        )
    if num_episodes < HOLD_OUT_EVERY:
        held_out = {num_episodes - 1}
    else:
        held_out = set(range(HOLD_OUT_EVERY - 1, num_episodes, HOLD_OUT_EVERY))
    return [index for index in range(num_episodes) if (index in held_out) == (split == "val")]


class Demonstrations:
    """All episodes of an RLDS directory, read once, standardised and checked; pictures are read when asked for.

    Attributes:
        rlds: The directory.
        name: Of the data set; its unnorm_key.
        views: Pictures that `picture` can read.
        layout, places: How the data set is recorded, and where it has what was asked for.
        trajectories: All episodes.
        num_recorded, num_idle: Steps of all records, and those that data.idle left out.
        norm_stats: {"action", "proprio" where it is there, "num_transitions", "num_trajectories"}, over all episodes.

    Raises:
        DataError: a damaged record, a feature that is missing or leaves a choice, a number that is not finite, or a
            gripper that is recorded in another way than is declared.
    """

    def __init__(
        self,
        dataset_dir: Path | str,
        views: Sequence[str] = (),
        layout: Layout | None = None,
        *,
        language: bool = True,
        proprio: bool = True,
    ) -> None:
        """Read a data set.

        Args:
            dataset_dir: <root>/<name>/<version>.
            views: Those whose pictures will be wanted.
            layout: Where the things are, and how they are recorded; what it does not say is found.
            language, proprio: False needs no words, or no states, and takes those that are there.
        """
        self.layout = Layout() if layout is None else layout
        if not isinstance(self.layout, Layout):
            raise SettingError(f"data.layout is {layout!r}, expected what conf/data/_rlds.yaml makes of data=")
        self.gripper = self.layout.gripper
        self.rlds = RLDSDataset(Path(dataset_dir))
        self.name, self.views = self.rlds.name, tuple(views)
        self.places = self.layout.find(self.rlds, self.views, language=language, proprio=proprio)
        self.trajectories: Sequence[Trajectory] = []
        self._spans: Sequence[dict[str, np.ndarray]] = []  # per episode: feature → [n, 2]
        self.norm_stats: dict[str, Any] = {}
        self.num_recorded = self.num_idle = 0
        self._read_all()

    def _read_all(self) -> None:
        """Read all episodes, check them, and take their statistics."""
        found = [self._read(index) for index in range(len(self.rlds))]
        self.trajectories = [trajectory for trajectory, _, _ in found]
        self._spans = [spans for _, spans, _ in found]
        self._check([recorded for _, _, recorded in found], sum(len(one.actions) for one in self.trajectories))
        self.norm_stats = self._statistics()

    def _check(self, recorded: Sequence[np.ndarray], num_steps: int) -> None:
        """See that steps are left, and hold all recorded grippers, [n, G] each, to the rule."""
        self.num_recorded = sum(map(len, recorded))
        if not num_steps:
            if self.num_recorded:
                raise DataError(
                    f"{self.rlds.directory}: data.idle={self.layout.idle:g} leaves no step of {self.num_recorded}; set "
                    "it to less, in the units of the actions"
                )
            raise DataError(f"{self.rlds.directory}: all {len(self.rlds)} episodes have no steps; collect them again")
        for column, dim in enumerate(self.places.grippers):
            which = "last dim of action" if self.gripper.dims is None else f"dim {dim} of action"
            self.gripper.check([one[:, column] for one in recorded], str(self.rlds.directory), which)

    def _pictures(self) -> list[str]:
        """Features of the views."""
        return [*dict.fromkeys(self.places.views.values())]

    def _read(self, index: int) -> tuple[Trajectory, dict[str, np.ndarray], np.ndarray]:
        """One episode without pictures, where these lie, by feature, [n, 2], and the recorded grippers, [n, G]."""
        words = self.places.language
        also = [words] if words in self.rlds.features else []
        episode, spans = self.rlds.episode_and_spans(index, self._pictures(), also)
        if self.layout.transform is not None:
            episode, spans = self._transformed(episode, spans, index)
        recorded = take(self.places.action, episode)[:, self.places.grippers]
        trajectory, steps = self._resampled(self._trajectory(episode, index))
        return trajectory, {name: lie[steps] for name, lie in spans.items()}, recorded

    def _transformed(
        self, episode: dict[str, Any], spans: dict[str, np.ndarray], index: int
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Episode and spans after data.transform, which may drop steps."""
        name = self.layout.transform or ""
        try:
            steps = transform_of(name)(episode | spans)
        except KeyError as error:
            raise DataError(
                f"{self.rlds.describe(index)}: data.transform={name} reads the feature {error}, which is not there; "
                f"features: {', '.join(sorted(episode | spans))}; set data.transform=null and say where the things are"
            ) from error
        return {one: values for one, values in steps.items() if one not in spans}, {one: steps[one] for one in spans}

    def _resampled(self, trajectory: Trajectory) -> tuple[Trajectory, np.ndarray]:
        """The steps of an episode that are kept, and their numbers in the record, [m]."""
        every, relative = self.layout.stride, np.array(self.places.relative)
        actions = downsample(trajectory.actions, every, relative)
        steps = np.arange(len(actions))
        if self.layout.idle is not None:
            steps = moving_steps(actions, relative, self.places.grippers, self.layout.idle)
            self.num_idle += len(actions) - len(steps)
        recorded = steps * every
        said = trajectory.instructions and tuple(trajectory.instructions[step] for step in recorded)
        return Trajectory(actions[steps], trajectory.proprio[recorded], said), recorded

    def _statistics(self) -> dict[str, Any]:
        """Computed, or as they were stored for this content and layout."""
        folder = self.layout.statistics
        key = hashlib.sha256(f"{STATISTICS} {self.content_id()}".encode()).hexdigest()[:DIGEST]
        path = None if folder is None else Path(folder) / f"{self.name}-{key}.json"
        if path is not None and path.is_file():
            stored = read(path, dict[str, Any], error=DataError, remedy="delete it")
            try:
                return check_statistics(stored.get(self.name), f"{path}: entry {self.name!r}")
            except EntryError as error:
                raise DataError(f"{error}; delete it") from error
        actions, proprios = [one.actions for one in self.trajectories], [one.proprio for one in self.trajectories]
        statistics = self._computed(actions, proprios)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, {self.name: statistics})
        return statistics

    def _computed(self, actions: Sequence[np.ndarray], proprios: Sequence[np.ndarray]) -> dict[str, Any]:
        """Statistics of standard actions and proprio, [n, A] and [n, P] each."""
        statistics = compute_statistics(actions, proprios, self.places.grippers)
        statistics["action"] |= self.gripper.entry(self.places.grippers, len(statistics["action"]["mask"]))
        return statistics

    def _trajectory(self, episode: dict[str, Any], index: int) -> Trajectory:
        action, words = take(self.places.action, episode), self.places.language
        check_finite(action, " + ".join(map(str, self.places.action)), self.rlds.describe(index))
        state = take(self.places.proprio, episode) if self.places.proprio else np.empty((len(action), 0))
        check_finite(state, " + ".join(map(str, self.places.proprio)), self.rlds.describe(index))
        said = () if words is None else episode[words]
        return Trajectory(
            actions=standardize_actions(action, self.gripper.standardize, self.places.grippers),
            proprio=state.astype(np.float32),
            instructions=(said,) * len(action) if isinstance(said, str) else tuple(said),
        )

    def content_id(self) -> str:
        """What identifies the numbers: the records, and what of the layout is not LIBERO's."""
        own = "" if self.gripper.is_libero else f"-gripper {self.gripper}"
        own += "" if self.layout.transform is None else f"-transform {self.layout.transform}"
        own += self.layout.resampled(self.places.relative)
        own += "" if self.gripper.dims is None else f"-grippers {list(self.places.grippers)}"
        changing = any(len(set(one.instructions)) > 1 for one in self.trajectories)
        return self.rlds.content_id() + own + str(self.places) + ("-instructions per step" if changing else "")

    def instructions(self) -> dict[str, str]:
        """Every instruction, and where it stands, for people."""
        episodes: dict[str, list[int]] = {}
        for index, one in enumerate(self.trajectories):
            for instruction in dict.fromkeys(one.instructions):
                episodes.setdefault(instruction, []).append(index)
        total = len(self.trajectories)
        return {text: f"{len(found)} of {total} episodes: {_some(found)}" for text, found in episodes.items()}

    def notes(self, space: Space, chunk_length: int, cut_actions: bool = True) -> list[str]:
        """What of the data set is dropped, cut off or empty, a line each.

        Args:
            space: What normalises; its statistics may be another data set's.
            cut_actions: Whether to tell what it cuts off of the actions.
        """
        dropped, where = [*self.rlds.dropped, *self.places.unread], f"of {len(self.trajectories)} episodes"
        if (every := self.layout.stride) > 1:
            assert self.layout.rate is not None  # or there would be no stride
            rate = self.layout.rate
            dropped.append(f"every {every}. of {self.num_recorded} steps is kept: {rate / every:g} of {rate:g} Hz")
        if self.layout.idle is not None:
            kept = sum(len(one.actions) for one in self.trajectories)
            dropped.append(
                f"{self.num_idle} of {kept + self.num_idle} steps are idle, and left out (data.idle="
                f"{self.layout.idle:g})"
            )
        short = [index for index, one in enumerate(self.trajectories) if len(one.actions) < chunk_length]
        if short:
            steps = sum(len(self.trajectories[index].actions) for index in short)
            dropped.append(
                f"{len(short)} {where} are shorter than the chunk of {chunk_length} steps and give none: "
                f"{_some(short)} ({steps} steps)"
            )
        empty = {i: sum(not said.strip() for said in one.instructions) for i, one in enumerate(self.trajectories)}
        empty = {index: count for index, count in empty.items() if count}
        if empty:
            dropped.append(
                f"{len(empty)} {where} have {sum(empty.values())} steps with an empty instruction: {_some([*empty])}"
            )
        actions = np.concatenate([one.actions for one in self.trajectories])
        motions = [dim for dim in range(actions.shape[1]) if dim not in self.places.grippers]
        if still := [dim for dim in motions if (actions[:, dim] == actions[0, dim]).all()]:
            values = ", ".join(f"{dim} (always {actions[0, dim]:g})" for dim in still)
            dropped.append(
                f"dims {values} of the actions never move: nothing is learned of them, and the policy repeats the "
                "value; data.action=[…] with slices leaves them out"
            )
        cut = _cut_off("action", actions, space.action, space.bounds) if cut_actions else []
        if self.views and space.proprio is not None:
            proprio = np.concatenate([one.proprio for one in self.trajectories])
            cut += _cut_off("proprio", proprio, space.proprio, space.bounds)
        by_task = clipping_notes(self.trajectories, space.statistics["action"]) if cut_actions else []
        return [*dropped, *cut, *by_task]

    def picture(self, episode: int, step: int, view: str) -> np.ndarray:
        """One decoded picture, as large as it is stored, [H, W, 3], uint8.

        Raises:
            DataError: what is stored is no JPEG or PNG picture.
        """
        name = self.places.views[view]
        offset, length = self._spans[episode][name][step].tolist()
        try:
            return decode_picture(self.rlds.read_bytes(episode, offset, length))
        except ValueError as error:
            where = f"{self.rlds.describe(episode)}, step {step}: feature {name}"
            raise DataError(f"{where}: {error}; fetch the file or build the data set again") from error


def _some(numbers: Sequence[int]) -> str:
    """The first of many numbers, for people."""
    return ", ".join(map(str, numbers[:SHOWN])) + (", …" if len(numbers) > SHOWN else "")


def _cut_off(what: str, values: np.ndarray, bounds: Range, name: str) -> list[str]:
    """A line that names the dims of actions or proprio, [n, dims], whose movement normalisation cuts off."""
    if len(bounds) != values.shape[1]:
        return []
    shares = {dim: share for dim, share in enumerate(lost_motion(values, bounds)) if share > LOST}
    if not shares:
        return []
    dims = ", ".join(f"{dim} ({100 * share:.0f} %)" for dim, share in shares.items())
    remedy = "data.bounds=extremes keeps it" if name == QUANTILES else "the statistics are another data set's"
    return [f"normalisation ({name}) cuts off movement in {what} dims {dims}: {remedy}"]


def clipping_notes(trajectories: Sequence[Trajectory], statistics: dict[str, Any]) -> list[str]:
    """A line for each task of which normalisation cuts off more than MUCH_CLIPPED of the movement in some dim.

    Args:
        statistics: norm_stats["action"] of the whole data set.
    """
    notes = []
    steps: dict[str, list[np.ndarray]] = {}
    for trajectory in trajectories:
        said = np.array(trajectory.instructions, dtype=object)  # [n], or none at all
        for instruction in set(trajectory.instructions):
            steps.setdefault(instruction, []).append(trajectory.actions[said == instruction])
    for instruction in sorted(steps):
        own = np.concatenate(steps[instruction])  # [n, A]
        share = clipped_motion(own, statistics)  # [A]
        if share.max() > MUCH_CLIPPED:
            notes.append(
                f"{instruction!r}: {100 * share.max():.0f} % of the movement in action dim {share.argmax()} is beyond "
                "q01..q99 of the data set: normalisation cuts it off (data.bounds=extremes keeps it)"
            )
    return notes


class _ChunkIndex(Dataset):
    """What both data sets share: which (episode, step) of the demonstrations each item starts at.

    Attributes:
        name, trajectories, norm_stats: Of the demonstrations, whatever the split.
        episodes: Those of the split.
        num_short: Episodes of the split that are shorter than a chunk and give no item.
        episode, step: Where each item starts, [N], int64 each.
    """

    def __init__(self, demonstrations: Demonstrations, chunk_length: int, split: str) -> None:
        self.demonstrations, self.chunk_length, self.split = demonstrations, chunk_length, split
        self.name, self.trajectories = demonstrations.name, demonstrations.trajectories
        self.norm_stats = demonstrations.norm_stats
        self.episodes = split_episodes(len(self.trajectories), split, str(demonstrations.rlds.directory))
        lengths = [len(self.trajectories[index].actions) for index in self.episodes]
        self.num_short = require_chunks(lengths, chunk_length, f"{demonstrations.rlds.directory}, split {split!r}")
        counts = [chunk_starts(length, chunk_length) for length in lengths]
        self.episode = torch.from_numpy(np.repeat(np.array(self.episodes, dtype=np.int64), counts))
        self.step = torch.cat([torch.arange(count) for count in counts])

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def parts(self) -> list[Any]:
        """The data sets of which this one is made, one a space: itself."""
        return [self]

    @property
    def space(self) -> None:
        """Of a mixture, the space of every item."""
        return None

    def notes(self, space: Space, cut_actions: bool = True) -> list[str]:
        """See `Demonstrations.notes`; of all splits."""
        return self.demonstrations.notes(space, self.chunk_length, cut_actions)

    def instructions(self) -> dict[str, str]:
        """Every instruction of all splits, and where it stands, for people."""
        return self.demonstrations.instructions()

    def cut_off(self, space: Space) -> list[tuple[float, float]]:
        """Share of each action dim's movement that is beyond the bounds of `space`, and beyond the data's own ones.

        Raises:
            DataError: the space is of other actions.
        """
        actions = np.concatenate([trajectory.actions for trajectory in self.trajectories])  # [n, A]
        if len(space.action) != actions.shape[1]:
            raise DataError(
                f"{self.name} has actions of {actions.shape[1]} dims, the base model has {len(space.action)}; choose a "
                "base model that was trained on such a data set"
            )
        own = with_bounds(self.norm_stats, space.bounds)["action"]
        both = (clipped_motion(actions, statistics) for statistics in (space.statistics["action"], own))
        return [(float(share), float(by_own)) for share, by_own in zip(*both, strict=True)]

    def content_id(self) -> str:
        """What identifies the items: the data's content id, the split and the number of items, as text."""
        return f"{self.demonstrations.content_id()}-{self.split}-t{self.chunk_length}-{len(self)}"


class ChunkDataset(_ChunkIndex):
    """Action chunks of a split, all in one tensor.

    Attributes:
        actions: [N, T, A], float32, standardised (gripper 1 open, 0 close), not normalised.
    """

    def __init__(self, demonstrations: Demonstrations, chunk_length: int, split: str = "train") -> None:
        super().__init__(demonstrations, chunk_length, split)
        chunks = [chunk_actions(self.trajectories[index].actions, chunk_length) for index in self.episodes]
        self.actions = torch.from_numpy(np.concatenate(chunks))

    def __getitem__(self, row: int) -> ChunkBatch:
        """One chunk, [T, A]; where it stands is `episode[row]` and `step[row]`."""
        return {"actions": self.actions[row]}

    def batch(self, rows: Sequence[int]) -> ChunkBatch:
        """The actions of many items at once."""
        return {"actions": self.actions[torch.as_tensor(rows)]}


class FrameDataset(_ChunkIndex):
    """Frames of a split with the pictures of the demonstrations' views, each with the chunk that starts there."""

    def __getitem__(self, row: int) -> Frame:
        """Pictures are [H, W, 3] uint8, decoded as stored; proprio is standard."""
        episode, step = int(self.episode[row]), int(self.step[row])
        trajectory = self.trajectories[episode]
        observation = Observation(
            images={view: self.demonstrations.picture(episode, step, view) for view in self.demonstrations.views},
            proprio=trajectory.proprio[step],
            instruction=trajectory.instructions[step],
            stored=True,
        )
        actions = torch.from_numpy(trajectory.actions[step : step + self.chunk_length])  # [T, A]
        return {"observation": observation, "actions": actions, "episode": episode, "step": step}

    def batch(self, rows: Sequence[int]) -> list[Frame]:
        """Many items at once."""
        return [self[row] for row in rows]


@checked
def all_frames(
    dataset_dir: Path | str,
    chunk_length: ChunkLength,
    views: Sequence[str],
    layout: Layout | None = None,
    proprio: bool = True,
) -> FrameDataset:
    """Frames of every episode of a directory: what a base model is shown to fill a cache."""
    return FrameDataset(Demonstrations(dataset_dir, views, layout, proprio=proprio), chunk_length, "all")
