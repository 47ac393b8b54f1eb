"""Names of the points of a base model at which its hidden states can be read.

    layer.1 … layer.N   output of a layer of the language model at the action positions, [K, H]; the last after the norm
    head                what the last linear layer of an L1 head reads, [T, H]

Which of them there are is the base model's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

HEAD = "head"
LAYER = "layer."


def point_name(point: int | str) -> str:
    """The name of a point as users write it: 12 is "layer.12"; names stay as they are."""
    return f"{LAYER}{point}" if isinstance(point, int) else point


def point_names(points: int | str | Iterable[int | str]) -> list[str]:
    """Names in the order given, each once; of a single point, that one."""
    listed = [points] if isinstance(points, int | str) else points
    return list(dict.fromkeys(map(point_name, listed)))


def draft_folder(name: Path, point: int | str | None) -> Path:
    """Where the draft at a point lies: under the point's name where several were trained at once, else the plain one.

    Publishing a draft and looking for one both ask this function, so the one that is found was published last.
    """
    own = name if point is None else name_at(name, point)
    return own if own.is_dir() or own.is_symlink() else name  # a broken link is an error later on


def points_of_drafts(name: Path) -> list[str]:
    """Names of the points at which there are drafts beside the plain one."""
    beside = sorted(path.name for path in name.parent.iterdir()) if name.parent.is_dir() else []
    return [one.removeprefix(f"{name.name}-") for one in beside if one.startswith(f"{name.name}-")]


def name_at(name: Path, point: int | str) -> Path:
    """The name of the draft at one of several points: oft_small-…-t8-layer.3."""
    return name.with_name(f"{name.name}-{point_name(point)}")
