"""rsd: residual speculative decoding of vision-language-action policies. `rsd.load(folder)` is the door to a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rsd.policy import VLAPolicy

__version__ = "0.2.0"


def load(folder: str | Path, **options: Any) -> VLAPolicy:
    """Load a policy folder; see `rsd.policy.load_folder` for the options.

    policy = rsd.load("released", decoding="speculative")
    action = policy.queue(seed=0).next(observation)
    """
    from rsd.policy import load_folder  # here, so that `import rsd` needs no torch

    return load_folder(folder, **options)
