"""A policy folder of a base model's checkpoint and heads that were trained on it; see scripts/convert.py policy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd.checkpoint import JSON_FILE, CheckpointError
from rsd.errors import SettingError
from rsd.files import CODE
from rsd.models.openvla.conversions import opened
from rsd.models.openvla.loading import is_own
from rsd.models.openvla.manifest import write_manifest
from rsd.models.openvla.published import read_norm_stats, read_training
from rsd.models.openvla.same_outputs import head_of
from rsd.models.openvla.stored import new_folder, require_new
from rsd.policy.description import described, stamp
from rsd.policy.folder import POLICY_FILE
from rsd.space import UnknownKeyError, resolve_unnorm_key

LEFT_OUT = (".*", "*.tmp", "__pycache__", *CODE)  # nothing reads it, and a pull would not take it
# What the environment of a robot offers (conf/env)
PICTURES = {"libero": ("image", "wrist_image"), "bridge": ("image",)}


def base_entry(
    checkpoint: Path,
    *,
    robot: Mapping[str, Any],
    views: Sequence[str] | None = None,
    unnorm_key: str | None = None,
    center_crop: bool = True,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Entry "base" of policy.json, from the checkpoint's files and from what none of them says.

    Args:
        robot: Entries of `Robot`, as a file of conf/robot has them; of a checkpoint that was fine-tuned here
            training.json says what they would.
        views: Names of the pictures; None for what training.json says, or image and (of OFT) wrist_image.

    Raises:
        CheckpointError: the checkpoint is not whole, or has no such statistics.
        SettingError: the robot has no such picture, or it is named twice.
    """
    stored, model = opened(checkpoint)
    training, head = read_training(checkpoint), head_of(stored)
    length = 1 if head == "autoregressive" else robot["chunk_length"]
    entry: dict[str, Any] = {
        "views": ["image"] if head == "autoregressive" else ["image", "wrist_image"],
        "use_proprio": model.architecture.proprio_dim is not None,
        "chunk_length": length,
        "center_crop": center_crop,
        "unnorm_key": _statistics_of(checkpoint, unnorm_key),
        "dtype": dtype,
        "action_head": head,
    }
    if training is None:
        _require_pictures(views or (), robot["name"])
        entry["robot"] = dict(robot)
    else:
        entry |= {name: training[name] for name in ("views", "chunk_length", "use_proprio", "action_head")}
    return entry | ({} if views is None else {"views": list(views)})


def _require_pictures(views: Sequence[str], robot: str) -> None:
    offered = PICTURES.get(robot, views)  # an environment of one's own may offer any
    unknown = [view for view in views if view not in offered]
    if unknown:
        raise SettingError(
            f"--views names {unknown[0]!r}, which robot {robot} does not offer; it has {', '.join(offered)} (a robot "
            "with other cameras is a conf/robot/NAME.yaml of its own, for --robot NAME)"
        )
    if len({*views}) < len(views):
        raise SettingError(f"--views names a picture twice: {' '.join(views)}; name each once")


def _statistics_of(checkpoint: Path, unnorm_key: str | None) -> str:
    try:
        return resolve_unnorm_key(read_norm_stats(checkpoint), unnorm_key)
    except UnknownKeyError as error:
        raise CheckpointError(f"{str(error).rpartition(';')[0]}; name one of them with --unnorm-key") from error


def write_policy(
    checkpoint: Path, out: Path, *, base: Mapping[str, Any], parts: Mapping[str, Path], link: bool = False
) -> list[str]:
    """Write a policy folder.

    Args:
        base: See `base_entry`.
        parts: Tokenizer, heads and drafts, as policy.json names them, to their folders.
        link: Hard links in the place of copies of the checkpoint's files, where that is possible.

    Returns:
        Lines to be told.

    Raises:
        RSDError: a part is missing, damaged or made for something else; nothing is written then.
    """
    require_new(out, checkpoint, *parts.values())
    for name, path in parts.items():
        if not (path / JSON_FILE).is_file():
            raise CheckpointError(f"{name} {path} has no {JSON_FILE}; name the folder that train.py has made")
    described({"base": checkpoint, **parts}, base)  # before gigabytes are copied
    with new_folder(out) as folder:
        shutil.copytree(
            checkpoint,
            folder / "base" / _name(checkpoint),
            copy_function=_linked if link else shutil.copy2,
            ignore=shutil.ignore_patterns(*LEFT_OUT),
        )
        if not is_own(checkpoint):
            write_manifest(folder / "base" / _name(checkpoint))
        for part, path in parts.items():
            shutil.copytree(path, folder / part / _name(path))
        told = stamp(folder, base)
    return [f"{out / POLICY_FILE}: {told}"]


def _name(path: Path) -> str:
    """What a folder is called: of a published training by its link's name, which says more than its run's."""
    return Path(os.path.abspath(path)).name


def _linked(source: str, target: str) -> str:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target
