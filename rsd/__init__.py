"""rsd: residual speculative decoding of vision-language-action policies. `rsd.load(folder)` is the door to a policy,
`rsd.Client(url)` to one that a server has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rsd.policy import VLAPolicy
    from rsd.serving.client import Client as Client

__version__ = "0.2.0"


def load(folder: str | Path, **options: Any) -> VLAPolicy:
    """Load a policy folder; see `rsd.policy.load_folder` for the options.

    policy = rsd.load("released", decoding="speculative")
    action = policy.queue(seed=0).next(observation)
    """
    from rsd.policy import load_folder  # here, so that `import rsd` needs no torch

    return load_folder(folder, **options)


def __getattr__(name: str) -> Any:
    if name == "Client":  # here, so that `import rsd` needs no numpy
        from rsd.serving.client import Client

        return Client
    raise AttributeError(f"module 'rsd' has no attribute {name!r}")
