"""Data sets of suites, read and split, with what their demonstrations are executed with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from hydra.utils import instantiate

from rsd.arena import ArenaError
from rsd.arena.splitting import Suite, split
from rsd.data.libero_records import FILE_PATH
from rsd.data.trajectories import chunk_actions, compute_statistics
from rsd.demos.rerun import RerunError
from rsd.demos.starts import Start, evenly, find_starts
from rsd.record import read_json
from rsd.space import Space, with_bounds
from scripts.arena.composed import composed
from scripts.replay_demos import RECIPES_FILE

if TYPE_CHECKING:  # needs torch, which --help does not wait for
    from omegaconf import DictConfig
    from torch import Tensor

    from rsd.data.datasets import Demonstrations


@dataclass
class Recorded(Suite):
    """A suite with its data set.

    Attributes:
        cfg: Of its reader and its simulator.
        starts: Of the held-out demonstrations, the tasks in turn.
        no_starts: Why there are none; empty where there are.
    """

    cfg: DictConfig
    demonstrations: Demonstrations
    starts: list[Start]
    no_starts: str


def read_suite(name: str, asked: argparse.Namespace) -> Recorded:
    """Read a suite's data set and split it.

    Raises:
        ArenaError: there is none, or too little of it.
    """
    import torch

    cfg = composed("replay_demos", [f"env={name}", f"data.root={asked.data}", f"paths.root={asked.out / 'work'}"])
    directory = Path(cfg.reader.dataset_dir)
    if not directory.is_dir():
        raise ArenaError(
            f"{name} has no data set in {directory}; python scripts/collect_demos.py env={name} num_episodes=20 "
            f'"recipe.noise_scales=[0.0]" data.root={asked.data} makes one'
        )
    demonstrations = instantiate(cfg.reader)()
    episodes = [one.actions for one in demonstrations.trajectories]
    short = [number for number, actions in enumerate(episodes) if len(actions) < asked.chunk]
    tasks = {number: one.instructions[:1] for number, one in enumerate(demonstrations.trajectories)}
    starts, no_starts = starts_of(demonstrations, name)
    disturbed = {one.episode for one in starts if one.noise_scale}
    fit, held_out = split(tasks, disturbed, asked.max_demos)
    if short or not held_out:
        raise ArenaError(
            f"{directory} has {len(episodes)} demonstrations, {len(disturbed)} of them disturbed, of which "
            f"{len(held_out)} would be held out and {len(short)} are shorter than a chunk of {asked.chunk}; collect "
            "two or more"
        )
    none = [np.empty((len(episodes[number]), 0), dtype=np.float32) for number in fit]
    statistics = compute_statistics([episodes[number] for number in fit], none)
    space = Space.from_statistics(demonstrations.name, with_bounds(statistics, cfg.data.bounds))

    def chunks(numbers: Sequence[int]) -> Tensor:
        windows = np.concatenate([chunk_actions(episodes[number], asked.chunk) for number in numbers])
        return torch.from_numpy(space.to_model(windows))

    own = [one for one in starts if one.episode in {*held_out}]
    return Recorded(
        name,
        space,
        chunks(fit),
        chunks(held_out),
        episodes,
        fit,
        held_out,
        num_disturbed=len(disturbed & {*fit}),
        cfg=cfg,
        demonstrations=demonstrations,
        starts=evenly(own, len(own)) if own else [],
        no_starts=no_starts or ("" if own else "no held-out demonstration tells how it begins"),
    )


def starts_of(demonstrations: Demonstrations, suite: str) -> tuple[list[Start], str]:
    """Where its episodes begin, and how they were disturbed; or none, and why."""
    rlds = demonstrations.rlds
    try:
        starts, _ = find_starts(
            rlds.file_paths() if FILE_PATH in rlds.features else [],
            suite=suite,
            recipes=read_json(rlds.directory / RECIPES_FILE) or {},
            task_files={},
            hdf5=None,
            where=str(rlds.directory),
        )
    except RerunError as error:
        return [], str(error)
    return starts, ""
