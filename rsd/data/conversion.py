"""Episodes of another format → an RLDS directory that rsd trains on: begun, interrupted, gone on with.

What surprises first: a converted set is held to the options that began it (conversion.json beside its files). The same
command goes on where it was; with others, episodes of two kinds would lie in one set, and that is refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from rsd.data import DataError
from rsd.data.layout import TWO_ARMS
from rsd.data.rlds import RLDSDataset, RLDSWriter
from rsd.differences import differences, told
from rsd.progress import Progress
from rsd.record import read, write

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

CONVERSION_FILE = "conversion.json"
TRAIN = ("python", "train.py", "phase=rfsq", "data=rlds")
INSTALL = "pip install -e '.[convert]'"

Pictures = Literal["jpeg", "png"]


class Source(Protocol):
    """Demonstrations in another format.

    Attributes:
        features: What its episodes become; None for those of the published LIBERO sets.
        options: What decides about the result, as JSON has it.
        rate: Steps a second; None where nothing says.
        gripper: Recorded where the gripper is open, and where it is closed; None where nothing says.
        gripper_dims: Which dims of the action are grippers; None where nothing says.
        notes: What of it is not converted, a line each.
    """

    features: FeatureConnector | None
    options: dict[str, Any]
    rate: float | None
    gripper: tuple[float, float] | None
    gripper_dims: Sequence[int] | None
    notes: list[str]

    def file_paths(self) -> Sequence[str]:
        """What tells its episodes apart, in order."""
        ...

    def episode(self, file_path: str) -> Mapping[str, Any] | None:
        """An episode as `RLDSWriter.write_episode` takes it; None where nothing of it is left.

        Raises:
            DataError: it is damaged, or not what the first one was; the message names file, episode and feature.
        """
        ...


def convert(source: Source, directory: Path, *, progress: Progress | None = None) -> int:
    """Append the episodes that are not there yet to <root>/<name>/<version>; each is on disk before the next is read.

    Returns:
        How many were converted now.

    Raises:
        DataError: the directory was begun from something else or with other options; or as `Source.episode`. What was
            converted before is kept.
        WriteError: no space, for example.
    """
    path = directory / CONVERSION_FILE
    if path.exists():
        begun = read(path, dict[str, Any], error=DataError, remedy=f"restore it, or move {directory} away")
        if other := differences(begun, source.options):
            raise DataError(f"{directory} was begun with others: {told(other)}; give the same, or another --name")
    with RLDSWriter(directory, directory.parent.name, directory.name, source.features) as writer:
        if len(writer) and not path.exists():
            raise DataError(f"{directory} holds {len(writer)} episodes that were not converted; choose another --name")
        write(path, source.options)
        there = set(writer.file_paths())
        wanted = [name for name in source.file_paths() if name not in there]
        converted = 0
        with progress or Progress("episodes", total=len(there) + len(wanted), done=len(there)) as shown:
            for count, name in enumerate(wanted, len(there) + 1):
                episode = source.episode(name)
                if episode is not None:
                    writer.write_episode(episode)
                    converted += 1
                shown.reach(count)
        writer.finish()
    return converted


def command(source: Source, directory: Path) -> list[str]:
    """What trains on the converted set, and what is still to be said: lines for people.

    Raises:
        DataError: the set cannot be read.
    """
    data = RLDSDataset(directory)
    words = [f"data.root={directory.parent.parent}", f"data.name={directory.parent.name}"]
    if source.rate is not None:
        words.append(f"data.rate={source.rate:g}")
    if source.gripper is not None:
        words += [f"data.gripper.open={source.gripper[0]:g}", f"data.gripper.closed={source.gripper[1]:g}"]
        return [shlex.join([*TRAIN, *words])]
    actions = np.concatenate([episode["action"].reshape(len(episode["action"]), -1) for episode in data.episodes()])
    said, last = source.gripper_dims, actions.shape[1] - 1  # actions [n, A]
    dims = [last] if said is None else list(said)
    if said is not None and dims != [last]:
        words.append(f"data.gripper.dims={dims}".replace(" ", ""))
    if said is None and len(actions[0]) >= TWO_ARMS:
        words.append("data.gripper.dims=DIMS")
    if not dims:
        return [shlex.join([*TRAIN, *words])]
    values = np.unique(actions[:, dims])
    between = "" if len(values) <= 2 else "; positions between the two need data.gripper.between=true"
    shown = " and ".join(f"{one:g}" for one in values) if not between else f"{values[0]:g} to {values[-1]:g}"
    return [
        shlex.join([*TRAIN, *words, "data.gripper.open=OPEN", "data.gripper.closed=CLOSED"]),
        f"Words in capitals are for you to say: action dim {', '.join(map(str, dims))} has {shown}{between}",
    ]
