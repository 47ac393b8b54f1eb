"""What Hydra composes for the arena: configurations, and the contestants that are tokenizers of conf/quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from rsd.arena.contestants import configured, other
from rsd.space import Space

if TYPE_CHECKING:  # needs torch, which --help does not wait for
    from omegaconf import DictConfig

    from rsd.arena.contract import Contestant

CONF = Path(__file__).resolve().parents[2] / "conf"
CONFIGURED = tuple(sorted(path.stem for path in (CONF / "quantizer").glob("[!_]*.yaml")))


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def contestant_of(name: str, space: Space, chunk: int, seed: int) -> Contestant:
    """A fresh one.

    Raises:
        ArenaError: the package that it needs is not installed.
    """
    if name not in CONFIGURED:
        return other(name, space, chunk=chunk, seed=seed)
    quantizer = composed("train", ["phase=rfsq", f"quantizer={name}", f"chunk={chunk}"]).quantizer
    tokenizer = instantiate(quantizer.tokenizer)
    steps = {"num_stages": quantizer.num_stages, "max_steps": quantizer.max_steps}
    return configured(name, tokenizer, space, **steps, seed=seed)
