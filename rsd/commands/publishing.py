"""Published checkpoints: a name under paths.checkpoints that points to a run's checkpoint, for the next phase to find.

A run of its own publishes at its end. Jobs of a multirun may share a name, and none of them knows of the others: each
leaves an offer in its run folder, and what only one job offers is published when all have ended
(rsd/commands/sweep.py). So no job ever replaces what another one has published. A run folder may be a stranger's: what
it offers is published inside of a folder that the command or its user names, and nowhere else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from rsd.errors import RSDError
from rsd.files import obstacle
from rsd.points import draft_folder, name_at, point_names
from rsd.record import read, shown, write

POLICY_FILE = "policy.json"  # as in rsd.policy.folder, which needs torch
OFFER_FILE = "offer.json"  # in the run folder of a multirun's job: {checkpoint, name}
CHECKPOINTS = Path("outputs", "checkpoints")  # where offers are published if nobody says more, as in conf/paths


class PublishError(RSDError, OSError):
    """A checkpoint cannot be published under its name."""


class _Offer(TypedDict):
    """offer.json."""

    checkpoint: str
    name: str


@dataclass(frozen=True)
class Offer:
    """A checkpoint folder, and the name under which it would be published."""

    checkpoint: Path
    name: Path

    @property
    def is_published(self) -> bool:
        """Whether the name points to this checkpoint."""
        return self.name.is_symlink() and self.name.resolve() == self.checkpoint.resolve()

    def lies_in(self, checkpoints: Path) -> bool:
        """Whether the link would be made in that folder, or in one inside of it."""
        return self.name.parent.resolve().is_relative_to(checkpoints.resolve())


def names_of(phase: Mapping[str, Any]) -> dict[str, Path]:
    """Parts of what a phase will export, as folders inside of the run's, and the name under which each is published.

    Args:
        phase: The configuration: `checkpoint`, and `points` where what is made belongs to points of a base model.
    """
    name, points = Path(phase["checkpoint"]), phase.get("points")
    if points is None or isinstance(points, int | str):
        return {"": draft_folder(name, points)}
    return {point: name_at(name, point) for point in point_names(points)}


def check_publishable(name: Path) -> None:
    """See, before there is anything to publish, that it could be published; no file or folder is made.

    Raises:
        PublishError: see `publish`.
    """
    try:
        taken = name.exists() and not name.is_symlink()
    except OSError as error:  # a name that is too long
        raise PublishError(f"{name} cannot be made: {error.strerror}; set paths.checkpoints") from error
    if taken:
        raise PublishError(
            f"{name} is a folder of its own, not a link to a run; move it away, or set paths.checkpoints"
        )
    if (name.parent.parent / POLICY_FILE).is_file():
        raise PublishError(
            f"{name} would lie in a policy's folder, whose {POLICY_FILE} names other weights; give it another place, "
            f"for example paths.{name.parent.name}=outputs/checkpoints/{name.parent.name}/mine"
        )
    if (reason := obstacle(name.parent)) is not None:
        raise PublishError(f"{name} cannot be made: {reason}; set paths.checkpoints")


def publish(folder: Path, name: Path) -> None:
    """Point `name` (a symbolic link) at a run's checkpoint folder, where the next phase looks for it.

    An earlier checkpoint stays in its own run folder. Of several processes that publish at once, one comes last.

    Raises:
        PublishError: `name` is a real folder, put there by hand, which is not replaced; or no link can be made there.
    """
    if name.exists() and not name.is_symlink():
        raise PublishError(f"{name} is a folder of its own, not a link to a run; move it away to publish {folder}")
    if name.is_symlink() and name.resolve() != folder.resolve():
        print(f"{name} pointed to {name.resolve()}; from now on it points to {folder}")
    link = name.with_name(f"{name.name}.{secrets.token_hex(8)}.new")  # nobody else's, whoever publishes meanwhile
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder.resolve(), name.parent.resolve()), target_is_directory=True)
        try:
            os.replace(link, name)
        except OSError:
            link.unlink()
            raise
    except OSError as error:
        raise PublishError(
            f"{name} cannot be made a link to {folder}: {error.strerror}; set paths.checkpoints"
        ) from error


def publish_offer(offer: Offer, checkpoints: Path) -> None:
    """Publish what a job offers, inside of a folder.

    Raises:
        PublishError: its name lies elsewhere; or see `publish`.
    """
    if not offer.lies_in(checkpoints):
        raise PublishError(
            f"{offer.checkpoint.parent / OFFER_FILE}: entry 'name' is {shown(str(offer.name))}, which lies outside of "
            f"{checkpoints}, where checkpoints are published; if it is meant, name its folder: --checkpoints DIR"
        )
    publish(offer.checkpoint, offer.name)


def write_offer(run_dir: Path, offer: Offer) -> None:
    """Leave an offer in a job's run folder."""
    record = {"checkpoint": os.path.relpath(offer.checkpoint, run_dir), "name": str(offer.name)}
    write(run_dir / OFFER_FILE, record)


def read_offer(run_dir: Path) -> Offer | None:
    """The offer in a job's run folder; None when it made no checkpoint."""
    path = run_dir / OFFER_FILE
    if not path.is_file():
        return None
    record = read(path, _Offer, error=PublishError, remedy="remove it, or that job's folder")
    checkpoint = run_dir / record["checkpoint"]
    if not checkpoint.resolve().is_relative_to(run_dir.resolve()):
        raise PublishError(
            f"{path}: entry 'checkpoint' lies outside of the run's folder: {shown(record['checkpoint'])}"
        )
    return Offer(checkpoint, Path(record["name"]))


def rivals(offers: Sequence[Offer]) -> list[list[Offer]]:
    """Offers in groups that share a name, in the order of appearance."""
    groups: dict[Path, list[Offer]] = {}
    for offer in offers:
        groups.setdefault(offer.name, []).append(offer)
    return list(groups.values())
