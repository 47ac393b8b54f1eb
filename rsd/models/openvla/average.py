"""The mean of several trainings' weights, one model of the size of each (model soups, arXiv 2203.05482).

What surprises first: trainings on different demonstrations normalise the robot's numbers differently, so each is
restated in the first one's statistics before the mean is taken. That the mean is as good as its members is only to be
hoped for where they go on from the same weights; nothing here checks it: evaluate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rsd.checkpoint import Checkpoint, CheckpointError, check_names, load_checkpoint, save_checkpoint, shapes_of
from rsd.models.openvla.loading import KIND, PRODUCE
from rsd.models.openvla.transfer import restated
from rsd.space import Space, resolve_unnorm_key

STATISTICS = "norm_stats"


def average(sources: Sequence[Path], out: Path) -> list[str]:
    """Write the unweighted mean of checkpoints of phase=oft, computed in float64, in the first one's dtypes.

    Args:
        sources: At least two folders of one architecture, vocabulary, chunk length and views.
        out: Folder to make.

    Returns:
        Lines to tell.

    Raises:
        CheckpointError: fewer than two different checkpoints, a damaged one, or one that differs in more than its
            weights and statistics.
    """
    members = [load_checkpoint(source, kind=KIND, produce=PRODUCE) for source in sources]
    if len({member.sha256 for member in members}) < max(2, len(members)):
        raise CheckpointError(f"a mean needs at least two checkpoints of different weights, got {_listed(sources)}")
    first = members[0]
    for source, member in zip(sources, members, strict=True):
        check_names(source, shapes_of(first.weights), shapes_of(member.weights))
        others = sorted(
            key
            for key in first.config.keys() | member.config.keys()
            if key != STATISTICS and first.config.get(key) != member.config.get(key)
        )
        if others:
            raise CheckpointError(
                f"{source} differs from {sources[0]} in {', '.join(others)}; average trainings of one model"
            )
    key, space = _space(first)
    stated = [first.weights] + [restated(member.weights, _space(member)[1], space) for member in members[1:]]
    weights = {
        name: torch.stack([one[name].double() for one in stated]).mean(dim=0).to(value.dtype)
        for name, value in first.weights.items()
    }
    provenance = {"averaged": [member.sha256 for member in members], "unnorm_key": key}
    save_checkpoint(out, kind=KIND, config=first.config, weights=weights, provenance=provenance)
    return [f"{out}: the mean of {len(members)} checkpoints, in the statistics of {sources[0]}"]


def _space(member: Checkpoint) -> tuple[str, Space]:
    """Name and meaning of a member's numbers."""
    key = resolve_unnorm_key(member.config[STATISTICS], None)
    return key, Space.from_statistics(key, member.config[STATISTICS][key])


def _listed(sources: Sequence[Path]) -> str:
    return ", ".join(map(str, sources))
