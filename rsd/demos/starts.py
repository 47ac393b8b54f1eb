"""Where recorded episodes begin, as far as their names tell: what has to be known to execute one again.

RLDS records hold pictures and actions, and no state of the simulator. An episode of scripts/collect_demos.py is named
by the seed of its placement, which makes the start again. One that scripts/convert_data.py has made of LIBERO's HDF5
files is named by file and number, and the file holds its states. All others begin nobody knows where.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsd.demos.demonstrations import drawn_scale
from rsd.demos.rerun import RerunError
from rsd.demos.schedule import Attempt

CONVERTED = re.compile(r"(?P<file>.+)/(?P<demo>demo_\d+)")
COLLECTED = "scripts/collect_demos.py"
INSTALL = "pip install h5py"


@dataclass(frozen=True)
class Start:
    """Where an episode begins.

    Attributes:
        episode: Its number in the data set.
        task_id: Of the suite.
        placement_seed: Of an episode that was collected; else None.
        noise_scale: With which its collection was disturbed; None where nobody knows.
        file, demo: HDF5 file, and name in it, that holds its states; else None.
    """

    episode: int
    task_id: int
    placement_seed: int | None = None
    noise_scale: float | None = None
    file: Path | None = None
    demo: str | None = None

    def state(self) -> np.ndarray | None:
        """The recorded one, [state]; None of an episode that was collected.

        Raises:
            RerunError: h5py is missing, or the file has no such states.
        """
        if self.file is None or self.demo is None:
            return None
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise RerunError(f"hdf5= needs the package h5py, which is not installed; {INSTALL}") from error
        try:
            with h5py.File(self.file) as file:
                return np.asarray(file["data"][self.demo]["states"][0], dtype=np.float64)
        except (OSError, KeyError) as error:
            raise RerunError(f"{self.file} holds no data/{self.demo}/states: {error}; copy the file again") from error


def find_starts(
    file_paths: Sequence[str],
    *,
    suite: str,
    recipes: Mapping[str, Any],
    task_files: Mapping[str, int],
    hdf5: Path | None,
    where: str,
) -> tuple[list[Start], list[str]]:
    """The episodes of a suite that can be executed again, and why others cannot be, a line each.

    Args:
        file_paths: Of all episodes of the data set; empty where they have no names.
        recipes: collection.json: "<suite>/seed_<seed>" → how these episodes were made.
        task_files: Name of each task's scene description → its number in the suite; read with hdf5 alone.
        hdf5: Folder of LIBERO's files; None where there is none.
        where: The data set, for messages.

    Raises:
        RerunError: no episode can.
    """
    starts: list[Start] = []
    left_out: Counter[str] = Counter()
    for episode, name in enumerate(file_paths):
        found = _collected(episode, name, suite, recipes) if Attempt.parse(name) else None
        if found is None and not Attempt.parse(name):
            found = _converted(episode, name, task_files, hdf5)
        if isinstance(found, Start):
            starts.append(found)
        else:
            left_out[found or "have no name"] += 1
    notes = [f"{count} of {len(file_paths)} episodes {why}" for why, count in left_out.items()]
    if not starts:
        example = f", {file_paths[0]!r} for example" if file_paths else ""
        raise RerunError(
            f"{where}: no episode can be executed again in {suite}: "
            + ("; ".join(notes) or "they have no names (episode_metadata/file_path)")
            + f"{example}. RLDS records hold no simulator state; what can be replayed are episodes of {COLLECTED} in "
            "this suite, and sets that scripts/convert_data.py made of LIBERO's HDF5 files (hdf5=FOLDER of these)"
        )
    return starts, notes


def _collected(episode: int, name: str, suite: str, recipes: Mapping[str, Any]) -> Start | str:
    attempt = Attempt.parse(name)
    assert attempt is not None
    if attempt.suite != suite:
        return f"are of {attempt.suite}"
    settings = recipes.get(f"{suite}/seed_{attempt.seed}", {}).get("settings")
    if settings is not None and settings.get("make_lead") is not None:
        return "begin where a policy has brought the scene to (demonstrator=corrections)"
    scale = None
    if settings is not None and settings.get("noise_scales"):
        scale = drawn_scale(np.random.default_rng(attempt.placement_seed), settings["noise_scales"])
    return Start(episode, attempt.task_id, placement_seed=attempt.placement_seed, noise_scale=scale)


def _converted(episode: int, name: str, task_files: Mapping[str, int], hdf5: Path | None) -> Start | str:
    match = CONVERTED.fullmatch(name)
    if match is None:
        return "have names that tell no start"
    if hdf5 is None:
        return "are of HDF5 files, whose folder hdf5= has to say"
    stem = Path(match["file"]).name.removesuffix("_demo")
    if stem not in task_files:
        return "are of HDF5 files of other tasks"
    files = [path for path in (hdf5 / f"{match['file']}{end}" for end in (".hdf5", ".h5")) if path.is_file()]
    if not files:
        return f"are of HDF5 files that are not in {hdf5}"
    return Start(episode, task_files[stem], noise_scale=0.0, file=files[0], demo=match["demo"])


def evenly(starts: Sequence[Start], num_episodes: int) -> list[Start]:
    """The first so many, taken from the tasks in turn: more of them begin with the same ones."""
    by_task: dict[int, list[Start]] = {}
    for start in starts:
        by_task.setdefault(start.task_id, []).append(start)
    rounds = max(map(len, by_task.values()))
    ordered = [own[place] for place in range(rounds) for own in by_task.values() if place < len(own)]
    return ordered[:num_episodes]
